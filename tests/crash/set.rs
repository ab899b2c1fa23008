//! Daemons are killed after, and in the midst of, changes of the set of backings.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::load::{finished_on, under_load};
use super::{daemon, kill, next};
use crate::common::lab::{names, run};
use crate::common::{Errno, FsKind, Lab, Mount, Outcome, Passthrough, kvfs, ns, pattern, ranked, sys};

fn backing(mount: &Mount, what: &str, words: &[&str]) -> Outcome {
    let mut all: Vec<OsString> = vec!["backing".into(), what.into(), mount.point().into()];
    all.extend(words.iter().map(OsString::from));
    kvfs(all)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Slot, path and state of each backing.
fn set(mount: &Mount) -> Vec<(u64, String, String)> {
    let status = mount.status();
    let word = |b: &Value, key: &str| b[key].as_str().unwrap().to_owned();
    let all = status["backings"].as_array().unwrap().iter();
    all.map(|b| (b["slot"].as_u64().unwrap(), word(b, "path"), word(b, "state"))).collect()
}

fn expected(all: &[(u64, &PathBuf, &str)]) -> Vec<(u64, String, String)> {
    all.iter().map(|(slot, path, state)| (*slot, text(path).to_owned(), (*state).to_owned())).collect()
}

/// Waits until the set is this.
#[track_caller]
fn becomes(mount: &Mount, all: &[(u64, &PathBuf, &str)]) {
    let deadline = Instant::now() + ns::HANG;
    while set(mount) != expected(all) {
        assert!(Instant::now() < deadline, "it's {:?}\n{}", set(mount), mount.story());
    }
}

#[track_caller]
fn check(path: &Path, seed: u64) {
    let data = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(data == pattern(seed, 50_000), "{} has other bytes", path.display());
}

#[test]
fn whatever_was_changed_stays_so() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let b = lab.dirs(5);
        std::fs::create_dir(b[3].join("d")).unwrap();
        std::fs::write(b[3].join("d/brought"), pattern(50, 50_000)).unwrap();
        let mount = lab.mount(&b[..3]).passthrough(mode).supervised().start();
        for rank in 0..3 {
            std::fs::write(mount.path(ranked(rank, 1)), pattern(rank as u64, 50_000)).unwrap();
        }
        // A file of each, open: of the one that goes, too.
        let open: Vec<_> =
            (0..3).map(|rank| sys::open(mount.path(ranked(rank, 1)), libc::O_RDWR, 0).unwrap()).collect();
        let inos = |ranks: &[usize]| -> Vec<u64> {
            ranks.iter().map(|rank| sys::stat(mount.path(ranked(*rank, 1))).unwrap().st_ino).collect()
        };
        let before = inos(&[0, 2]);
        kill(&mount);
        backing(&mount, "add", &[text(&b[3])]).code(0);
        kill(&mount);
        becomes(&mount, &[(0, &b[0], "rw"), (1, &b[1], "rw"), (2, &b[2], "rw"), (3, &b[3], "rw")]);
        check(&mount.path("d/brought"), 50);
        backing(&mount, "remove", &["1", "--force", "--yes"]).code(0);
        backing(&mount, "set", &["0", "no-create"]).code(0);
        kill(&mount);
        let now = [(0, &b[0], "no-create"), (2, &b[2], "rw"), (3, &b[3], "rw")];
        becomes(&mount, &now);
        assert_eq!(inos(&[0, 2]), before, "numbers are the same");
        assert_eq!(sys::stat(mount.path(ranked(1, 1))).map(drop), Err(Errno::ENOENT));
        // The one without a backing goes on, too.
        for (seed, fd) in (0..).zip(&open) {
            assert_eq!(sys::pread(fd, 4096, 0), Ok(pattern(seed, 4096)), "{mode:?} {seed}");
            assert_eq!(sys::pwrite(fd, &pattern(seed, 4096), 0), Ok(4096));
            assert_eq!(sys::fsync(fd), Ok(()));
        }
        assert_eq!(mount.status()["supervised"]["lost"], 0);
        // One more, and the one that went in its old slot.
        backing(&mount, "add", &[text(&b[4])]).code(0);
        backing(&mount, "add", &[text(&b[1])]).code(0);
        kill(&mount);
        let now =
            [(0, &b[0], "no-create"), (1, &b[1], "rw"), (2, &b[2], "rw"), (3, &b[3], "rw"), (4, &b[4], "rw")];
        becomes(&mount, &now);
        check(&mount.path(ranked(1, 1)), 1);
        drop(open);
        kill(&mount);
        assert_eq!(mount.status()["open_files"], 0);
        // New files still don't go where they mustn't.
        for n in 10..30 {
            std::fs::write(mount.path(ranked(0, n)), "x").unwrap();
        }
        assert!(!names(&b[0]).contains(&ranked(0, 10)));
    }
}

