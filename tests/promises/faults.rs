//! When something fails: a handler that panics, a backing that dies.

use crate::common::{Errno, FsKind, Lab, ranked, sys};

#[cfg(feature = "fault-points")]
#[test]
fn a_panic_is_one_eio_and_the_mount_lives() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    std::fs::write(mount.path("f"), "before").unwrap();
    let count = || mount.story().lines().filter(|l| l.contains("panic")).count();
    let before = count();
    for n in 1..=10 {
        assert_eq!(sys::lstat(mount.path(".kvfs-fault-panic")).map(drop), Err(Errno::EIO));
        assert_eq!(mount.op("panics"), n);
    }
    mount.expect_panics(10);
    assert_eq!(count() - before, 10, "one line of log each:\n{}", mount.story());
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"before");
    // More panics than there are threads: each thread has survived its own.
    std::fs::write(mount.path("g"), "after").unwrap();
    sys::rename(mount.path("g"), mount.path("h")).unwrap();
    assert_eq!(crate::common::lab::names(mount.point()), ["f", "h"]);
}

#[test]
fn a_dead_backing_takes_only_its_own_files() {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let lab = Lab::new();
        let volumes = [lab.volume(kind, 512), lab.volume(kind, 512)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = lab.mount(&b).start();
        for rank in 0..2 {
            std::fs::write(mount.path(ranked(rank, 0)), vec![rank as u8; 100_000]).unwrap();
        }
        let open = sys::open(mount.path(ranked(0, 0)), libc::O_RDWR, 0).unwrap();
        sys::fsync(&open).unwrap();
        sys::kill_device(&volumes[0]);
        assert_eq!(sys::pwrite(&open, b"x", 0), Err(Errno::EIO), "{kind:?}: a file of the dead one");
        assert_eq!(std::fs::read(mount.path(ranked(1, 0))).unwrap(), vec![1; 100_000], "the other is served");
        std::fs::write(mount.path(ranked(1, 1)), "new").unwrap();
        // The one that dies may take a few tries to be noticed; then new files go elsewhere.
        let placed = (1..50).any(|i| std::fs::write(mount.path(ranked(0, i)), "elsewhere").is_ok());
        assert!(placed, "{kind:?}: new files for the dead backing go to another one");
        drop(open);
    }
}

#[test]
fn status_names_a_dead_backing() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Xfs, 512)];
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b).start();
    let state = |i: usize| mount.status()["backings"][i]["state"].clone();
    assert_eq!(state(0), state(1));
    sys::kill_device(&volumes[0]);
    // It may take a failed operation to notice.
    for i in 0..50 {
        let _ = std::fs::write(mount.path(ranked(0, i)), "x");
    }
    assert_ne!(state(0), state(1), "the dead one is not in the state of the other");
}
