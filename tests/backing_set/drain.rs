//! Draining: every file leaves the backing, as it was, and clients see nothing of it.

use std::os::unix::fs::MetadataExt;

use super::{backing, check, drained, ended, files, put, state, text, until};
use crate::common::{Errno, FsKind, Lab, Passthrough, kvfs, pattern, ranked, sys, tree};

#[test]
fn all_files_leave_and_stay_readable() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let b = lab.dirs(3);
        let mount = lab.mount(&b).passthrough(mode).start();
        for i in 0..60 {
            put(&mount.path(format!("d{}/deep/{}", i % 4, ranked(i % 3, i))), i as u64, 3000 * i);
        }
        put(&mount.path("large"), 77, 20 << 20);
        std::fs::create_dir_all(mount.path("empty/inside")).unwrap();
        let before = tree::snapshot(mount.point());
        let on_first = files(&b[0]).len();
        assert!(on_first > 15, "{on_first} files to move");
        let said = drained(&mount, &b[0]);
        assert!(said.stdout.contains("no file is left"), "{}", said.stdout);
        assert_eq!(files(&b[0]), Vec::<std::path::PathBuf>::new());
        assert_eq!(tree::snapshot(mount.point()), before);
        let now = state(&mount, &b[0]);
        assert_eq!((&now["state"], &now["files"]), (&"draining".into(), &0.into()));
        let job = mount.status()["job"].clone();
        assert_eq!(
            (&job["state"], job["moved"].as_u64()),
            (&"done".into(), Some(on_first as u64)),
            "{job:#}"
        );
        // New files go elsewhere, now and after a restart.
        std::fs::write(mount.path(ranked(0, 1000)), "new").unwrap();
        assert_ne!(mount.holder(ranked(0, 1000)), 0);
        let again = mount.restart();
        ended(&again, "done");
        assert_eq!(state(&again, &b[0])["state"], "draining");
        std::fs::write(again.path(ranked(0, 1001)), "new").unwrap();
        assert_ne!(again.holder(ranked(0, 1001)), 0);
        // Until the operator says otherwise.
        backing(&again, "set", &[text(&b[0]), "rw"]).code(0);
        std::fs::write(again.path(ranked(0, 1002)), "new").unwrap();
        assert_eq!(again.holder(ranked(0, 1002)), 0);
        let third = again.restart();
        assert_eq!(state(&third, &b[0])["state"], "rw");
        check(&third.path("large"), 77, 20 << 20);
    }
}

#[test]
fn a_file_moves_as_it_is() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume_with(FsKind::Ext4, 512, &["-b", "4096"])];
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b).start();
    let dir = mount.path("a/b/c/d/e");
    std::fs::create_dir_all(&dir).unwrap();
    let name = |n: usize| dir.join(ranked(0, n));
    std::fs::write(name(2), pattern(3, 5_000_001)).unwrap();
    sys::setxattr(name(2), "user.one", b"value", 0).unwrap();
    sys::setxattr(name(2), "user.two", &[7; 3000], 0).unwrap();
    sys::chown(name(2), 1234, 4321).unwrap();
    sys::chmod(name(2), 0o2741).unwrap();
    sys::utimens(name(2), (1_000_000, 111), (2_000_000, 222), 0).unwrap();
    std::fs::write(name(3), "").unwrap();
    sys::symlink("../some/where", name(4)).unwrap();
    sys::lchown(name(4), 77, 88).unwrap();
    sys::mknod(name(5), libc::S_IFIFO | 0o640, 0).unwrap();
    sys::mknod(name(6), libc::S_IFCHR | 0o600, libc::makedev(1, 3)).unwrap();
    sys::mknod(name(7), libc::S_IFSOCK | 0o755, 0).unwrap();
    // Last: a new file is expected to need as much room as those before it.
    let sparse = sys::create(name(1)).unwrap();
    sys::pwrite(&sparse, &pattern(1, 100_000), 0).unwrap();
    sys::pwrite(&sparse, &pattern(2, 100_000), 100 << 20).unwrap();
    sys::ftruncate(&sparse, 120 << 20).unwrap();
    drop(sparse);
    for n in 1..=7 {
        assert_eq!(mount.holder(dir.join(ranked(0, n)).strip_prefix(mount.point()).unwrap()), 0, "{n}");
    }
    let times = |n: usize| {
        let st = std::fs::symlink_metadata(name(n)).unwrap();
        (st.atime(), st.atime_nsec(), st.mtime(), st.mtime_nsec())
    };
    let (before, times_before) = (tree::snapshot(mount.point()), times(2));
    let blocks = std::fs::metadata(name(1)).unwrap().blocks();
    drained(&mount, &b[0]);
    assert_eq!(times(2), times_before);
    assert_eq!(tree::snapshot(mount.point()), before);
    let now = std::fs::metadata(name(1)).unwrap().blocks();
    assert!(now <= blocks + 64, "{blocks} blocks before, {now} after");
    for n in 1..=7 {
        assert_eq!(mount.holder(dir.join(ranked(0, n)).strip_prefix(mount.point()).unwrap()), 1, "{n}");
    }
    let placed = kvfs(["locate".as_ref(), name(2).as_os_str()]).code(0).stdout;
    assert!(placed.contains("moved here by a drain"), "{placed}");
    let again = mount.restart();
    assert_eq!(tree::snapshot(again.point()), before);
}

