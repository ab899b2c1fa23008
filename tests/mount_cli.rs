//! The command line as an operator meets it: what `mount` refuses and how it says so.
//!
//! Every fault has an exit status of its own and one line that names the value, and a refused
//! mount leaves nothing behind: no mount, no directory, no marker in a backing.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::cli::{self, kvfs_as};
use common::lab::{everything, list, run};
use common::user::NOBODY;
use tempfile::TempDir;

use common::{FsKind, Lab, kvfs, ns, sys};

/// Runs `kvfs mount` with these words and asserts the fault and that nothing is left behind.
#[track_caller]
fn refused(lab: &Lab, words: &[&str], code: i32, naming: &[&str]) {
    refused_as(0, lab, words, code, naming);
}

#[track_caller]
fn refused_as(uid: u32, lab: &Lab, words: &[&str], code: i32, naming: &[&str]) {
    let before = everything(&lab.root());
    let mounts = ns::mounts().len();
    let (_logs, log) = log_elsewhere();
    let mut words: Vec<&str> = ["mount"].iter().chain(words).copied().collect();
    if !words.iter().any(|w| w.starts_with("--log")) {
        words.push(&log);
    }
    kvfs_as(uid, words).fault(code, naming);
    assert_eq!(ns::mounts().len(), mounts, "a refused mount leaves no mount");
    assert_eq!(everything(&lab.root()), before, "a refused mount makes and removes nothing");
}

/// A place for the log outside the one that must not change, and the option that names it.
fn log_elsewhere() -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    sys::chmod(dir.path(), 0o777).unwrap();
    let option = format!("--log={}", text(&dir.path().join("log")));
    (dir, option)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A scratch place with a mount point and two good backings.
fn place() -> (Lab, String, String, String) {
    let lab = Lab::new();
    let [p, a, b] = ["mnt", "a", "b"].map(|n| lab.dir(n).to_str().unwrap().to_owned());
    (lab, p, a, b)
}

#[test]
fn no_backing_is_10() {
    let (lab, p, ..) = place();
    refused(&lab, &[&p], 10, &["--backing"]);
    refused(&lab, &[&p, "--backing", ""], 10, &["--backing"]);
}

#[test]
fn the_same_backing_twice_is_11() {
    let (lab, p, a, b) = place();
    refused(&lab, &[&p, "--backing", &format!("{a},{b},{a}")], 11, &[&a]);
    refused(&lab, &[&p, "--backing", &a, "--backing", &a], 11, &[&a]);
    refused(&lab, &[&p, "--backing", &format!("{a},{a}/")], 11, &[&a]);
    refused(&lab, &[&p, "--backing", &format!("{a},{b}/../a")], 11, &[&a]);
    refused(&lab, &[&p, "--backing", &format!("{a},file://{a}")], 11, &[&a]);
    sys::symlink(&a, lab.path("link")).unwrap();
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&lab.path("link")))], 11, &[&a]);
}

#[test]
fn one_directory_bound_to_two_places_is_11() {
    let (lab, p, a, b) = place();
    run(Command::new("mount").args(["--bind", &a, &b]));
    refused(&lab, &[&p, "--backing", &format!("{a},{b}")], 11, &[&b]);
}

#[test]
fn a_backing_not_yet_there_twice_is_11() {
    let (lab, p, ..) = place();
    let new = lab.path("new");
    refused(&lab, &[&p, "--backing", &format!("{0},{0}", text(&new))], 11, &[text(&new)]);
}

#[test]
fn a_backing_inside_another_is_12() {
    let (lab, p, a, b) = place();
    let inner = lab.dir("a/inner");
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&inner))], 12, &[text(&inner)]);
    refused(&lab, &[&p, "--backing", &format!("{},{b},{a}", text(&inner))], 12, &[text(&inner)]);
    let missing = lab.path("a/not/yet");
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&missing))], 12, &[text(&missing)]);
    sys::symlink(&a, lab.path("link")).unwrap();
    let through = lab.path("link/inner");
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&through))], 12, &["inner"]);
}

#[test]
fn a_backing_that_is_a_file_is_13() {
    let (lab, p, a, _) = place();
    let file = lab.path("file");
    std::fs::write(&file, "x").unwrap();
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&file))], 13, &[text(&file)]);
    let below = lab.path("file/sub");
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&below))], 13, &["file"]);
    sys::symlink("nowhere", lab.path("dangling")).unwrap();
    let dangling = kvfs(["mount", &p, "--backing", text(&lab.path("dangling")), "-f", "--log=stderr"]);
    assert_ne!(dangling.status.code(), Some(0), "a dangling link is no backing");
    assert_eq!(ns::mounts_at(Path::new(&p)).len(), 0);
}

