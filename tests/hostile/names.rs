//! kvfs's own files can't be seen, opened, made, replaced or removed through the mount, by any call.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, Lab, Mount, R, sys};

const OURS: [&str; 5] =
    [".kvfs-backing", ".kvfs-job", ".kvfs-uses", ".kvfs-move-6f1d2c3b-0000-4000-8000-000000000000", ".kvfs-"];

fn tmpfile(dir: &Path) -> R<OwnedFd> {
    sys::open(dir, libc::O_TMPFILE | libc::O_RDWR, 0o600)
}

/// The name of an open file.
fn link_open(fd: &OwnedFd, to: &Path) -> R<()> {
    sys::link(format!("/proc/self/fd/{}", fd.as_raw_fd()), to)
}

/// Tries everything with one name in a directory that has `f` and `dir`.
fn try_all(dir: &Path, name: &str) {
    let ours = dir.join(name);
    let absent = |what: &str, result: R<()>| assert_eq!(result, Err(Errno::ENOENT), "{what} {name}");
    let refused = |what: &str, result: R<()>| assert_eq!(result, Err(Errno::EPERM), "{what} {name}");
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_PATH, libc::O_RDWR | libc::O_TRUNC] {
        absent("open", sys::open(&ours, flags, 0).map(drop));
    }
    absent("stat", sys::lstat(&ours).map(drop));
    absent("access", sys::access(&ours, libc::F_OK));
    absent("readlink", sys::readlink(&ours).map(drop));
    absent("truncate", sys::truncate(&ours, 0));
    absent("chmod", sys::chmod(&ours, 0o777));
    absent("chown", sys::lchown(&ours, NOBODY, NOBODY));
    absent("utimens", sys::utimens(&ours, (1, 0), (1, 0), 0));
    absent("unlink", sys::unlink(&ours));
    absent("rmdir", sys::rmdir(&ours));
    absent("getxattr", sys::getxattr(&ours, "user.a").map(drop));
    absent("setxattr", sys::setxattr(&ours, "user.a", b"", 0));
    absent("listxattr", sys::listxattr(&ours).map(drop));
    absent("link from", sys::link(&ours, dir.join("other")));
    absent("rename from", sys::rename(&ours, dir.join("other")));
    absent("exchange", sys::renameat2(dir.join("f"), &ours, libc::RENAME_EXCHANGE));
    absent("exchange from", sys::renameat2(&ours, dir.join("f"), libc::RENAME_EXCHANGE));
    absent("below it", sys::lstat(ours.join("x")).map(drop));
    for flags in [libc::O_CREAT | libc::O_RDWR, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY] {
        refused("create", sys::open(&ours, flags, 0o666).map(drop));
    }
    refused("mkdir", sys::mkdir(&ours, 0o777));
    for kind in [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK] {
        refused("mknod", sys::mknod(&ours, kind | 0o666, 0));
    }
    refused("symlink", sys::symlink("f", &ours));
    refused("link to", sys::link(dir.join("f"), &ours));
    refused("rename to", sys::rename(dir.join("f"), &ours));
    refused("rename a directory to", sys::rename(dir.join("dir"), &ours));
    refused("rename to, without replacing", sys::renameat2(dir.join("f"), &ours, libc::RENAME_NOREPLACE));
    if let Ok(fd) = tmpfile(dir) {
        refused("link a file without a name to", link_open(&fd, &ours));
    }
    let fd = sys::open(dir.join("f"), libc::O_RDONLY, 0).unwrap();
    assert!(link_open(&fd, &ours).is_err());
    let names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!names.iter().any(|name| name.starts_with(".kvfs")), "{names:?}");
}

fn prepared() -> (Lab, Mount) {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    for backing in &backings {
        std::fs::create_dir(backing.join("sub")).unwrap();
        for dir in [backing.clone(), backing.join("sub")] {
            OURS[1..].iter().for_each(|name| std::fs::write(dir.join(name), "ours").unwrap());
        }
        std::fs::write(backing.join(".kvfs-job"), r#"{"rebalance":"#).unwrap();
        std::fs::write(backing.join("sub/.kvfs-backing"), "ours").unwrap();
    }
    // Else what looks like an unfinished copy goes.
    let mount = lab.mount(&backings).start();
    for dir in ["", "sub"] {
        std::fs::write(mount.path(dir).join("f"), "theirs").unwrap();
        std::fs::create_dir(mount.path(dir).join("dir")).unwrap();
        for name in ["", "f", "dir"] {
            sys::chown(mount.path(dir).join(name), NOBODY, NOBODY).unwrap();
        }
    }
    (lab, mount)
}

#[test]
fn nothing_can_be_done_with_a_reserved_name() {
    let (_lab, mount) = prepared();
    let read = |b: &Path, name: &str| std::fs::read(b.join(name)).ok();
    let all = || -> Vec<_> {
        let kept = OURS.iter().filter(|name| !name.contains("move"));
        let of = |b: &Path| kept.clone().map(|name| [read(b, name), read(&b.join("sub"), name)]).collect();
        mount.backings().iter().map(|b| of(b)).collect::<Vec<Vec<_>>>()
    };
    let before = all();
    for dir in [mount.path(""), mount.path("sub")] {
        for name in OURS {
            try_all(&dir, name);
            as_user(NOBODY, NOBODY, || try_all(&dir, name));
        }
    }
    assert_eq!(all(), before);
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"theirs");
    // What only looks alike is a name like any other.
    for name in [".kvfs", ".kvf", "x.kvfs-backing", ".KVFS-backing", ".kvfs_backing"] {
        std::fs::write(mount.path(name), name).unwrap();
        assert_eq!(std::fs::read(mount.path(name)).unwrap(), name.as_bytes());
        mount.holder(name);
    }
}

#[test]
fn the_socket_in_the_mount_cannot_be_replaced() {
    let (_lab, mount) = prepared();
    let socket = mount.path(".kvfs-socket");
    crate::users::limits::until(&mount, "the socket", |s| s["direct"]["fd_socket"].as_bool() == Some(true));
    let made =
        |path: &Path| std::os::unix::net::UnixListener::bind(path).map(drop).map_err(|e| e.raw_os_error());
    for _ in 0..2 {
        assert_eq!(sys::open(&socket, libc::O_RDWR, 0).map(drop), Err(Errno::ENXIO));
        assert_eq!(made(&socket), Err(Some(libc::EADDRINUSE)));
        assert!(sys::unlink(&socket).is_err());
        assert!(sys::rename(&socket, mount.path("x")).is_err());
        assert!(sys::rename(mount.path("f"), &socket).is_err());
        assert!(sys::renameat2(mount.path("f"), &socket, libc::RENAME_EXCHANGE).is_err());
        assert!(sys::link(&socket, mount.path("x")).is_err());
        assert!(sys::chmod(&socket, 0).is_err());
        assert_eq!(sys::listxattr(&socket), Ok(vec![]));
        assert_eq!(sys::lstat(&socket).unwrap().st_mode, libc::S_IFSOCK | 0o666);
    }
    assert_eq!(made(&mount.path("sub/.kvfs-socket")), Err(Some(libc::EPERM)));
}
