//! A mount's life on the command line: started in the background or not, asked how it is and
//! where a file lies, and taken away by umount or a signal.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::lab::list;
use common::mount::{FUSE_MAGIC, status_of};
use common::user::{NOBODY, as_user};
use common::{Errno, FsKind, Lab, Passthrough, cli, kvfs, ns, ranked, sys};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A daemon in the background, killed when the test ends.
struct Background {
    pidfd: OwnedFd,
    pid: u64,
}

impl Background {
    fn of(point: &Path) -> Background {
        let pid = status_of(point)["pid"].as_u64().expect("status has a pid");
        Background { pidfd: sys::pidfd(pid as u32).expect("the daemon runs"), pid }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = sys::signal(&self.pidfd, libc::SIGKILL);
    }
}

#[test]
fn background_returns_once_the_mount_answers() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(2));
    std::fs::write(backings[0].join("before"), "there").unwrap();
    kvfs(["mount", text(&point), "--backing", &list(&backings), "--log", text(&lab.path("log"))]).code(0);
    assert_eq!(sys::fs_magic(&point), Ok(FUSE_MAGIC), "mounted by the time mount returns");
    let daemon = Background::of(&point);
    assert_eq!(std::fs::read(point.join("before")).unwrap(), b"there");
    std::fs::write(point.join("after"), "new").unwrap();
    assert_eq!(
        std::fs::read_link(format!("/proc/{}/cwd", daemon.pid)).unwrap(),
        Path::new("/"),
        "holds no directory"
    );

    kvfs(["umount", text(&point)]).code(0);
    assert_eq!(ns::mounts_at(&point).len(), 0);
    assert!(cli::wait_fd(&daemon.pidfd, ns::HANG), "the daemon ends after umount");
}

#[test]
fn background_lets_go_of_the_terminal() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(1));
    // `$(...)` ends when the last holder of its pipe is gone: a daemon that keeps stdout or stderr hangs this.
    let script = format!(
        "out=$({} mount {} --backing {} --log {} 2>&1); echo \"left $? $out\"",
        cli::BINARY,
        text(&point),
        list(&backings),
        text(&lab.path("log"))
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]);
    let said = cli::finish(shell).code(0).stdout;
    let daemon = Background::of(&point);
    assert_eq!(said.trim(), "left 0", "a mount that works has nothing to say");
    let sid = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_ne!(sid(&daemon.pid.to_string()), sid("self"), "a session of its own");
    kvfs(["umount", text(&point)]).code(0);
    assert!(cli::wait_fd(&daemon.pidfd, ns::HANG));
}

#[test]
fn umount_of_what_is_not_kvfs_is_50() {
    let lab = Lab::new();
    let plain = lab.dir("plain");
    kvfs(["umount", text(&plain)]).fault(50, &[text(&plain)]);
    kvfs(["umount", text(&lab.path("missing"))]).fault(50, &["missing"]);
    let volume = lab.volume(FsKind::Tmpfs, 16);
    kvfs(["umount", text(&volume)]).fault(50, &[text(&volume)]);
    assert_eq!(ns::mounts_at(&volume).len(), 1, "somebody else's mount stays");
    let mount = lab.mount(&lab.dirs(1)).start();
    let below = mount.path("dir");
    std::fs::create_dir(&below).unwrap();
    kvfs(["umount", text(&below)]).fault(50, &[text(&below)]);
    assert_eq!(sys::fs_magic(mount.point()), Ok(FUSE_MAGIC));
}

#[test]
fn umount_of_a_busy_mount_is_51_and_changes_nothing() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let fd = sys::create(mount.path("f")).unwrap();
    kvfs(["umount", text(mount.point())]).fault(51, &[text(mount.point()), "--lazy"]);
    assert_eq!(ns::mounts_at(mount.point()).len(), 1, "still mounted");
    assert_eq!(sys::write(&fd, b"on"), Ok(2));
    std::fs::write(mount.path("g"), "still served").unwrap();
    drop(fd);
    // The last close reaches the daemon a moment later; a new refusal meanwhile is right, too.
    mount.stop();
}

