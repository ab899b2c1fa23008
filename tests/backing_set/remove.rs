//! A backing leaves a mount that is in use.

use super::{backing, check, drained, files, put, state, text};
use crate::common::lab::{names, run};
use crate::common::{Errno, FsKind, Lab, Passthrough, ranked, sys, tree};
use std::process::Command;

#[test]
fn after_a_drain_nothing_disappears_and_the_drive_can_be_unmounted() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Xfs, 512)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = lab.mount(&b).passthrough(mode).start();
        for n in 0..20 {
            put(&mount.path(format!("d{}/{}", n % 2, ranked(n % 2, n))), n as u64, 200_000);
            check(&mount.path(format!("d{}/{}", n % 2, ranked(n % 2, n))), n as u64, 200_000);
        }
        // Directories, among them some that are on one backing alone.
        for n in 0..10 {
            std::fs::create_dir_all(mount.path(format!("empty{n}/inner"))).unwrap();
        }
        backing(&mount, "remove", &[text(&b[1])]).fault(52, &["10 files", "drain", text(&b[1])]);
        // Who only points at files keeps the kernel from forgetting them: one that is moved, one that is removed.
        let pointed: Vec<_> = [format!("d1/{}", ranked(1, 1)), ranked(1, 77)]
            .iter()
            .map(|name| {
                put(&mount.path(name), 1, 200_000);
                sys::open(mount.path(name), libc::O_PATH, 0).unwrap()
            })
            .collect();
        sys::unlink(mount.path(ranked(1, 77))).unwrap();
        let before = tree::snapshot(mount.point());
        drained(&mount, &b[1]);
        let said = backing(&mount, "remove", &[text(&b[1])]).code(0).stdout;
        assert!(said.contains("can be unmounted"), "{said}");
        run(Command::new("umount").arg(&volumes[1]));
        drop(pointed);
        assert_eq!(tree::snapshot(mount.point()), before);
        backing(&mount, "remove", &[text(&b[0])]).fault(52, &["last backing"]);
        // The mount goes on as one of a single backing.
        put(&mount.path(ranked(1, 99)), 99, 1000);
        assert_eq!(mount.status()["backings"].as_array().unwrap().len(), 1);
        mount.stop();
        let again = lab.mount(&b[..1]).start();
        sys::unlink(again.path(ranked(1, 99))).unwrap();
        assert_eq!(tree::snapshot(again.point()), before);
    }
}

#[test]
fn by_force_its_files_disappear_and_older_copies_appear() {
    // With a lookup that asks the backings, and without.
    for option in ["--min-free=1M", "--exclusive"] {
        by_force(option);
    }
}

fn by_force(option: &str) {
    let lab = Lab::new();
    let b = lab.dirs(3);
    for (n, at) in [(0, "oldest"), (1, "older"), (2, "newest")] {
        sys::tick();
        std::fs::write(b[n].join("x"), at).unwrap();
    }
    put(&b[0].join("kept"), 5, 100);
    put(&b[2].join("only/there/file"), 6, 100);
    put(&b[2].join("gone"), 7, 100);
    let mount = lab.mount(&b).arg(option).start();
    assert_eq!(std::fs::read(mount.path("x")).unwrap(), b"newest");
    check(&mount.path("only/there/file"), 6, 100);
    check(&mount.path("gone"), 7, 100);
    assert_eq!(names(mount.point()), ["gone", "kept", "only", "x"]);
    // It's asked for, and there's no terminal.
    backing(&mount, "remove", &["2", "--force"]).code(52);
    assert_eq!(names(mount.point()).len(), 4);
    let said = backing(&mount, "remove", &["2", "--force", "--yes"]).code(0);
    assert!(
        said.stderr.contains("2 files")
            && said.stderr.contains("2 directories")
            && said.stderr.contains("of 1 files"),
        "{}",
        said.stderr
    );
    assert_eq!(std::fs::read(mount.path("x")).unwrap(), b"older", "the newest that is left");
    assert_eq!(names(mount.point()), ["kept", "x"]);
    for gone in ["gone", "only", "only/there", "only/there/file"] {
        assert_eq!(sys::lstat(mount.path(gone)).map(drop), Err(Errno::ENOENT), "{gone}");
    }
    let counts = mount.status()["index"].clone();
    assert_eq!((&counts["files"], &counts["dirs"], &counts["shadows"]), (&2.into(), &1.into(), &1.into()));
    // All is on the drive still, and comes back with it.
    check(&b[2].join("only/there/file"), 6, 100);
    backing(&mount, "add", &[text(&b[2])]).code(0);
    assert_eq!(names(mount.point()), ["gone", "kept", "only", "x"]);
    check(&mount.path("only/there/file"), 6, 100);
    assert_eq!(std::fs::read(mount.path("x")).unwrap(), b"newest");
}

