//! A backing joins a mount that is in use.

use super::{backing, check, drained, files, put, state, text};
use crate::common::lab::names;
use crate::common::{Errno, FsKind, Lab, Passthrough, ranked, sys, tree};

#[test]
fn its_files_are_there_and_new_ones_go_there() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let b = lab.dirs(3);
        let mount = lab.mount(&b[..2]).passthrough(mode).arg("--placement").arg("hash").start();
        for n in 0..40 {
            put(&mount.path(format!("d/{n}")), n, 1000);
        }
        // What is there before, in directories that are known and in new ones.
        put(&b[2].join("d/brought"), 100, 5000);
        put(&b[2].join("new/deep/brought"), 101, 5000);
        let placed: Vec<_> = (0..40).map(|n| mount.holder(format!("d/{n}"))).collect();
        let listed = names(&mount.path("d"));
        assert!(!listed.contains(&"brought".to_owned()));
        let said = backing(&mount, "add", &[text(&b[2])]).code(0);
        assert!(
            said.stdout.contains("2 files") && said.stdout.contains("for the next mount"),
            "{}",
            said.stdout
        );
        assert_eq!(names(&mount.path("d")).len(), 41, "the kernel's listing is a new one");
        check(&mount.path("d/brought"), 100, 5000);
        check(&mount.path("new/deep/brought"), 101, 5000);
        // No file moves, and new ones go there too.
        assert_eq!((0..40).map(|n| mount.holder(format!("d/{n}"))).collect::<Vec<_>>(), placed);
        for n in 100..200 {
            put(&mount.path(format!("d/{n}")), n, 100);
        }
        let there = files(&b[2]).len();
        assert!((10..80).contains(&there), "{there} of 100 new files");
        let now = state(&mount, &b[2]);
        assert_eq!(now["state"], "rw");
        assert_eq!(now["passthrough"]["on"], state(&mount, &b[0])["passthrough"]["on"]);
        let before = tree::snapshot(mount.point());
        mount.stop();
        let again = lab.mount(&b).start();
        assert_eq!(tree::snapshot(again.point()), before, "a mount with all three shows the same");
    }
}

#[test]
fn what_the_kernel_remembers_as_absent_appears() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b[..1]).arg("--exclusive").start();
    std::fs::create_dir(mount.path("d")).unwrap();
    put(&b[1].join("top"), 1, 100);
    put(&b[1].join("d/inner"), 2, 100);
    for name in ["top", "d/inner"] {
        assert_eq!(sys::lstat(mount.path(name)).map(drop), Err(Errno::ENOENT));
    }
    let lookups = mount.op("lookup");
    assert_eq!(sys::lstat(mount.path("top")).map(drop), Err(Errno::ENOENT));
    assert_eq!(mount.op("lookup"), lookups, "the kernel remembers that it's absent");
    backing(&mount, "add", &[text(&b[1])]).code(0);
    check(&mount.path("top"), 1, 100);
    check(&mount.path("d/inner"), 2, 100);
}

#[test]
fn of_duplicates_the_newest_is_the_file() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[1].join("d/older there"), 1, 100);
    sys::tick();
    let mount = lab.mount(&b[..1]).start();
    put(&mount.path("d/older there"), 11, 200);
    for n in 0..3 {
        put(&mount.path(format!("d/newer{n}")), 20 + n, 300);
    }
    sys::tick();
    for n in 0..3 {
        put(&b[1].join(format!("d/newer{n}")), n, 400);
    }
    // The kernel knows one of them, one is open.
    check(&mount.path("d/newer1"), 21, 300);
    let open = sys::open(mount.path("d/newer2"), libc::O_RDWR, 0).unwrap();
    let said = backing(&mount, "add", &[text(&b[1])]).code(0);
    assert!(said.stdout.contains("4 paths") && said.stdout.contains("1 newer"), "{}", said.stdout);
    check(&mount.path("d/older there"), 11, 200);
    check(&mount.path("d/newer0"), 0, 400);
    check(&mount.path("d/newer1"), 1, 400);
    check(&mount.path("d/newer2"), 22, 300);
    sys::pwrite(&open, b"x", 0).unwrap();
    assert_eq!(mount.status()["index"]["shadows"], 4);
    for n in 0..3 {
        sys::unlink(mount.path(format!("d/newer{n}"))).unwrap();
    }
    assert_eq!(files(&b[0]).len() + files(&b[1]).len(), 2, "all copies of what was removed have gone");
}