#[test]
fn lazy_umount_lets_the_open_files_finish() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let fd = sys::create(mount.path("f")).unwrap();
    sys::write(&fd, b"before").unwrap();
    let (point, backings) = (mount.point().to_path_buf(), mount.backings().to_vec());
    kvfs(["umount", "--lazy", text(&point)]).code(0);
    assert_eq!(ns::mounts_at(&point).len(), 0, "out of sight at once");
    assert_eq!(sys::write(&fd, b" after"), Ok(6), "an open file goes on");
    assert_eq!(sys::pread(&fd, 100, 0), Ok(b"before after".to_vec()));
    assert_eq!(sys::fsync(&fd), Ok(()));
    drop(fd);
    assert!(mount.ended().success(), "the daemon ends when the last file is closed");
    let found: Vec<_> = backings.iter().filter_map(|b| std::fs::read(b.join("f")).ok()).collect();
    assert_eq!(found, [b"before after".to_vec()]);
}

#[test]
fn signals_unmount_cleanly() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(2)).start();
        std::fs::write(mount.path("f"), "kept").unwrap();
        let (point, backings) = (mount.point().to_path_buf(), mount.backings().to_vec());
        mount.signal(signal);
        assert_eq!(mount.ended().code(), Some(0), "exit status after signal {signal}");
        assert_eq!(ns::mounts_at(&point).len(), 0, "unmounted after signal {signal}");
        assert_eq!(common::mount::holders(&backings, Path::new("f")).len(), 1);
    }
}

/// The daemon hears of a close(2) after it has returned, so perhaps just when the mount ends.
#[test]
fn closes_that_are_heard_of_while_it_is_unmounted_are_no_errors() {
    let lab = Lab::new();
    let builder = lab.mount(&lab.dirs(1));
    for _ in 0..10 {
        let mount = builder.clone().start();
        std::fs::write(mount.path("f"), "kept").unwrap();
        // Their closing waits for nobody.
        let open = || sys::open(mount.path("f"), libc::O_RDONLY, 0).unwrap();
        let held: Vec<_> = (0..1000).map(|_| open()).collect();
        mount.signal(libc::SIGSTOP);
        drop(held);
        mount.signal(libc::SIGCONT);
        ns::unmount_below(mount.point());
        let (status, story) = mount.ended_and_said();
        assert!(status.success(), "{}:\n{story}", cli::ended(status));
        assert!(!story.contains("ERROR"), "{story}");
    }
}

#[test]
fn the_mount_point_may_be_named_in_other_ways() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    let link = lab.path("link");
    sys::symlink(mount.point(), &link).unwrap();
    for name in [
        format!("{}/", text(mount.point())),
        text(&link).to_owned(),
        format!("{}/mnt/../mnt", text(&lab.root())),
    ] {
        let out = kvfs(["status", "--json", &name]).code(0).stdout;
        let status: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status["mountpoint"].as_str(), Some(text(mount.point())), "status of {name}");
    }
}

#[test]
fn umount_takes_a_link_to_the_mount_point() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    let link = lab.path("link");
    sys::symlink(mount.point(), &link).unwrap();
    let point = mount.point().to_path_buf();
    kvfs(["umount", text(&link)]).code(0);
    assert_eq!(ns::mounts_at(&point).len(), 0, "umount through a link");
    assert!(mount.ended().success());
}

/// A daemon that ends late takes only what is its own: the kernel gives the device number of a
/// mount that is gone to the next one, which may be running by then.
#[test]
fn a_daemon_that_ends_late_leaves_the_next_mount_alone() {
    for _ in 0..50 {
        let lab = Lab::new();
        // The socket of the fast path would keep the file system, and with it the number, until the daemon goes on.
        let mount =
            |backing, point| lab.mount(&[lab.dir(backing)]).at(lab.dir(point)).arg("--direct=off").start();
        let old = mount("a", "old");
        old.signal(libc::SIGSTOP);
        nix::mount::umount(old.point()).unwrap();
        let new = mount("b", "new");
        let same = old.minor == new.minor;
        old.signal(libc::SIGCONT);
        old.ended();
        let status = new.status();
        assert_eq!(status["pid"].as_u64(), Some(u64::from(new.pid())));
        if same {
            return;
        }
    }
    panic!("the kernel never gave a device number again: nothing was proved");
}