#[test]
fn a_backing_that_cannot_be_written_is_14() {
    let (lab, p, a, b) = place();
    sys::chown(&p, NOBODY, NOBODY).unwrap();
    sys::chown(&a, NOBODY, NOBODY).unwrap();
    sys::chmod(&b, 0o755).unwrap();
    refused_as(NOBODY, &lab, &[&p, "--backing", &format!("{a},{b}")], 14, &[&b]);
    let missing = lab.path("b/new");
    refused_as(NOBODY, &lab, &[&p, "--backing", &format!("{a},{}", text(&missing))], 14, &["b"]);
}

#[test]
fn a_backing_on_a_read_only_file_system_is_15() {
    let (lab, p, a, _) = place();
    let volume = lab.volume(FsKind::Tmpfs, 16);
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&volume));
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&volume))], 15, &[text(&volume)]);
    let missing = volume.join("new");
    refused(&lab, &[&p, "--backing", &format!("{a},{}", text(&missing))], 15, &[text(&volume)]);
}

#[test]
fn a_backing_and_the_mount_point_in_each_other_is_16() {
    let (lab, p, a, _) = place();
    refused(&lab, &[&p, "--backing", &format!("{a},{p}")], 16, &[&p]);
    let under = format!("{p}/under");
    refused(&lab, &[&p, "--backing", &format!("{a},{under}")], 16, &[&under]);
    let inside = lab.dir("a/mnt");
    refused(&lab, &[text(&inside), "--backing", &a], 16, &[&a]);
    sys::symlink(&p, lab.path("link")).unwrap();
    refused(&lab, &[text(&lab.path("link")), "--backing", &format!("{a},{p}")], 16, &[&p]);
}

#[test]
fn more_than_64_backings_is_17() {
    let (lab, p, ..) = place();
    let many: Vec<PathBuf> = (0..65).map(|i| lab.path(&format!("many{i}"))).collect();
    refused(&lab, &[&p, "--backing", &list(&many)], 17, &["64"]);
    let mount = lab.mount(&many[..64]).start();
    assert_eq!(mount.status()["backings"].as_array().map(Vec::len), Some(64));
}

#[test]
fn a_backing_in_use_is_18() {
    let (lab, _, a, b) = place();
    let mount = lab.mount(&[PathBuf::from(&a)]).start();
    let second = lab.dir("second");
    refused(&lab, &[text(&second), "--backing", &format!("{b},{a}")], 18, &[&a]);
    mount.stop();
    let after = lab.mount(&[PathBuf::from(&b), PathBuf::from(&a)]).at(second).start();
    assert_eq!(after.status()["backings"].as_array().map(Vec::len), Some(2), "free again after umount");
}

#[test]
fn a_backing_of_a_killed_daemon_is_free() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    let mount = lab.mount(&backings).start();
    std::fs::write(mount.path("f"), "kept").unwrap();
    mount.signal(libc::SIGKILL);
    let point = mount.point().to_path_buf();
    mount.ended();
    kvfs(["umount", text(&point)]).code(0);
    assert_eq!(ns::mounts_at(&point).len(), 0, "umount takes a dead mount away");
    let mount = lab.mount(&backings).start();
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"kept");
}

#[test]
fn a_damaged_marker_is_19() {
    let (lab, p, a, b) = place();
    lab.mount(&[PathBuf::from(&a), PathBuf::from(&b)]).start().stop();
    let marker = Path::new(&b).join(".kvfs-backing");
    let good = std::fs::read(&marker).unwrap();
    for damage in [&b"not a marker\n"[..], b"", &[0xff; 4096]] {
        std::fs::write(&marker, damage).unwrap();
        refused(&lab, &[&p, "--backing", &format!("{a},{b}")], 19, &[&b]);
        assert_eq!(std::fs::read(&marker).unwrap(), damage, "a damaged marker is left for the operator");
    }
    std::fs::write(&marker, good).unwrap();
    lab.mount(&[PathBuf::from(&a), PathBuf::from(&b)]).start().stop();
}

