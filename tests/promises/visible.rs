//! Whatever is on a backing is in the mount, whoever wrote it and when; what belongs to kvfs isn't.

use std::process::Command;

use super::{put, text};
use crate::common::lab::{names, run};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, FsKind, Lab, sys, tree};

#[test]
fn files_from_before_the_mount() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    for (i, backing) in b.iter().enumerate() {
        put(backing, &format!("top{i}"), format!("top of {i}"));
        put(backing, &format!("deep/er/only{i}/f"), format!("deep of {i}"));
        put(backing, &format!("shared/f{i}"), format!("shared of {i}"));
    }
    sys::chmod(b[1].join("top1"), 0o640).unwrap();
    sys::chown(b[1].join("top1"), 12, 34).unwrap();
    sys::utimens(b[1].join("top1"), (1000, 5), (2000, 6), 0).unwrap();
    sys::setxattr(b[1].join("top1"), "user.note", b"kept", 0).unwrap();
    let mount = lab.mount(&b).start();
    let st = sys::lstat(mount.path("top1")).unwrap();
    assert_eq!((st.st_atime, st.st_mtime, st.st_mtime_nsec), (1000, 2000, 6));
    assert_eq!(names(mount.point()), ["deep", "shared", "top0", "top1", "top2"]);
    assert_eq!(names(&mount.path("shared")), ["f0", "f1", "f2"]);
    for i in 0..3 {
        assert_eq!(text(&mount.path(format!("top{i}"))), format!("top of {i}"));
        assert_eq!(text(&mount.path(format!("deep/er/only{i}/f"))), format!("deep of {i}"));
        assert_eq!(text(&mount.path(format!("shared/f{i}"))), format!("shared of {i}"));
    }
    assert_eq!(tree::line(&mount.path("top1")), tree::line(&b[1].join("top1")));
    let index = &mount.status()["index"];
    assert_eq!((index["files"].as_u64(), index["shadows"].as_u64()), (Some(9), Some(0)), "{index:#}");
}

#[test]
fn special_files_and_links() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[0], "real", "target");
    sys::symlink("real", b[1].join("to-other-backing")).unwrap();
    sys::symlink("nowhere", b[0].join("dangling")).unwrap();
    sys::symlink("/", b[0].join("to-root")).unwrap();
    sys::symlink("..", b[1].join("up")).unwrap();
    sys::mknod(b[0].join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    sys::mknod(b[1].join("sock"), libc::S_IFSOCK | 0o600, 0).unwrap();
    sys::mknod(b[1].join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
    let mount = lab.mount(&b).start();
    let all = ["dangling", "fifo", "null", "real", "sock", "to-other-backing", "to-root", "up"];
    assert_eq!(names(mount.point()), all, "links are listed, not followed");
    assert_eq!(text(&mount.path("to-other-backing")), "target");
    for name in ["dangling", "fifo", "null", "sock", "to-root", "up"] {
        let i = mount.holder(name);
        assert_eq!(tree::line(&mount.path(name)), tree::line(&b[i].join(name)), "{name}");
    }
    for name in all {
        sys::unlink(mount.path(name)).unwrap();
    }
    assert_eq!((names(&b[0]), names(&b[1])), (vec![], vec![]));
}

#[test]
fn a_file_added_behind_the_mount_appears() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    assert_eq!(sys::lstat(mount.path("later")).map(drop), Err(Errno::ENOENT));
    put(&b[2], "later", "hello");
    assert_eq!(text(&mount.path("later")), "hello", "a miss is not remembered");
    put(&b[1], "new/dir/f", "deep");
    assert_eq!(text(&mount.path("new/dir/f")), "deep", "a directory behind the mount, too");
    put(&b[0], "taken", "by somebody");
    let fd = sys::open(mount.path("taken"), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o644);
    assert_eq!(fd.map(drop), Err(Errno::EEXIST), "create sees it as well");
    assert_eq!(mount.holders("taken"), [0]);
    sys::unlink(b[2].join("later")).unwrap();
    put(&b[0], "again", "x");
    assert_eq!(text(&mount.path("again")), "x");
}