#[test]
fn a_mount_takes_the_place_of_a_dead_one_and_of_no_other() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(2));
    let log = lab.path("log");
    let list = list(&backings);
    let mount =
        || kvfs(["mount", text(&point), "--backing", &list, "--supervise", "off", "--log", text(&log)]);
    mount().code(0);
    let daemon = Background::of(&point);
    std::fs::write(point.join("file"), "bytes").unwrap();
    mount().code(22);
    sys::signal(&daemon.pidfd, libc::SIGSTOP).unwrap();
    // It doesn't answer, but may again.
    mount().code(22);
    sys::signal(&daemon.pidfd, libc::SIGCONT).unwrap();
    assert_eq!(std::fs::read(point.join("file")).unwrap(), b"bytes");
    sys::signal(&daemon.pidfd, libc::SIGKILL).unwrap();
    assert!(cli::wait_fd(&daemon.pidfd, ns::HANG));
    assert_eq!(sys::stat(point.join("file")).err(), Some(Errno::ENOTCONN));
    let outcome = mount().code(0);
    assert!(outcome.stderr.contains("was dead"), "{}", outcome.stderr);
    let _daemon = Background::of(&point);
    assert_eq!(ns::mounts_at(&point).len(), 1);
    assert_eq!(std::fs::read(point.join("file")).unwrap(), b"bytes");
    kvfs(["umount", text(&point)]).code(0);
    assert_eq!(ns::mounts_at(&point).len(), 0);
}

#[test]
fn backings_in_every_spelling() {
    let lab = Lab::new();
    let point = lab.dir("mnt");
    let [a, b, c, d] = ["a", "b", "c", "deep/and/missing"].map(|n| lab.path(n));
    lab.dir("a");
    let words: Vec<OsString> = vec![
        "mount".into(),
        point.clone().into(),
        "--backing".into(),
        format!("file://{},{}/", text(&a), text(&b)).into(),
        "--log".into(),
        lab.path("log").into(),
        "--backing".into(),
        text(&c).into(),
        format!("--backing=file://{}", text(&d)).into(),
    ];
    kvfs(words).code(0);
    let daemon = Background::of(&point);
    let status = status_of(&point);
    let paths: Vec<&str> =
        status["backings"].as_array().unwrap().iter().map(|b| b["path"].as_str().unwrap()).collect();
    assert_eq!(paths, [&a, &b, &c, &d].map(|p| text(p)), "in the order given, missing ones made");
    for dir in [&a, &b, &c, &d] {
        assert!(dir.join(".kvfs-backing").is_file(), "marker in {}", dir.display());
    }
    kvfs(["umount", text(&point)]).code(0);
    assert!(cli::wait_fd(&daemon.pidfd, ns::HANG));
}

#[test]
fn paths_that_begin_alike_are_not_nested() {
    let lab = Lab::new();
    let backings = ["nvme1", "nvme10", "nvme1.old", "nvme"].map(|n| lab.dir(n)).to_vec();
    let mount = lab.mount(&backings).at(lab.dir("nvme1-mnt")).start();
    for i in 0..4 {
        std::fs::write(mount.path(ranked(i, i)), "x").unwrap();
        assert_eq!(mount.holder(ranked(i, i)), i);
    }
}

#[test]
fn status_tells_all_of_it() {
    let lab = Lab::new();
    let backings = vec![lab.volume(FsKind::Xfs, 512).join("kv"), lab.volume(FsKind::Ext4, 128).join("kv")];
    let mount = lab.mount(&backings).passthrough(Passthrough::Auto).start();
    for i in 0..6 {
        std::fs::write(mount.path(ranked(i, i)), vec![1; 100_000]).unwrap();
    }
    std::fs::create_dir(mount.path("d")).unwrap();
    let s = mount.status();
    assert_eq!(s["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(s["pid"].as_u64(), Some(u64::from(mount.pid())));
    assert_eq!(s["mountpoint"].as_str(), Some(text(mount.point())));
    assert_eq!(s["placement"].as_str(), Some("by_gpu"), "by_gpu is the default");
    assert_eq!(s["passthrough"]["on"].as_bool(), Some(true));
    assert!(s["passthrough"]["why"].is_string() || s["passthrough"]["why"].is_null());
    assert!(s["io_engine"].is_string(), "{s:#}");
    let listed = s["backings"].as_array().unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for (i, b) in listed.iter().enumerate() {
        assert_eq!(b["slot"].as_u64(), Some(i as u64));
        assert_eq!(b["path"].as_str(), Some(text(&backings[i])));
        assert_eq!(b["fs"].as_str(), Some(["xfs", "ext4"][i]));
        assert_eq!(b["files"].as_u64(), Some(3), "files on backing {i}: {b:#}");
        assert_eq!(b["passthrough"]["on"].as_bool(), Some(true));
        assert!(b["state"].as_str().is_some_and(|s| !s.is_empty()));
        let [total, used, free] = ["bytes_total", "bytes_used", "bytes_free"].map(|k| b[k].as_u64().unwrap());
        assert!(total > 64 << 20 && total <= 512 << 20, "{b:#}");
        assert!(used + free <= total && free > 0, "{b:#}");
        ids.insert(b["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 2, "each backing has an id of its own");
    assert_eq!(s["index"]["files"].as_u64(), Some(6));
    assert_eq!(s["index"]["shadows"].as_u64(), Some(0));
    assert_eq!(s["index"]["unreadable"].as_u64(), Some(0));
    assert!(s["index"]["dirs"].as_u64().is_some_and(|d| (1..=2).contains(&d)), "{s:#}");
    assert!(s["index"]["scan_ms"].is_number());
    for op in ["lookup", "create", "open", "read", "write", "unlink", "rename", "panics"] {
        assert!(s["ops"][op].is_u64(), "ops.{op} in {s:#}");
    }
    assert_eq!(s["ops"]["create"].as_u64(), Some(6));

    let human = kvfs(["status", text(mount.point())]).code(0).stdout;
    for word in [text(mount.point()), text(&backings[0]), text(&backings[1]), "passthrough"] {
        assert!(human.contains(word), "{word} in:\n{human}");
    }
}

#[test]
fn status_says_when_passthrough_is_off() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).passthrough(Passthrough::Off).start();
    let s = mount.status();
    assert_eq!(s["passthrough"]["on"].as_bool(), Some(false));
    assert!(s["passthrough"]["why"].as_str().is_some_and(|w| !w.is_empty()), "off, and why: {s:#}");
    std::fs::write(mount.path("f"), "data").unwrap();
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"data");
    assert!(
        mount.op("write") > 0 && mount.op("read") > 0,
        "data goes through the daemon: {:#}",
        mount.status()
    );
}

#[test]
fn passthrough_keeps_data_away_from_the_daemon() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).passthrough(Passthrough::Auto).start();
    std::fs::write(mount.path("f"), vec![1; 1 << 20]).unwrap();
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), vec![1; 1 << 20]);
    assert_eq!((mount.op("write"), mount.op("read")), (0, 0), "the kernel moves the data itself");
}