#[test]
fn the_same_marker_in_two_backings_is_19() {
    let (lab, p, a, b) = place();
    lab.mount(&[PathBuf::from(&a)]).start().stop();
    std::fs::copy(Path::new(&a).join(".kvfs-backing"), Path::new(&b).join(".kvfs-backing")).unwrap();
    refused(&lab, &[&p, "--backing", &format!("{a},{b}")], 19, &[&a, &b]);
}

#[test]
fn faults_of_the_mount_point_are_20_to_23() {
    let (lab, p, a, b) = place();
    let missing = lab.path("missing");
    refused(&lab, &[text(&missing), "--backing", &a], 20, &[text(&missing)]);
    std::fs::write(format!("{p}/something"), "x").unwrap();
    refused(&lab, &[&p, "--backing", &a], 21, &[&p]);
    std::fs::remove_file(format!("{p}/something")).unwrap();
    let file = lab.path("file");
    std::fs::write(&file, "x").unwrap();
    refused(&lab, &[text(&file), "--backing", &a], 23, &[text(&file)]);

    let _mount = lab.mount(&[PathBuf::from(&a)]).start();
    refused(&lab, &[&p, "--backing", &b], 22, &[&p]);
}

#[test]
fn faults_show_in_the_foreground_too() {
    let (lab, _, a, _) = place();
    let missing = lab.path("missing");
    refused(&lab, &[text(&missing), "--backing", &a, "-f"], 20, &[text(&missing)]);
    refused(&lab, &[text(&missing), "--backing", &a, "--foreground"], 20, &[text(&missing)]);
}

#[test]
fn no_dev_fuse_is_30() {
    let (lab, p, a, _) = place();
    let dev = lab.dir("dev");
    // A /dev of this test's own, with what any program needs and no fuse.
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&dev));
    for (name, minor) in [("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)] {
        sys::mknod(dev.join(name), libc::S_IFCHR | 0o666, libc::makedev(1, minor)).unwrap();
        sys::chmod(dev.join(name), 0o666).unwrap();
    }
    run(Command::new("mount").arg("--bind").arg(&dev).arg("/dev"));
    let before = everything(Path::new(&a));
    let (_logs, log) = log_elsewhere();
    let outcome = kvfs(["mount", &p, "--backing", &a, &log]);
    run(Command::new("umount").args(["-l", "/dev"]));
    outcome.fault(30, &["/dev/fuse"]);
    assert_eq!(everything(Path::new(&a)), before);
    assert_eq!(ns::mounts_at(Path::new(&p)).len(), 0);
}

#[test]
fn no_right_to_mount_is_31() {
    let (lab, p, a, _) = place();
    let before = everything(&lab.root());
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", cli::BINARY]);
    let (_logs, log) = log_elsewhere();
    command.args(["mount", &p, "--backing", &a, &log]);
    cli::finish(command).fault(31, &[&p]);
    assert_eq!(everything(&lab.root()), before);
    assert_eq!(ns::mounts_at(Path::new(&p)).len(), 0);
}

#[test]
fn a_mount_point_of_somebody_else_is_31() {
    let (lab, p, a, _) = place();
    lab.fuse_for_everyone();
    sys::chown(&a, NOBODY, NOBODY).unwrap();
    refused_as(NOBODY, &lab, &[&p, "--backing", &a], 31, &[&p]);
}

#[test]
fn passthrough_required_but_not_to_be_had_is_32() {
    let (lab, p, a, _) = place();
    lab.fuse_for_everyone();
    sys::chown(&p, NOBODY, NOBODY).unwrap();
    sys::chown(&a, NOBODY, NOBODY).unwrap();
    refused_as(NOBODY, &lab, &[&p, "--backing", &a, "--passthrough", "require"], 32, &["passthrough"]);
}

#[test]
fn unknown_policies_and_values_are_40_and_41() {
    let (lab, p, a, _) = place();
    refused(
        &lab,
        &[&p, "--backing", &a, "--placement", "nearest-cafe"],
        40,
        &["nearest-cafe", "by_gpu", "hash"],
    );
    for (option, value) in [
        ("--min-free", "banana"),
        ("--min-free", "120%"),
        ("--min-free", "-5%"),
        ("--min-free", "10Q"),
        ("--min-free", "99999999999999999999G"),
        ("--threads", "0"),
        ("--threads", "many"),
        ("--passthrough", "perhaps"),
        ("--log", "/no/such/directory/kvfs.log"),
    ] {
        let joined = format!("{option}={value}");
        refused(&lab, &[&p, "--backing", &a, &joined], 41, &[value]);
    }
}