#[test]
fn it_is_refused_as_at_the_mount() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b[..1]).start();
    let refused = |dir: &str, naming: &[&str]| {
        backing(&mount, "add", &[dir]).fault(52, naming);
        assert_eq!(mount.status()["backings"].as_array().unwrap().len(), 1);
    };
    refused(text(&b[0]), &["the same directory as", text(&b[0])]);
    refused(text(&b[0].join("inner")), &["lies inside"]);
    assert!(!b[0].join("inner").exists());
    refused(text(&mount.path("inside")), &["lies below the mount point"]);
    std::fs::write(lab.path("file"), "").unwrap();
    refused(text(&lab.path("file")), &["not a directory"]);
    std::fs::copy(b[0].join(".kvfs-backing"), b[1].join(".kvfs-backing")).unwrap();
    refused(text(&b[1]), &["same identity", text(&b[0]), text(&b[1])]);
    std::fs::remove_file(b[1].join(".kvfs-backing")).unwrap();
    backing(&mount, "add", &[&format!("{}:share", text(&b[1]))]).fault(41, &["share"]);
    let second = lab.dir("second");
    let other = lab.mount(&b[1..]).at(second).start();
    refused(text(&b[1]), &["another kvfs mount"]);
    drop(other);
    // A directory that isn't there is made, and is its owner's.
    let fresh = lab.path("fresh/deep");
    backing(&mount, "add", &[&format!("{}:min-free=3M:no-create", text(&fresh))]).code(0);
    assert_eq!(sys::lstat(&fresh).unwrap().st_mode & 0o777, 0o755);
    let now = state(&mount, &fresh);
    assert_eq!((&now["state"], &now["min_free"]), (&"no-create".into(), &(3u64 << 20).into()));
}

#[test]
fn a_backing_leaves_and_comes_back() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    for n in 0..30 {
        put(&mount.path(format!("d/{}", ranked(n % 3, n))), n as u64, 2000);
    }
    for round in 0..3 {
        drained(&mount, &b[1]);
        backing(&mount, "remove", &[text(&b[1])]).code(0);
        assert_eq!(names(&b[1]), Vec::<String>::new(), "not even directories are left");
        assert_eq!(mount.status()["backings"].as_array().unwrap().len(), 2);
        put(&mount.path(format!("d/{}", ranked(1, 100 + round))), 7, 100);
        let said = backing(&mount, "add", &[text(&b[1])]).code(0).stdout;
        assert!(said.contains("backing 1 now"), "the same slot: {said}");
        put(&mount.path(format!("d/{}", ranked(1, 200 + round))), 7, 100);
        assert_eq!(mount.holder(format!("d/{}", ranked(1, 200 + round))), 1);
    }
    for n in 0..30 {
        check(&mount.path(format!("d/{}", ranked(n % 3, n))), n as u64, 2000);
    }
    let before = tree::snapshot(mount.point());
    assert_eq!(tree::snapshot(mount.restart().point()), before);
}

#[test]
fn a_real_drive_joins() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Ext4, 128)];
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b[..1]).start();
    let total = || {
        let st = sys::statvfs(mount.point()).unwrap();
        st.f_blocks * st.f_frsize
    };
    let before = total();
    backing(&mount, "add", &[text(&b[1])]).code(0);
    assert!(total() > before + (64 << 20), "statfs counts it");
    put(&mount.path(ranked(1, 1)), 1, 1 << 20);
    assert_eq!(super::files(&b[1]).len(), 1);
    check(&mount.path(ranked(1, 1)), 1, 1 << 20);
}