#[test]
fn a_daemon_that_does_not_answer_is_60() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    mount.signal(libc::SIGSTOP);
    let outcome = kvfs(["status", text(mount.point())]);
    mount.signal(libc::SIGCONT);
    outcome.fault(60, &[text(mount.point())]);
    assert_eq!(mount.status()["pid"].as_u64(), Some(u64::from(mount.pid())), "and answers again");
    let plain = lab.dir("plain");
    let code = kvfs(["status", text(&plain)]).status.code();
    assert!(matches!(code, Some(50 | 60)), "status of a plain directory gave {code:?}");
}

#[test]
fn locate_says_where_and_why() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).start();
    let names = [ranked(0, 1), ranked(1, 1), ranked(5, 1), String::from("unknown name")];
    for name in &names {
        std::fs::write(mount.path(name), name).unwrap();
    }
    let mut words: Vec<OsString> = vec!["locate".into(), "--json".into()];
    words.extend(names.iter().map(|n| mount.path(n).into_os_string()));
    let found: Value = serde_json::from_str(&kvfs(words).code(0).stdout).unwrap();
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), names.len());
    for (name, item) in names.iter().zip(found) {
        let slot = item["slot"].as_u64().unwrap() as usize;
        assert_eq!(item["file"].as_str(), Some(text(&mount.path(name))));
        assert_eq!(slot, mount.holder(name), "{item:#}");
        assert_eq!(item["path"].as_str(), Some(text(&mount.backings()[slot].join(name))));
        assert!(item["placement"].as_str().is_some_and(|w| !w.is_empty()), "why: {item:#}");
        let attr = |n: &str| String::from_utf8(sys::getxattr(mount.path(name), n).unwrap()).unwrap();
        assert_eq!(Some(attr("user.kvfs.path").as_str()), item["path"].as_str());
        assert_eq!(Some(attr("user.kvfs.backing").as_str()), item["backing"].as_str());
        assert_eq!(Some(attr("user.kvfs.placement").as_str()), item["placement"].as_str());
    }
    assert_ne!(found[0]["placement"], found[3]["placement"], "a rank and a hash are not the same reason");
    let human = kvfs([OsString::from("locate"), mount.path(&names[2]).into()]).code(0).stdout;
    assert!(human.contains(text(&mount.backings()[2])), "{human}");

    let missing = kvfs([OsString::from("locate"), mount.path("missing").into()]);
    assert!(!missing.status.success() && missing.stderr.contains("missing"), "{missing:?}");
    let outside = lab.path("outside");
    std::fs::write(&outside, "x").unwrap();
    assert!(
        !kvfs([OsString::from("locate"), outside.into()]).status.success(),
        "a file that is not in a kvfs mount"
    );
}