fn dying(lab: &Lab, b: &[PathBuf], point: &str) -> Mount {
    // What isn't there is remembered by the kernel as well.
    lab.mount(b).arg("--exclusive").supervised().env("KVFS_FAULT_ABORT_AT", point).start()
}

/// An order over which the first daemon dies.
#[track_caller]
fn over(mount: &Mount, what: &str, words: &[&str]) {
    let before = daemon(mount).0;
    backing(mount, what, words);
    next(mount, before);
    assert_eq!(daemon(mount).0, before + 1, "one daemon has died");
}

#[test]
fn one_joins_whenever_the_daemon_dies() {
    for point in ["join recorded", "join entered", "join merged"] {
        let lab = Lab::new();
        let b = lab.dirs(3);
        std::fs::create_dir_all(b[2].join("d/new")).unwrap();
        for (n, name) in ["top", "d/inner", "d/new/deep"].iter().enumerate() {
            std::fs::write(b[2].join(name), pattern(n as u64, 50_000)).unwrap();
        }
        let mount = dying(&lab, &b[..2], point);
        std::fs::create_dir(mount.path("d")).unwrap();
        std::fs::write(mount.path("there"), "x").unwrap();
        let all = ["top", "d/inner", "d/new", "d/new/deep"];
        for name in all {
            assert_eq!(sys::lstat(mount.path(name)).map(drop), Err(Errno::ENOENT));
        }
        assert_eq!(names(&mount.path("d")).len(), 0);
        over(&mount, "add", &[text(&b[2])]);
        becomes(&mount, &[(0, &b[0], "rw"), (1, &b[1], "rw"), (2, &b[2], "rw")]);
        // The kernel hears of it a moment later.
        let deadline = Instant::now() + ns::HANG;
        let there = || all.iter().all(|name| sys::lstat(mount.path(name)).is_ok());
        while !there() || names(&mount.path("d")).len() != 2 {
            assert!(Instant::now() < deadline, "{point}: {:?}", names(&mount.path("d")));
        }
        for (n, name) in ["top", "d/inner", "d/new/deep"].iter().enumerate() {
            check(&mount.path(name), n as u64);
        }
        kill(&mount);
        assert_eq!(set(&mount).len(), 3, "{point}");
        finished_on(mount, &b);
    }
}

