//! systemd's store of descriptors, with a stand-in for systemd: the daemon alone, without a parent of ours.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::load::{finished, number};
use super::storm::kills_under_load;
use super::upgrade::upgrade;
use super::{daemon, kill};
use crate::common::cli::BINARY;
use crate::common::{Builder, Lab, Mount, Passthrough, ns, pattern, ranked, sys};

/// A mount whose daemon the stand-in starts, and its log.
fn service(lab: &Lab, backings: &[PathBuf], words: &[&str]) -> (Builder, PathBuf) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/standin.py");
    let log = lab.path("standin.log");
    let under = ["python3".into(), "-B".into(), script.into_os_string(), log.clone().into_os_string()];
    let under = under.into_iter().chain(words.iter().map(OsString::from));
    (lab.mount(backings).under(under).env("KVFS_TEST_DIE_WITH_PARENT", "1"), log)
}

/// What is in the store now, by kinds: how many of each.
fn stored(log: &Path) -> [usize; 6] {
    let log = std::fs::read_to_string(log).unwrap();
    let last = log.lines().rfind(|line| line.starts_with("store")).unwrap_or_default();
    let mut kinds = [0; 6];
    for name in last.split_whitespace().skip(1) {
        let code = u64::from_str_radix(name.strip_prefix("kvfs-").unwrap(), 16).unwrap();
        kinds[(code >> 56) as usize - 1] += 1;
    }
    kinds
}

#[track_caller]
fn stores(mount: &Mount, log: &Path, kinds: [usize; 6]) {
    let deadline = Instant::now() + ns::HANG;
    while stored(log) != kinds {
        assert!(Instant::now() < deadline, "in the store: {:?}\n{}", stored(log), mount.story());
    }
}

#[test]
fn systemd_hears_when_the_mount_is_there() {
    for supervise in ["on", "off"] {
        let lab = Lab::new();
        let (builder, log) = service(&lab, &lab.dirs(1), &["--no-store"]);
        let builder = builder.arg("--supervise").arg(supervise);
        let mut command = builder.command(&lab.path("log"));
        sys::die_with_parent(&mut command);
        let mut standin = command.spawn().unwrap();
        let deadline = Instant::now() + ns::HANG;
        let said = |what: &str| std::fs::read_to_string(&log).is_ok_and(|log| log.lines().any(|l| l == what));
        while !said("ready") {
            assert!(Instant::now() < deadline && standin.try_wait().unwrap().is_none(), "it hears nothing");
        }
        assert_eq!(sys::fs_magic(&builder.point), Ok(crate::common::mount::FUSE_MAGIC), "it's there");
        let pidfd = sys::pidfd(standin.id()).unwrap();
        sys::signal(&pidfd, libc::SIGTERM).unwrap();
        assert!(crate::common::cli::wait(&mut standin, ns::HANG).unwrap().success());
        assert!(said("ended 0"));
    }
}

#[test]
fn kills_are_pauses() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let (builder, log) = service(&lab, &lab.dirs(3), &[]);
        let mount = builder.passthrough(mode).start();
        assert_eq!(mount.status()["supervised"]["by"], "systemd");
        // The device, the state, three locks.
        stores(&mount, &log, [1, 1, 3, 0, 0, 1]);
        kills_under_load(&mount, number("KVFS_TEST_KILLS", 30));
        stores(&mount, &log, [1, 1, 3, 0, 0, 1]);
        finished(mount);
        assert_eq!(stored(&log), [0; 6], "nothing is kept when the mount has ended");
    }
}

#[test]
fn what_is_open_is_kept_and_what_is_not_needed_is_not() {
    let lab = Lab::new();
    let (builder, log) = service(&lab, &lab.dirs(2), &[]);
    let mount = builder.start();
    let path = mount.path(ranked(1, 1));
    std::fs::write(&path, pattern(1, 100_000)).unwrap();
    let fd = sys::open(&path, libc::O_RDWR, 0).unwrap();
    sys::unlink(&path).unwrap();
    stores(&mount, &log, [1, 1, 2, 1, 0, 1]);
    for _ in 0..2 {
        kill(&mount);
        assert_eq!(sys::pread(&fd, 200_000, 0), Ok(pattern(1, 100_000)));
        assert_eq!(sys::fstat(&fd).unwrap().st_nlink, 0);
    }
    drop(fd);
    stores(&mount, &log, [1, 1, 2, 0, 0, 1]);
}

#[test]
fn the_unit_starts_what_takes_over() {
    let lab = Lab::new();
    let (builder, _) = service(&lab, &lab.dirs(2), &[]);
    // What the unit says; a new version is put in its place.
    let bin = lab.dir("bin");
    let (unit, new) = (bin.join("kvfs"), bin.join("kvfs@2.0.0"));
    std::fs::copy(BINARY, &unit).unwrap();
    let mount = builder.binary(&unit).start();
    let fd = sys::create(mount.path(ranked(1, 1))).unwrap();
    // Not in its place yet: the daemon says what came up instead.
    std::fs::copy(BINARY, &new).unwrap();
    upgrade(&mount, &["--binary", new.to_str().unwrap()]).fault(71, &[unit.to_str().unwrap()]);
    assert_eq!(daemon(&mount).0, 2);
    std::fs::rename(&new, &unit).unwrap();
    upgrade(&mount, &["--binary", unit.to_str().unwrap()]).code(0);
    assert_eq!(daemon(&mount).0, 3);
    assert_eq!(sys::write(&fd, b"goes on"), Ok(7));
}