#[test]
fn files_that_are_open_are_waited_for() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    for n in 0..4 {
        put(&mount.path(ranked(0, n)), n as u64, 1 << 20);
    }
    let open = sys::open(mount.path(ranked(0, 0)), libc::O_RDWR, 0).unwrap();
    let mapped = sys::open(mount.path(ranked(0, 1)), libc::O_RDWR, 0).unwrap();
    let mut map =
        sys::Map::new(&mapped, 1 << 20, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED).unwrap();
    drop(mapped);
    backing(&mount, "drain", &[text(&b[0]), "--detach"]).code(0);
    until(&mount, "waiting for two", |job| job["left"] == 2 && job["moved"] == 2 && job["skipped"] == 2);
    // They are what they were, where they were, and can be written.
    assert_eq!(mount.holder(ranked(0, 0)), 0);
    sys::pwrite(&open, b"written", 4096).unwrap();
    map.put(8192, b"mapped");
    assert_eq!(sys::pread(&open, 7, 4096).unwrap(), b"written");
    drop(open);
    until(&mount, "waiting for one", |job| job["left"] == 1);
    assert_eq!(map.get(8192, 6), b"mapped");
    drop(map);
    ended(&mount, "done");
    let mut want = [pattern(0, 1 << 20), pattern(1, 1 << 20)];
    want[0][4096..4103].copy_from_slice(b"written");
    want[1][8192..8198].copy_from_slice(b"mapped");
    for (n, want) in want.iter().enumerate() {
        assert!(std::fs::read(mount.path(ranked(0, n))).unwrap() == *want, "file {n}");
        assert_eq!(mount.holder(ranked(0, n)), 1);
    }
}

#[test]
fn a_file_that_is_changed_while_it_is_copied_keeps_the_change() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let b = lab.dirs(2);
        let mount = lab.mount(&b).passthrough(mode).start();
        let name = mount.path(ranked(0, 0));
        put(&name, 1, 40 << 20);
        let mut want = pattern(1, 40 << 20);
        let mtime = std::fs::metadata(&name).unwrap();
        let times = ((mtime.atime(), mtime.atime_nsec()), (mtime.mtime(), mtime.mtime_nsec()));
        backing(&mount, "drain", &[text(&b[0]), "--bandwidth", "32M", "--detach"]).code(0);
        // Its beginning has been copied.
        until(&mount, "copying", |job| job["bytes"].as_u64() > Some(12 << 20));
        let fd = sys::open(&name, libc::O_WRONLY, 0).unwrap();
        sys::pwrite(&fd, b"changed", 1000).unwrap();
        drop(fd);
        sys::utimens(&name, times.0, times.1, 0).unwrap();
        sys::setxattr(&name, "user.late", b"1", 0).unwrap();
        want[1000..1007].copy_from_slice(b"changed");
        let job = ended(&mount, "done");
        assert!(job["bytes"].as_u64() > Some(44 << 20), "it was copied again: {job:#}");
        assert!(std::fs::read(&name).unwrap() == want, "{mode:?}: the change is lost");
        assert_eq!(sys::getxattr(&name, "user.late").unwrap(), b"1");
        assert_eq!(mount.holder(ranked(0, 0)), 1);
    }
}