#[test]
fn one_leaves_whenever_the_daemon_dies() {
    let points = ["part recorded", "part expelled", "part swept", "set left before", "set left after"];
    for point in points {
        for force in [false, true] {
            let lab = Lab::new();
            let volumes = [lab.volume(FsKind::Ext4, 64), lab.volume(FsKind::Ext4, 64)];
            let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
            let mount = dying(&lab, &b, point);
            std::fs::create_dir(mount.path("d")).unwrap();
            for rank in 0..2 {
                std::fs::write(mount.path("d").join(ranked(rank, 1)), pattern(rank as u64, 50_000)).unwrap();
            }
            assert_eq!(names(&mount.path("d")).len(), 2);
            let stays = sys::stat(mount.path("d").join(ranked(0, 1))).unwrap().st_ino;
            let words: &[&str] = if force { &["1", "--force", "--yes"] } else { &["1"] };
            if !force {
                backing(&mount, "drain", &["1"]).code(0);
            }
            over(&mount, "remove", words);
            becomes(&mount, &[(0, &b[0], "rw")]);
            let left = names(&mount.path("d"));
            assert_eq!(left.len(), if force { 1 } else { 2 }, "{point}: {left:?}");
            check(&mount.path("d").join(ranked(0, 1)), 0);
            assert_eq!(sys::stat(mount.path("d").join(ranked(0, 1))).unwrap().st_ino, stays);
            let gone = sys::stat(mount.path("d").join(ranked(1, 1))).map(drop);
            assert_eq!(gone, if force { Err(Errno::ENOENT) } else { Ok(()) }, "{point}");
            // Nobody holds on to the drive, not even who keeps its lock.
            let deadline = Instant::now() + ns::HANG;
            while nix::mount::umount(&volumes[1]).is_err() {
                assert!(Instant::now() < deadline, "{point}: the drive is in use");
            }
            kill(&mount);
            assert_eq!(set(&mount), expected(&[(0, &b[0], "rw")]), "{point}");
        }
    }
}

#[test]
fn a_state_is_the_old_one_or_the_new_one() {
    for (point, then) in [("set state before", "rw"), ("set state after", "ro")] {
        let lab = Lab::new();
        let b = lab.dirs(2);
        let mount = dying(&lab, &b, point);
        over(&mount, "set", &["1", "ro"]);
        assert_eq!(set(&mount), expected(&[(0, &b[0], "rw"), (1, &b[1], then)]), "{point}");
    }
    // A drain is on its drive first.
    for point in ["set state before", "set state after"] {
        let lab = Lab::new();
        let b = lab.dirs(2);
        let mount = dying(&lab, &b, point);
        std::fs::write(mount.path(ranked(1, 1)), pattern(1, 50_000)).unwrap();
        over(&mount, "drain", &["1"]);
        let deadline = Instant::now() + ns::HANG;
        while mount.status()["job"]["state"] != "done" {
            assert!(
                Instant::now() < deadline,
                "{point}: the drain doesn't go on: {:#}",
                mount.status()["job"]
            );
        }
        assert_eq!(mount.holder(ranked(1, 1)), 0);
        assert_eq!(set(&mount), expected(&[(0, &b[0], "rw"), (1, &b[1], "draining")]));
    }
}

#[test]
fn a_file_that_moved_as_the_daemon_died_is_found_by_its_name() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    // Killed after the copy has its name, and before the kernel hears of it.
    let mount = dying(&lab, &b, "after-rename");
    let path = mount.path(ranked(1, 1));
    std::fs::write(&path, pattern(1, 50_000)).unwrap();
    let known = sys::stat(&path).unwrap().st_ino;
    over(&mount, "drain", &["1"]);
    // The first call after that: the kernel goes by the file that was.
    assert_eq!(sys::link(&path, mount.path("linked")), Ok(()));
    let now = sys::stat(&path).unwrap();
    assert!(now.st_ino != known && now.st_nlink == 2, "another file by now, with both names");
    check(&mount.path("linked"), 1);
}