#[test]
fn the_attributes_of_kvfs_are_read_only_and_unlisted() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let f = mount.path("f");
    std::fs::write(&f, "x").unwrap();
    assert_eq!(sys::listxattr(&f), Ok(vec![]));
    for name in ["user.kvfs.backing", "user.kvfs.path", "user.kvfs.placement"] {
        assert!(sys::getxattr(&f, name).is_ok_and(|v| !v.is_empty()), "{name}");
        assert_eq!(sys::setxattr(&f, name, b"mine", 0), Err(Errno::EPERM), "set {name}");
        assert_eq!(sys::removexattr(&f, name), Err(Errno::EPERM), "remove {name}");
        assert_eq!(sys::getxattr_into(&f, name, 1), Err(Errno::ERANGE), "too small a buffer for {name}");
    }
    sys::setxattr(&f, "user.mine", b"1", 0).unwrap();
    assert_eq!(sys::listxattr(&f), Ok(vec![String::from("user.mine")]));
    // Beside it kvfs's own, which says that the file may not be on the device yet.
    assert_eq!(
        sys::listxattr(mount.backings()[mount.holder("f")].join("f")),
        Ok(vec![String::from("user.kvfs.unsynced"), String::from("user.mine")])
    );
}

#[test]
fn an_ordinary_user_mounts_with_fusermount3() {
    assert!(
        Path::new("/usr/bin/fusermount3").exists() || Path::new("/bin/fusermount3").exists(),
        "fusermount3 is missing: install fuse3"
    );
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(2));
    for path in [&point, &backings[0], &backings[1]] {
        sys::chown(path, NOBODY, NOBODY).unwrap();
    }
    lab.fuse_for_everyone();
    let mount = lab.mount(&backings).user(NOBODY).start();
    let s = mount.status();
    assert_eq!(s["passthrough"]["on"].as_bool(), Some(false), "an ordinary user has no passthrough");
    assert!(s["passthrough"]["why"].as_str().is_some_and(|w| !w.is_empty()), "{s:#}");
    let data = common::pattern(7, 3 << 20);
    as_user(NOBODY, NOBODY, || {
        for i in 0..4 {
            let (tmp, name) = (mount.path(format!("tmp{i}")), mount.path(ranked(i, i)));
            std::fs::write(&tmp, &data).unwrap();
            assert_eq!(sys::rename(&tmp, &name), Ok(()));
            assert_eq!(std::fs::read(&name).unwrap(), data);
        }
        assert_eq!(common::dir::list(mount.point()).unwrap().len(), 4);
        sys::unlink(mount.path(ranked(0, 0))).unwrap();
    });
    let owned = sys::lstat(backings[mount.holder(ranked(1, 1))].join(ranked(1, 1))).unwrap();
    assert_eq!((owned.st_uid, owned.st_gid), (NOBODY, NOBODY));
    let again = mount.restart();
    let read = as_user(NOBODY, NOBODY, || std::fs::read(again.path(ranked(3, 3))));
    assert_eq!(read.unwrap(), data);
}

#[test]
fn an_ordinary_user_mounts_in_the_background() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(1));
    for path in [&point, &backings[0]] {
        sys::chown(path, NOBODY, NOBODY).unwrap();
    }
    lab.fuse_for_everyone();
    // Nothing said of a log: the default must be one that this user can write.
    cli::kvfs_as(NOBODY, ["mount", text(&point), "--backing", text(&backings[0])]).code(0);
    let wrote = as_user(NOBODY, NOBODY, || std::fs::write(point.join("f"), "x").map_err(|e| e.kind()));
    cli::kvfs_as(NOBODY, ["umount", text(&point)]).code(0);
    assert_eq!(wrote, Ok(()));
    assert_eq!(ns::mounts_at(&point).len(), 0);
}

#[test]
fn options_that_are_right_are_taken() {
    let lab = Lab::new();
    for (i, words) in [
        &["--min-free", "64M"][..],
        &["--min-free", "1%"],
        &["--threads", "1"],
        &["--placement", "hash"],
        &["--exclusive"],
    ]
    .into_iter()
    .enumerate()
    {
        let backings: Vec<PathBuf> = (0..2).map(|b| lab.dir(&format!("b{i}-{b}"))).collect();
        let mut builder = lab.mount(&backings);
        for word in words {
            builder = builder.arg(*word);
        }
        let mount = builder.start();
        std::fs::write(mount.path("f"), "works").unwrap();
        assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"works", "with {words:?}");
    }
}