#[test]
fn exclusive_trusts_the_index() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[0], "before", "seen");
    let mount = lab.mount(&b).arg("--exclusive").start();
    assert_eq!(text(&mount.path("before")), "seen");
    put(&b[1], "behind", "hidden");
    assert_eq!(sys::lstat(mount.path("behind")).map(drop), Err(Errno::ENOENT), "no probe");
    std::fs::write(mount.path("own"), "x").unwrap();
    assert_eq!(text(&mount.path("own")), "x");
    sys::rename(mount.path("own"), mount.path("moved")).unwrap();
    assert_eq!(sys::lstat(mount.path("own")).map(drop), Err(Errno::ENOENT));
    // A name asked for before it exists must still be found once a client of the mount makes it.
    for name in ["a", "b"] {
        assert_eq!(sys::lstat(mount.path(name)).map(drop), Err(Errno::ENOENT));
    }
    std::fs::write(mount.path("a"), "made").unwrap();
    sys::link(mount.path("a"), mount.path("b")).unwrap();
    assert_eq!((text(&mount.path("a")), text(&mount.path("b"))), ("made".into(), "made".into()));
}

#[test]
fn exclusive_answers_misses_in_the_kernel() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).arg("--exclusive").start();
    let miss = || assert_eq!(sys::lstat(mount.path("absent")).map(drop), Err(Errno::ENOENT));
    miss();
    let before = mount.op("lookup");
    for _ in 0..100 {
        miss();
    }
    assert!(mount.op("lookup") < before + 100, "a hundred misses of one name did not all reach the daemon");
}

#[test]
fn reserved_names_are_hidden_and_refused() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[0], ".kvfs-old-state", "of kvfs");
    put(&b[1], "d/.kvfs-inner", "of kvfs");
    std::fs::create_dir(b[1].join(".kvfs-dir")).unwrap();
    let mount = lab.mount(&b).start();
    std::fs::write(mount.path("f"), "x").unwrap();
    let visible: Vec<_> = crate::common::dir::list(mount.point()).unwrap().into_iter().map(|e| e.0).collect();
    assert_eq!(visible, ["d", "f"]);
    assert_eq!(crate::common::dir::list(mount.path("d")), Ok(vec![]));
    let reserved =
        [".kvfs-backing", ".kvfs-old-state", ".kvfs-dir", ".kvfs-anything", "d/.kvfs-inner", "d/.kvfs-x"];
    for name in reserved {
        let p = mount.path(name);
        assert_eq!(sys::lstat(&p).map(drop), Err(Errno::ENOENT), "lookup of {name}");
        assert_eq!(sys::open(&p, libc::O_RDONLY, 0).map(drop), Err(Errno::ENOENT), "open of {name}");
        assert_eq!(sys::create(&p).map(drop), Err(Errno::EPERM), "create {name}");
        assert_eq!(sys::mkdir(&p, 0o755), Err(Errno::EPERM), "mkdir {name}");
        assert_eq!(sys::symlink("x", &p), Err(Errno::EPERM), "symlink {name}");
        assert_eq!(sys::mknod(&p, libc::S_IFIFO | 0o600, 0), Err(Errno::EPERM), "mknod {name}");
        assert_eq!(sys::link(mount.path("f"), &p), Err(Errno::EPERM), "link to {name}");
        assert_eq!(sys::rename(mount.path("f"), &p), Err(Errno::EPERM), "rename to {name}");
        assert_eq!(sys::rename(&p, mount.path("g")), Err(Errno::ENOENT), "rename of {name}");
        assert_eq!(sys::unlink(&p), Err(Errno::ENOENT), "unlink {name}");
        assert_eq!(sys::rmdir(&p), Err(Errno::ENOENT), "rmdir {name}");
    }
    assert_eq!(text(&b[0].join(".kvfs-old-state")), "of kvfs", "untouched");
    for backing in &b {
        assert!(backing.join(".kvfs-backing").is_file(), "the marker is there, on the backing");
    }
}

#[test]
fn a_mount_inside_a_backing_is_skipped_and_reported() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let inner = lab.dir("backing0/inner");
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inner));
    std::fs::write(inner.join("foreign"), "not of this backing").unwrap();
    put(&b[0], "own", "x");
    let mount = lab.mount(&b).start();
    assert_eq!(text(&mount.path("own")), "x");
    assert_eq!(
        sys::lstat(mount.path("inner/foreign")).map(drop),
        Err(Errno::ENOENT),
        "another file system's file"
    );
    assert!(names(mount.point()).iter().all(|n| n == "own" || n == "inner"), "the listing still works");
    let said = mount.story();
    assert!(
        said.contains("inner") && said.contains(b[0].to_str().unwrap()),
        "the log names the nested mount:\n{said}"
    );
    drop(mount);
    assert_eq!(text(&inner.join("foreign")), "not of this backing");
}