fn changes_under_load(mode: Passthrough) {
    let lab = Lab::new();
    let b = lab.dirs(4);
    let mount = lab.mount(&b[..3]).passthrough(mode).arg("--placement").arg("hash").supervised().start();
    under_load(&mount, 0, |_, going| {
        let mut round = 0;
        let kills = || {
            for _ in 0..2 {
                kill(&mount);
            }
        };
        while going() && round < 3 {
            round += 1;
            backing(&mount, "add", &[text(&b[3])]).code(0);
            kills();
            backing(&mount, "set", &["0", "no-create"]).code(0);
            kills();
            // Killed while it moves files; it goes on by itself.
            backing(&mount, "drain", &["3", "--detach"]).code(0);
            kills();
            backing(&mount, "set", &["0", "rw"]).code(0);
            let deadline = Instant::now() + ns::HANG;
            // Until nothing is on it for long enough; files are open, and come and go, all the time.
            while backing(&mount, "remove", &["3"]).status.code() != Some(0) {
                assert!(going() && Instant::now() < deadline, "it isn't drained:\n{}", mount.story());
            }
            kills();
            assert_eq!(set(&mount), expected(&[(0, &b[0], "rw"), (1, &b[1], "rw"), (2, &b[2], "rw")]));
        }
    });
    assert_eq!(mount.status()["index"]["shadows"], 0, "no file is there twice");
    finished_on(mount, &b);
}

#[test]
fn changes_under_load_passed_through() {
    changes_under_load(Passthrough::Auto);
}

#[test]
fn changes_under_load_through_the_daemon() {
    changes_under_load(Passthrough::Off);
}

#[test]
fn what_was_agreed_with_the_kernel_outlives_the_backing_that_it_was_for() {
    let lab = Lab::new();
    let dirs = ["lower", "upper", "work", "over"].map(|name| lab.dir(name));
    let [lower, upper, work, over] = &dirs;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    run(std::process::Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(over));
    let b = [lab.dir("backing0"), over.join("kv")];
    let mount = lab.mount(&b).supervised().start();
    let on = |mount: &Mount| mount.status()["passthrough"]["on"].clone();
    let before = on(&mount);
    std::fs::write(mount.path(ranked(0, 1)), pattern(0, 50_000)).unwrap();
    backing(&mount, "remove", &["1"]).code(0);
    kill(&mount);
    assert_eq!(on(&mount), before);
    check(&mount.path(ranked(0, 1)), 0);
    run(std::process::Command::new("umount").arg(over));
}

#[test]
fn no_other_mount_takes_a_backing_meanwhile() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).supervised().start();
    let other = lab.dir("other");
    let list = crate::common::lab::list(&b);
    let words = ["mount".as_ref(), other.as_os_str(), "-f".as_ref(), "--backing".as_ref(), list.as_ref()];
    // The parent can't start another while it's stopped.
    mount.signal(libc::SIGSTOP);
    let (before, pid) = daemon(&mount);
    super::shoot(pid);
    let gone =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    while !gone() {
        std::thread::yield_now();
    }
    kvfs(words).fault(18, &["another kvfs mount is using it"]);
    mount.signal(libc::SIGCONT);
    next(&mount, before);
    kvfs(words).fault(18, &["another kvfs mount is using it"]);
    // Once it has ended the next can have them at once.
    let mount = mount.restart();
    assert_eq!(daemon(&mount).0, 1);
}

#[test]
fn a_drive_that_is_not_mounted_any_more_is_not_served_empty() {
    let lab = Lab::new();
    let volume = lab.volume(FsKind::Ext4, 64);
    let b = [lab.dir("backing0"), volume.clone()];
    let mount = lab.mount(&b).supervised().start();
    std::fs::write(mount.path(ranked(1, 1)), pattern(1, 50_000)).unwrap();
    let (before, pid) = daemon(&mount);
    run(std::process::Command::new("umount").arg("--lazy").arg(&volume));
    super::shoot(pid);
    next(&mount, before);
    assert!(sys::stat(mount.path(ranked(1, 1))).is_err(), "its drive is away");
    assert!(std::fs::read_dir(&volume).unwrap().next().is_none(), "nothing is made there");
    run(std::process::Command::new("mount").args(["-o", "loop"]).arg(lab.path("vol0.img")).arg(&volume));
    backing(&mount, "set", &["1", "rw"]).code(0);
    // And the next daemon has it, too.
    kill(&mount);
    check(&mount.path(ranked(1, 1)), 1);
}
