//! A write that can't fit fails at CREATE, before a byte is accepted; a full backing is passed over.

use crate::common::lab::names;
use crate::common::{Errno, FsKind, Lab, pattern, ranked, sys};

const CHUNK: usize = 1 << 20;
/// Far more than can be written between two looks at the space, which the daemon keeps for a moment.
const RESERVE: u64 = 32 << 20;

/// Creates and fills one chunk; the error is CREATE's. A write that fails or falls short fails the test.
fn store(path: &std::path::Path, seed: u64) -> Result<(), Errno> {
    let fd = sys::open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644)?;
    assert_eq!(sys::write(&fd, &pattern(seed, CHUNK)), Ok(CHUNK), "an accepted file must take its data");
    assert_eq!(sys::fsync(&fd), Ok(()));
    Ok(())
}

fn free(path: &std::path::Path) -> u64 {
    let st = sys::statvfs(path).unwrap();
    st.f_bavail * st.f_frsize
}

#[test]
fn a_full_backing_is_passed_over_and_a_full_set_refuses_at_create() {
    for kind in [FsKind::Ext4, FsKind::Tmpfs] {
        let lab = Lab::new();
        let volumes = [lab.volume(kind, 128), lab.volume(kind, 128)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = lab.mount(&b).arg("--min-free").arg(RESERVE.to_string()).start();
        // Every name asks for backing 0; more than both volumes together can hold.
        let mut stored = 0;
        let refused = loop {
            assert!(stored < 300, "{kind:?}: 300 MiB went into two volumes of 128");
            match store(&mount.path(ranked(0, stored)), stored as u64) {
                Ok(()) => stored += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(refused, Errno::ENOSPC);
        assert!(!mount.path(ranked(0, stored)).exists(), "a refused file is not there, not even empty");
        let on = [names(&b[0]).len(), names(&b[1]).len()];
        assert_eq!(on[0] + on[1], stored);
        assert!(on[0] > 60 && on[1] > 60, "first the chosen backing, then the other: {on:?}");
        for v in &volumes {
            // One chunk may be accepted while it still looks as if it fits.
            assert!(
                free(v) + (CHUNK as u64) * 2 >= RESERVE,
                "{kind:?}: the reserve is kept: {} bytes left",
                free(v)
            );
        }
        for i in 0..stored {
            let data = std::fs::read(mount.path(ranked(0, i))).unwrap();
            assert!(data == pattern(i as u64, CHUNK), "chunk {i} is whole");
        }
        // Full is no reason to refuse what takes no space, and room is found again.
        sys::rename(mount.path(ranked(0, 0)), mount.path(ranked(0, 1))).unwrap();
        for i in 1..6 {
            sys::unlink(mount.path(ranked(0, i))).unwrap();
        }
        assert_eq!(store(&mount.path("after room was made"), 1), Ok(()));
    }
}

#[test]
fn a_backing_filled_by_somebody_else_is_passed_over() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Ext4, 128), lab.volume(FsKind::Ext4, 128)];
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b).arg("--min-free").arg("24M").start();
    store(&mount.path(ranked(0, 0)), 0).unwrap();
    assert_eq!(mount.holder(ranked(0, 0)), 0);
    let filler = sys::create(volumes[0].join("filler")).unwrap();
    sys::fallocate(&filler, 0, 0, free(&volumes[0]) as i64 - (20 << 20)).unwrap();
    // The daemon has to notice before the disk is full: 20 of the 24 MiB it must keep are left.
    for i in 1..40 {
        store(&mount.path(ranked(0, i)), i as u64).unwrap();
    }
    assert_eq!(mount.holder(ranked(0, 39)), 1);
}

#[test]
fn percent_of_the_backing() {
    let lab = Lab::new();
    let volume = lab.volume(FsKind::Ext4, 128);
    let mount = lab.mount(&[volume.join("kv")]).arg("--min-free").arg("50%").start();
    let mut stored = 0;
    while stored < 128 && store(&mount.path(ranked(0, stored)), 1).is_ok() {
        stored += 1;
    }
    assert!((48..=68).contains(&stored), "half of 128 MiB holds about 60 chunks, not {stored}");
}