#[test]
fn files_that_are_open_go_on_and_the_drive_waits_for_them() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Xfs, 512)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = lab.mount(&b).passthrough(mode).start();
        put(&mount.path(ranked(1, 1)), 1, 100_000);
        put(&mount.path(ranked(1, 2)), 2, 100_000);
        check(&mount.path(ranked(1, 2)), 2, 100_000);
        let open = sys::open(mount.path(ranked(1, 1)), libc::O_RDWR, 0).unwrap();
        let said = backing(&mount, "remove", &[text(&b[1]), "--force", "--yes"]).code(0);
        assert!(said.stderr.contains("1 files of it are open"), "{}", said.stderr);
        assert!(said.stdout.contains("when they're closed"), "{}", said.stdout);
        assert_eq!(sys::lstat(mount.path(ranked(1, 1))).map(drop), Err(Errno::ENOENT));
        sys::pwrite(&open, b"written after", 50_000).unwrap();
        assert_eq!(sys::pread(&open, 13, 50_000).unwrap(), b"written after");
        assert_eq!(sys::fstat(&open).unwrap().st_size, 100_000);
        sys::ftruncate(&open, 60_000).unwrap();
        sys::fsync(&open).unwrap();
        assert!(!Command::new("umount").arg(&volumes[1]).output().unwrap().status.success(), "it's in use");
        drop(open);
        // The release comes to the daemon a moment after the close.
        while mount.status()["open_files"] != 0 {
            std::thread::yield_now();
        }
        let deadline = std::time::Instant::now() + crate::common::ns::HANG;
        while !Command::new("umount").arg(&volumes[1]).output().unwrap().status.success() {
            assert!(std::time::Instant::now() < deadline, "the drive stays in use");
        }
        run(Command::new("mount").args(["-o", "loop"]).arg(lab.path("vol1.img")).arg(&volumes[1]));
        assert_eq!(std::fs::read(b[1].join(ranked(1, 1))).unwrap().len(), 60_000);
    }
}

#[test]
fn files_that_appeared_on_a_drained_drive_keep_it() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    put(&mount.path(ranked(1, 1)), 1, 100);
    drained(&mount, &b[1]);
    put(&b[1].join("by/hand"), 2, 100);
    backing(&mount, "remove", &[text(&b[1])]).fault(53, &["1 names", "--force"]);
    check(&mount.path("by/hand"), 2, 100);
    backing(&mount, "remove", &[text(&b[1])]).fault(52, &["1 files"]);
    drained(&mount, &b[1]);
    backing(&mount, "remove", &[text(&b[1])]).code(0);
    check(&mount.path("by/hand"), 2, 100);
}