#[test]
fn what_the_kernel_knew_of_a_moved_file_is_no_fault_to_its_clients() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let b = lab.dirs(2);
        let mount = lab.mount(&b).passthrough(mode).start();
        let name = |n: usize| mount.path(format!("d/{}", ranked(0, n)));
        for n in 0..8 {
            put(&name(n), n as u64, 10_000);
            // Everything is in the kernel's caches.
            check(&name(n), n as u64, 10_000);
            sys::lstat(name(n)).unwrap();
        }
        let inodes: Vec<u64> = (0..8).map(|n| sys::lstat(name(n)).unwrap().st_ino).collect();
        let listing = || {
            let mut all = crate::common::dir::Dir::open(mount.path("d")).unwrap().rest().unwrap();
            all.retain(|e| e.name != "." && e.name != "..");
            all
        };
        let listed = listing();
        assert_eq!(listed.len(), 8);
        drained(&mount, &b[0]);
        assert_ne!(
            sys::lstat(name(1)).unwrap().st_ino,
            inodes[1],
            "it's another inode, and the kernel knows"
        );
        for (before, now) in listed.iter().zip(listing()) {
            assert_eq!((&before.name, before.kind), (&now.name, now.kind));
            assert_eq!(
                now.ino,
                sys::lstat(mount.path("d").join(&now.name)).unwrap().st_ino,
                "listed and looked up"
            );
        }
        check(&name(0), 0, 10_000);
        sys::unlink(name(2)).unwrap();
        sys::rename(name(3), mount.path("d/renamed")).unwrap();
        sys::truncate(name(4), 10).unwrap();
        sys::chmod(name(5), 0o600).unwrap();
        sys::setxattr(name(6), "user.x", b"1", 0).unwrap();
        sys::link(name(7), mount.path("d/linked")).unwrap();
        check(&mount.path("d/linked"), 7, 10_000);
        check(&mount.path("d/renamed"), 3, 10_000);
        assert_eq!(sys::lstat(name(4)).unwrap().st_size, 10);
        assert_eq!(sys::lstat(name(2)).map(drop), Err(Errno::ENOENT));
        assert_eq!(super::files(&b[0]).len(), 0);
    }
}

#[test]
fn hard_links_stay_and_the_drain_says_so() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    put(&mount.path(ranked(0, 0)), 0, 1000);
    put(&mount.path(ranked(0, 1)), 1, 1000);
    sys::link(mount.path(ranked(0, 1)), mount.path("link")).unwrap();
    backing(&mount, "drain", &[text(&b[0])]).fault(53, &["hard links", text(&b[0])]);
    assert_eq!(mount.holder(ranked(0, 0)), 1);
    assert_eq!((mount.holder(ranked(0, 1)), mount.holder("link")), (0, 0));
    sys::unlink(mount.path("link")).unwrap();
    drained(&mount, &b[0]);
    check(&mount.path(ranked(0, 1)), 1, 1000);
}

#[test]
fn shadows_go_with_the_drain() {
    let lab = Lab::new();
    // With two, a file can only go where its older copy is.
    let b = lab.dirs(2);
    for (n, at) in [(0, "older"), (1, "newer")] {
        sys::tick();
        std::fs::write(b[n].join("x"), at).unwrap();
    }
    std::fs::write(b[1].join("y"), "older").unwrap();
    sys::tick();
    std::fs::write(b[0].join("y"), "newer").unwrap();
    let mount = lab.mount(&b).start();
    assert_eq!(mount.status()["index"]["shadows"], 2);
    drained(&mount, &b[0]);
    assert_eq!(files(&b[0]).len(), 0);
    assert_eq!(std::fs::read(mount.path("x")).unwrap(), b"newer");
    assert_eq!(std::fs::read(mount.path("y")).unwrap(), b"newer");
    let again = mount.restart();
    assert_eq!(std::fs::read(again.path("y")).unwrap(), b"newer", "no older copy comes back");
    sys::unlink(again.path("y")).unwrap();
    assert!(b.iter().all(|b| sys::lstat(b.join("y")).is_err()), "and none is left");
}

#[test]
fn one_job_at_a_time_and_it_can_be_called_off() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    for n in 0..20 {
        put(&mount.path(ranked(0, n)), n as u64, 1 << 20);
    }
    let [first, second] = [text(&b[0]), text(&b[1])];
    backing(&mount, "drain", &[first, "--bandwidth", "1M", "--detach"]).code(0);
    backing(&mount, "drain", &[second]).fault(52, &["a drain of", first]);
    kvfs(["rebalance", text(mount.point())]).fault(52, &["a drain of"]);
    backing(&mount, "remove", &[second]).fault(52, &["a drain of"]);
    assert!(b[0].join(".kvfs-job").exists());
    backing(&mount, "drain", &[first, "--cancel"]).code(0);
    ended(&mount, "cancelled");
    assert!(!b[0].join(".kvfs-job").exists());
    assert_eq!(state(&mount, &b[0])["state"], "rw");
    backing(&mount, "drain", &[second, "--cancel"]).fault(52, &[second, "not being drained"]);
    backing(&mount, "drain", &["/no/such"]).fault(52, &["/no/such", first]);
    backing(&mount, "drain", &[first, "--bandwidth", "fast"]).fault(41, &["fast"]);
    assert!(files(&b[0]).iter().all(|f| !f.to_string_lossy().contains(".kvfs-move")), "nothing half");
    for n in 0..20 {
        check(&mount.path(ranked(0, n)), n as u64, 1 << 20);
    }
    backing(&mount, "drain", &["1", "--detach"]).code(0);
    ended(&mount, "done");
    backing(&mount, "drain", &["0", "--detach"]).code(0);
    ended(&mount, "done");
    backing(&mount, "drain", &["2"]).fault(52, &["no other backing"]);
}

