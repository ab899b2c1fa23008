//! Directories in directories in directories, by names relative to the one above: as many as anybody likes.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, FsKind, Lab, R, sys};

fn mkdir_at(dir: &OwnedFd, name: &str) -> R<()> {
    sys::mkdir(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()), 0o777)
}

fn open_at(dir: &OwnedFd, name: &str) -> R<OwnedFd> {
    sys::open(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()), libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// As many directories, each in the one before, as can be made; the last, and how many they are.
fn chain(top: &OwnedFd, name: &str) -> (OwnedFd, usize, Errno) {
    let mut last = top.try_clone().unwrap();
    for depth in 0..5000 {
        match mkdir_at(&last, name) {
            Ok(()) => last = open_at(&last, name).unwrap(),
            Err(errno) => return (last, depth, errno),
        }
    }
    (last, 5000, Errno::UnknownErrno)
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "what is kept open is set by a fault point")]
fn no_depth_of_directories_brings_the_daemon_down() {
    let lab = Lab::new();
    // Not to be removed one by one.
    let volumes = [lab.volume(FsKind::Tmpfs, 512), lab.volume(FsKind::Tmpfs, 512)];
    let backings: Vec<_> = volumes.iter().map(|volume| volume.join("kv")).collect();
    // Next to no directory is kept open.
    let mount = lab.mount(&backings).env("KVFS_TEST_FILE_LIMIT", "1024").start();
    let user = mount.path("user");
    std::fs::create_dir(&user).unwrap();
    sys::chown(&user, NOBODY, NOBODY).unwrap();
    let deepest = as_user(NOBODY, NOBODY, || {
        let top = sys::open(&user, libc::O_PATH, 0).unwrap();
        let (mut deepest, made, errno) = chain(&top, "0");
        assert_eq!(errno, Errno::ENAMETOOLONG, "after {made}");
        assert!((900..1100).contains(&made), "{made}");
        // A chain is made, and what there is so far is moved to its end, again and again.
        for n in 1..30 {
            let (last, ..) = chain(&top, &n.to_string());
            let from = user.join((n - 1).to_string());
            let mut at = last;
            // Where nothing can be made any more, nothing can be moved to either.
            let mut moved = Err(Errno::ENOENT);
            for _ in 0..3 {
                moved = sys::rename(&from, format!("/proc/self/fd/{}/x", at.as_raw_fd()));
                if moved.is_ok() {
                    break;
                }
                at = open_at(&at, "..").unwrap();
            }
            moved.unwrap();
            if n == 1 {
                deepest = open_at(&at, "x").unwrap();
                while let Ok(next) = open_at(&deepest, "0") {
                    deepest = next;
                }
            }
        }
        deepest
    });
    // Others make the daemon forget all of it.
    for n in 0..400 {
        std::fs::create_dir(mount.path(format!("d{n}"))).unwrap();
        std::fs::write(mount.path(format!("d{n}/f")), "x").unwrap();
    }
    let path = |name: &str| format!("/proc/self/fd/{}/{name}", deepest.as_raw_fd());
    assert_eq!(sys::lstat(path("nothing")).map(drop), Err(Errno::ENOENT));
    assert_eq!(sys::mkdir(path("more"), 0o777), Err(Errno::ENAMETOOLONG));
    let create = sys::open(path("file"), libc::O_CREAT | libc::O_RDWR, 0o600).map(drop);
    assert_eq!(create, Err(Errno::ENAMETOOLONG));
    sys::chmod(path("."), 0o755).unwrap();
    assert_eq!(std::fs::read(mount.path("d7/f")).unwrap(), b"x");
    drop(deepest);
    let after = mount.restart();
    assert_eq!(std::fs::read(after.path("d7/f")).unwrap(), b"x");
}