#[test]
fn a_dead_drive_can_be_removed() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Xfs, 512)];
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b).start();
    for n in 0..10 {
        put(&mount.path(format!("d/{}", ranked(n % 2, n))), n as u64, 10_000);
    }
    sys::kill_device(&volumes[1]);
    backing(&mount, "remove", &[text(&b[1]), "--force", "--yes"]).code(0);
    assert_eq!(names(&mount.path("d")).len(), 5);
    for n in (0..10).step_by(2) {
        check(&mount.path(format!("d/{}", ranked(0, n))), n as u64, 10_000);
    }
    run(Command::new("umount").arg(&volumes[1]));
    put(&mount.path(format!("d/{}", ranked(1, 50))), 50, 100);
}

#[test]
fn read_only_and_no_create() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    let name = |n: usize| mount.path(format!("d/{}", ranked(0, n)));
    for n in 0..6 {
        put(&name(n), n as u64, 1000);
    }
    put(&mount.path(format!("d/{}", ranked(1, 50))), 50, 1000);
    let open = sys::open(name(0), libc::O_RDWR, 0).unwrap();
    let said = backing(&mount, "set", &[text(&b[0]), "ro"]).code(0).stdout;
    assert!(said.contains("1 files that are open for writing go on"), "{said}");
    assert_eq!(state(&mount, &b[0])["state"], "ro");
    sys::pwrite(&open, b"goes on", 0).unwrap();
    check(&name(1), 1, 1000);
    let refused = |what: &str, result: crate::common::R<()>| assert_eq!(result, Err(Errno::EROFS), "{what}");
    refused("open to write", sys::open(name(1), libc::O_WRONLY, 0).map(drop));
    refused("O_TRUNC", sys::open(name(1), libc::O_RDONLY | libc::O_TRUNC, 0).map(drop));
    refused("truncate", sys::truncate(name(1), 5));
    refused("chmod", sys::chmod(name(1), 0o600));
    refused("utimens", sys::utimens(name(1), (1, 1), (1, 1), 0));
    refused("setxattr", sys::setxattr(name(1), "user.x", b"1", 0));
    refused("unlink", sys::unlink(name(1)));
    refused("rename", sys::rename(name(1), mount.path("elsewhere")));
    refused("rename over", sys::rename(mount.path(format!("d/{}", ranked(1, 50))), name(1)));
    refused("link", sys::link(name(1), mount.path("linked")));
    refused("rename of the directory", sys::rename(mount.path("d"), mount.path("e")));
    refused("chmod of the directory", sys::chmod(mount.path("d"), 0o700));
    std::fs::create_dir(mount.path("new")).unwrap();
    assert_eq!(mount.holders("new"), [1]);
    put(&name(100), 100, 100);
    assert_eq!(mount.holder(format!("d/{}", ranked(0, 100))), 1, "new files go elsewhere");
    check(&name(1), 1, 1000);
    // Nothing was written for the refusals.
    assert!(!b[0].join("linked").exists() && b[0].join(format!("d/{}", ranked(0, 1))).exists());

    backing(&mount, "set", &["0", "no-create"]).code(0);
    sys::chmod(name(1), 0o600).unwrap();
    std::fs::write(name(2), "changed").unwrap();
    sys::rename(name(3), mount.path("d/renamed")).unwrap();
    assert_eq!(mount.holder("d/renamed"), 0);
    sys::unlink(name(4)).unwrap();
    put(&name(101), 101, 100);
    assert_eq!(mount.holder(format!("d/{}", ranked(0, 101))), 1);
    backing(&mount, "set", &["0", "rw"]).code(0);
    put(&name(102), 102, 100);
    assert_eq!(mount.holder(format!("d/{}", ranked(0, 102))), 0);
    backing(&mount, "set", &["0", "draining"]).fault(41, &["rw, no-create and ro"]);
    // A mount begins as --backing says.
    backing(&mount, "set", &["0", "ro"]).code(0);
    drop(open);
    let again = mount.restart();
    assert_eq!(state(&again, &b[0])["state"], "rw");
    let listed = backing(&again, "list", &[]).code(0).stdout;
    assert!(b.iter().all(|b| listed.contains(text(b))), "{listed}");
    assert_eq!(files(&b[0]).len(), 6);
}