#[test]
fn the_bandwidth_is_kept() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    for n in 0..12 {
        put(&mount.path(ranked(0, n)), n as u64, 1 << 20);
    }
    backing(&mount, "drain", &[text(&b[0]), "--bandwidth", "4M"]).code(0);
    let job = mount.status()["job"].clone();
    let (bytes, seconds) = (job["bytes"].as_u64().unwrap(), job["since_s"].as_u64().unwrap());
    assert!(bytes >= 12 << 20, "{job:#}");
    // 12 MiB at 4 MiB/s, less a burst; never more, however slow the machine is.
    assert!(seconds >= 2, "{job:#}");
    assert!(job["rate"].as_u64().unwrap() <= 5 << 20, "{job:#}");
    assert_eq!(job["bandwidth"], 4 << 20);
}

#[test]
fn a_drive_that_fills_up_stops_the_drain_and_nothing_else() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Ext4, 128), lab.volume(FsKind::Ext4, 64)];
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b).arg("--min-free").arg("8M").start();
    for n in 0..80 {
        put(&mount.path(ranked(0, n)), n as u64, 1 << 20);
    }
    let on_first = files(&b[0]).len();
    backing(&mount, "drain", &[text(&b[0])]).fault(53, &["no other backing has room"]);
    assert_eq!(files(&b[0]).len() + files(&b[1]).len(), 80, "{on_first} were on the first");
    for n in 0..80 {
        check(&mount.path(ranked(0, n)), n as u64, 1 << 20);
        mount.holder(ranked(0, n));
    }
    // With room it goes on.
    for n in 0..60 {
        sys::unlink(mount.path(ranked(0, n))).unwrap();
    }
    drained(&mount, &b[0]);
    assert_eq!(files(&b[0]).len(), 0);
}

#[test]
fn a_drive_that_dies_stops_the_drain_and_nothing_is_half() {
    for dies in [0, 1] {
        let lab = Lab::new();
        let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Xfs, 512)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = lab.mount(&b).start();
        for n in 0..30 {
            put(&mount.path(ranked(0, n)), n as u64, 1 << 20);
        }
        // All is on the device: a shutdown loses what isn't.
        sys::fsync(&sys::open(mount.point(), libc::O_RDONLY, 0).unwrap()).unwrap();
        for n in 0..30 {
            sys::fsync(&sys::open(mount.path(ranked(0, n)), libc::O_RDONLY, 0).unwrap()).unwrap();
        }
        backing(&mount, "drain", &[text(&b[0]), "--bandwidth", "8M", "--detach"]).code(0);
        until(&mount, "in the midst", |job| job["moved"].as_u64() > Some(3));
        sys::kill_device(&volumes[dies]);
        let job = ended(&mount, "failed");
        let error = job["error"].as_str().unwrap();
        assert!(error.contains(text(&b[dies])) && error.contains("doesn't answer"), "{job:#}");
        // Those of the living drive can be read.
        let readable = (0..30).filter(|n| std::fs::read(mount.path(ranked(0, *n))).is_ok()).count();
        assert!(readable > 3, "{readable}");
        drop(mount);
        // Given new devices (a remount replays what was synced), everything is there once.
        for v in &volumes {
            crate::common::lab::run(std::process::Command::new("umount").arg(v));
        }
        for (i, v) in volumes.iter().enumerate() {
            let image = lab.path(&format!("vol{i}.img"));
            crate::common::lab::run(
                std::process::Command::new("mount").args(["-o", "loop"]).arg(image).arg(v),
            );
        }
        let again = lab.mount(&b).start();
        ended(&again, "done");
        for n in 0..30 {
            check(&again.path(ranked(0, n)), n as u64, 1 << 20);
            assert_eq!(again.holder(ranked(0, n)), 1);
        }
    }
}
