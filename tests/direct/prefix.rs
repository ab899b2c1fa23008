//! LOOKUP_PREFIX: the count up to the first gap, who may know it, and what is read ahead.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use kvfs::direct::abi::{self, PREFIX_READAHEAD, Prefix, nr};
use libc::*;
use zerocopy::IntoBytes;

use super::process;
use super::raw::{self, prefix};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, FsKind, Lab, Mount, R, pattern, sys};

fn dir(path: impl AsRef<Path>) -> OwnedFd {
    sys::open(path, O_RDONLY | O_DIRECTORY, 0).unwrap()
}

/// How many of the names are found.
fn found(fd: &OwnedFd, names: &[&str]) -> R<u32> {
    prefix(fd, names, 0).map(|(found, queued)| {
        assert_eq!(queued, 0);
        found
    })
}

fn make(mount: &Mount, names: &[&str]) {
    for name in names {
        let path = mount.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
}

#[test]
fn up_to_the_first_gap() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).start();
    make(&mount, &["a", "b", "c", "e", "d/x", "d/y/z", "w@1@0@00@bf16.pt"]);
    std::os::unix::fs::symlink("a", mount.path("l")).unwrap();
    std::os::unix::fs::symlink("d", mount.path("ld")).unwrap();
    let root = dir(mount.point());
    for (names, want) in [
        (&["a", "b", "c"][..], 3),
        (&["a", "gap", "b"], 1),
        (&["gap", "a"], 0),
        (&["a", "b", "a", "a", "gap"], 4),
        (&["d/x", "d/y/z", "d/y", "d", "w@1@0@00@bf16.pt"], 5),
        (&["d//x", "d/x/"], 2),
        (&["d/gap/z", "a"], 0),
        (&["a/b", "a"], 0),
        // A link is there, but none is followed on the way.
        (&["l", "ld", "ld/x"], 2),
        (&["a", "..", "b"], 1),
        (&["d/../a"], 0),
        (&["./a"], 0),
        (&[".kvfs-socket"], 0),
        (&[".kvfs-backing"], 0),
    ] {
        assert_eq!(found(&root, names), Ok(want), "{names:?}");
    }
    assert_eq!(found(&root, &[&"n".repeat(256)]), Ok(0));
    assert_eq!(found(&dir(mount.path("d")), &["x", "y/z", "a"]), Ok(2));
    // Removed and renamed names are gaps at once.
    sys::unlink(mount.path("b")).unwrap();
    sys::rename(mount.path("e"), mount.path("f")).unwrap();
    assert_eq!(found(&root, &["a", "b"]), Ok(1));
    assert_eq!(found(&root, &["f", "e"]), Ok(1));
    // A directory that is gone is one without names.
    let d = dir(mount.path("d/y"));
    std::fs::remove_dir_all(mount.path("d")).unwrap();
    assert!(matches!(found(&d, &["z"]), Ok(0) | Err(Errno::ENOENT | Errno::ESTALE)));
}

#[test]
fn lists_that_are_wrong() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    make(&mount, &["a"]);
    let root = dir(mount.point());
    let send = |nr_names: u32, names_len: u32, names: &[u8]| {
        let head = Prefix { nr_names, names_len, ..Prefix::default() };
        raw::call(&root, nr::LOOKUP_PREFIX, &[head.as_bytes(), names].concat()).map(drop)
    };
    assert_eq!(send(2, 4, b"a\0a\0"), Ok(()));
    assert_eq!(send(0, 0, b""), Ok(()), "no names are none");
    for (nr_names, names_len, names) in [
        (1, 1, &b"a"[..]),
        (2, 3, b"a\0a"),
        (1, 1, b"\0"),
        (2, 3, b"a\0\0"),
        (2, 3, b"\0a\0"),
        (1, 4, b"a\0a\0"),
        (3, 4, b"a\0a\0"),
        (2, 3, b"a\0a\0"),
        (2, 5, b"a\0a\0"),
        (2, u32::MAX, b"a\0a\0"),
        (u32::MAX, 4, b"a\0a\0"),
        (0, 0, b"a\0"),
        (1, 0, b""),
    ] {
        assert_eq!(send(nr_names, names_len, names), Err(Errno::EINVAL), "{nr_names} {names_len} {names:?}");
    }
    // As long as it may be: names of one letter.
    let most = (abi::MAX_SIZE - size_of::<Prefix>()) / 2;
    assert_eq!(found(&root, &vec!["a"; most]), Ok(most as u32));
    let file = sys::open(mount.path("a"), O_RDONLY, 0).unwrap();
    assert_eq!(found(&file, &["a"]), Err(Errno::ENOTDIR));
}