#[test]
fn what_cannot_be_read_is_counted_and_does_not_stop_the_mount() {
    let lab = Lab::new();
    let (point, b) = (lab.dir("mnt"), lab.dirs(2));
    put(&b[0], "locked/f", "x");
    put(&b[1], "open/f", "readable");
    for path in [&point, &b[0], &b[1]] {
        sys::chown(path, NOBODY, NOBODY).unwrap();
    }
    sys::chmod(b[0].join("locked"), 0o700).unwrap();
    lab.fuse_for_everyone();
    let mount = lab.mount(&b).user(NOBODY).start();
    assert_eq!(mount.status()["index"]["unreadable"].as_u64(), Some(1), "{:#}", mount.status()["index"]);
    as_user(NOBODY, NOBODY, || {
        assert_eq!(text(&mount.path("open/f")), "readable");
        assert_eq!(sys::lstat(mount.path("locked/f")).map(drop), Err(Errno::EACCES));
    });
}

#[test]
fn statfs_is_the_honest_sum() {
    let lab = Lab::new();
    let (v0, v1) = (lab.volume(FsKind::Ext4, 256), lab.volume(FsKind::Tmpfs, 64));
    let bytes = |p: &std::path::Path| {
        let st = sys::statvfs(p).unwrap();
        (st.f_blocks as u128 * st.f_frsize as u128, st.f_bavail as u128 * st.f_frsize as u128)
    };
    let two_on_one = vec![v0.join("a"), v0.join("b"), v1.join("c")];
    let mount = lab.mount(&two_on_one).start();
    let st = sys::statvfs(mount.point()).unwrap();
    assert!(st.f_bsize >= 4096, "direct I/O works with f_bsize: {}", st.f_bsize);
    assert_eq!(st.f_namemax, 255);
    let (total, avail) = bytes(mount.point());
    let want = bytes(&v0).0 + bytes(&v1).0;
    let slack = 2 * st.f_frsize as u128;
    assert!(total.abs_diff(want) <= slack, "two backings of one file system count once: {total}, not {want}");
    assert!(avail <= bytes(&v0).1 + bytes(&v1).1, "no more than there is");
    assert!(avail > 0);
}

#[test]
fn links_of_one_file_are_one_node() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[1], "one", "x");
    std::fs::create_dir(b[1].join("d")).unwrap();
    sys::link(b[1].join("one"), b[1].join("d/two")).unwrap();
    let mount = lab.mount(&b).start();
    let (one, two) = (sys::lstat(mount.path("one")).unwrap(), sys::lstat(mount.path("d/two")).unwrap());
    assert_eq!((one.st_ino, one.st_nlink), (two.st_ino, 2));
    std::fs::write(mount.path("one"), "through one").unwrap();
    assert_eq!(text(&mount.path("d/two")), "through one");
    sys::unlink(mount.path("one")).unwrap();
    assert_eq!(sys::lstat(mount.path("d/two")).map(|st| st.st_nlink), Ok(1));
}

#[test]
fn without_attributes_the_kernel_asks_for_none() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[0], "old", "from before");
    sys::setxattr(b[0].join("old"), "user.note", b"kept", 0).unwrap();
    let asked = |mount: &crate::common::Mount| mount.op("getxattr");
    let with = lab.mount(&b).start();
    for name in ["a", "b", "c"] {
        std::fs::write(with.path(name), "x").unwrap();
    }
    assert!(asked(&with) >= 3, "before each file's first write");
    with.stop();

    let mount = lab.mount(&b).arg("--xattrs").arg("off").start();
    assert_eq!(sys::getxattr(mount.path("old"), "user.note"), Err(Errno::EOPNOTSUPP));
    let before = asked(&mount);
    for name in ["d", "e", "f"] {
        std::fs::write(mount.path(name), "x").unwrap();
    }
    assert_eq!(asked(&mount), before, "it answers by itself");
    assert_eq!(sys::setxattr(mount.path("d"), "user.a", b"1", 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(sys::listxattr(mount.path("d")), Err(Errno::EOPNOTSUPP));
    assert_eq!(sys::removexattr(mount.path("old"), "user.note"), Err(Errno::EOPNOTSUPP));
    assert_eq!(sys::getxattr(b[0].join("old"), "user.note").unwrap(), b"kept");
}