/// Nobody learns of a name in a directory that they may not search.
#[test]
fn permissions() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    make(&mount, &["open/a", "open/shut/b", "listed/c", "mine/d", "group/e"]);
    let set = |name: &str, mode| sys::chmod(mount.path(name), mode).unwrap();
    set("open/shut", 0o700);
    // May be listed, and not searched.
    set("listed", 0o744);
    sys::chown(mount.path("mine"), NOBODY, 0).unwrap();
    set("mine", 0o500);
    sys::chown(mount.path("group"), 0, 4242).unwrap();
    set("group", 0o710);
    let root = dir(mount.point());
    let listed = dir(mount.path("listed"));
    let group = dir(mount.path("group"));
    assert_eq!(found(&root, &["open/a", "open/shut/b", "listed/c", "mine/d", "group/e"]), Ok(5), "root");
    as_user(NOBODY, NOBODY, || {
        assert_eq!(found(&root, &["open/a", "open/shut", "open/shut/b"]), Ok(2));
        assert_eq!(found(&root, &["open/shut/b"]), found(&root, &["open/shut/gap"]), "there or not");
        assert_eq!(found(&root, &["listed/c"]), Ok(0));
        assert_eq!(found(&root, &["mine/d"]), Ok(1));
        assert_eq!(found(&root, &["group/e"]), Ok(0));
        // By a descriptor that somebody else has opened.
        assert_eq!(found(&listed, &["c"]), Err(Errno::EACCES));
        assert_eq!(found(&listed, &["gap"]), Err(Errno::EACCES));
        assert_eq!(found(&group, &["e"]), Err(Errno::EACCES));
    });
    as_user(NOBODY, 4242, || assert_eq!(found(&root, &["group/e"]), Ok(1), "by its group"));
    let mut other = process::Process::start(|say| {
        nix::unistd::setgroups(&[nix::unistd::Gid::from_raw(4242)]).unwrap();
        nix::unistd::setuid(nix::unistd::Uid::from_raw(NOBODY)).unwrap();
        say(&format!("{:?}", found(&root, &["group/e"])));
    });
    assert_eq!(other.hear(), "Ok(1)", "by a supplementary group");
    other.finish();
    // The owner is judged by the owner's bits, even where the others have more.
    set("mine", 0o077);
    as_user(NOBODY, NOBODY, || assert_eq!(found(&root, &["mine/d"]), Ok(0)));
}

#[test]
fn names_from_behind() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    let mount = lab.mount(&backings).start();
    make(&mount, &["a", "d/a"]);
    std::fs::create_dir_all(backings[1].join("d/new")).unwrap();
    std::fs::write(backings[0].join("b"), "x").unwrap();
    std::fs::write(backings[1].join("d/new/c"), "x").unwrap();
    let root = dir(mount.point());
    assert_eq!(found(&root, &["a", "b", "d/a", "d/new/c", "d/new/gap"]), Ok(4));
    drop(root);
    let mount = mount.stop().arg("--exclusive").start();
    std::fs::write(backings[0].join("e"), "x").unwrap();
    make(&mount, &["f"]);
    let root = dir(mount.point());
    assert_eq!(found(&root, &["a", "b", "d/new/c", "f", "e"]), Ok(4), "nobody else writes to the backings");
}

/// How many pages of a file are in the page cache (cachestat(2), Linux 6.5).
fn cached(path: &Path) -> u64 {
    let fd = sys::open(path, O_RDONLY | O_NOATIME, 0).unwrap();
    let range = [0u64, 0];
    let mut stat = [0u64; 5];
    // SAFETY: two u64 to read, five to write, as struct cachestat_range and cachestat have them.
    let done = unsafe { syscall(451, fd.as_raw_fd(), range.as_ptr(), stat.as_mut_ptr(), 0) };
    assert_eq!(done, 0, "cachestat: {}", Errno::last());
    stat[0]
}

#[test]
fn read_ahead() {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let lab = Lab::new();
        let backings = [lab.volume(kind, 512).join("kv"), lab.volume(kind, 512).join("kv")];
        let mount = lab.mount(&backings).start();
        let size = 3 << 20;
        let names = ["a", "d/b", "c", "secret", "last"];
        make(&mount, &names);
        let below = |name: &str| backings[mount.holder(name)].join(name);
        for name in names.iter().chain(&["behind"]) {
            std::fs::write(mount.path(name), pattern(3, size)).unwrap();
        }
        sys::chmod(mount.path("secret"), 0o600).unwrap();
        names.iter().chain(&["behind"]).for_each(|name| super::engine::cool(&below(name)));
        assert!(names.iter().all(|name| cached(&below(name)) == 0), "nothing is cached");
        let root = dir(mount.point());
        // Without the flag nothing is read.
        assert_eq!(prefix(&root, &["a", "d/b"], 0), Ok((2, 0)));
        let asked = ["a", "d/b", "d", "c", "secret", "last", "gap", "behind"];
        let answer = as_user(NOBODY, NOBODY, || prefix(&root, &asked, PREFIX_READAHEAD));
        assert_eq!(answer, Ok((6, 5)), "{kind:?}: the directory isn't read");
        // They are read in their order.
        for name in ["a", "d/b", "c", "last"] {
            let path = below(name);
            process::until(&mount, name, |_| cached(&path) == size as u64 / 4096);
        }
        assert_eq!(cached(&below("secret")), 0, "{kind:?}: what the caller may not read");
        assert_eq!(cached(&below("behind")), 0, "{kind:?}: what is behind the gap");
        assert_eq!(std::fs::read(mount.path("c")).unwrap(), pattern(3, size));
    }
}

/// What doesn't fit the queue is left out, and said so.
#[test]
fn more_than_is_read_ahead() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    make(&mount, &["a"]);
    let root = dir(mount.point());
    let names = vec!["a"; 4000];
    for _ in 0..5 {
        let (found, queued) = prefix(&root, &names, PREFIX_READAHEAD).unwrap();
        assert_eq!(found, 4000);
        assert!(queued <= 4000);
    }
    assert_eq!(mount.op("panics"), 0);
}
