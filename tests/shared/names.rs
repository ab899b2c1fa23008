//! Files: made, renamed and removed by one, seen by the other.

use crate::common::{Errno, Lab, ranked, sys};
use crate::{exists, read, soon, two, two_in_each_mode, write};

const EXCLUSIVE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;

#[test]
fn what_one_makes_the_other_has_at_once() {
    two_in_each_mode(|_, _, one, two| {
        for i in 0..6 {
            let name = ranked(i, i);
            // A miss that was told to the kernel isn't kept.
            assert!(!exists(&two.path(&name)));
            write(&one.path(&name), format!("of one {i}"));
            assert_eq!(read(&two.path(&name)), Ok(format!("of one {i}").into_bytes()));
            let back = format!("back-{i}");
            assert!(!exists(&one.path(&back)));
            write(&two.path(&back), format!("of two {i}"));
            assert_eq!(read(&one.path(&back)), Ok(format!("of two {i}").into_bytes()));
        }
        sys::symlink("target", two.path("link")).unwrap();
        assert_eq!(sys::readlink(one.path("link")), Ok("target".into()));
        sys::mknod(one.path("pipe"), libc::S_IFIFO | 0o600, 0).unwrap();
        assert_eq!(sys::lstat(two.path("pipe")).unwrap().st_mode, libc::S_IFIFO | 0o600);
    });
}

#[test]
fn what_one_removes_or_renames_the_other_loses() {
    two_in_each_mode(|_, _, one, two| {
        for i in 0..6 {
            write(&one.path(format!("f{i}")), format!("{i}"));
            assert_eq!(read(&two.path(format!("f{i}"))), Ok(format!("{i}").into_bytes()));
        }
        for i in 0..3 {
            sys::unlink(one.path(format!("f{i}"))).unwrap();
            sys::rename(two.path(format!("f{}", i + 3)), two.path(format!("g{i}"))).unwrap();
        }
        for i in 0..3 {
            soon(Err(libc::ENOENT), "removed", || read(&two.path(format!("f{i}"))));
            soon(Err(libc::ENOENT), "renamed away", || read(&one.path(format!("f{}", i + 3))));
            let text = format!("{}", i + 3).into_bytes();
            assert_eq!(read(&one.path(format!("g{i}"))), Ok(text), "under its new name at once");
        }
    });
}

#[test]
fn attributes_follow() {
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(2));
    write(&one.path("f"), "x");
    assert_eq!(sys::lstat(two.path("f")).unwrap().st_mode & 0o777, 0o644);
    sys::chmod(one.path("f"), 0o600).unwrap();
    soon(0o600, "mode", || sys::lstat(two.path("f")).unwrap().st_mode & 0o777);
    sys::setxattr(two.path("f"), "user.note", b"hello", 0).unwrap();
    assert_eq!(sys::getxattr(one.path("f"), "user.note").as_deref(), Ok(&b"hello"[..]));
    sys::link(one.path("f"), one.path("g")).unwrap();
    soon(2, "names", || sys::lstat(two.path("f")).unwrap().st_nlink);
    let ino = |m: &crate::common::Mount, name| sys::lstat(m.path(name)).unwrap().st_ino;
    assert_eq!(ino(&one, "g"), ino(&two, "f"), "both call an inode the same");
}

#[test]
fn removing_and_renaming_what_somebody_else_has_taken() {
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(3));
    for i in 0..8 {
        write(&one.path(format!("f{i}")), "x");
        assert!(exists(&two.path(format!("f{i}"))), "the other knows it");
    }
    sys::unlink(one.path("f0")).unwrap();
    assert_eq!(sys::unlink(two.path("f0")), Err(Errno::ENOENT), "before it could forget it");
    sys::unlink(one.path("f1")).unwrap();
    assert_eq!(sys::rename(two.path("f1"), two.path("g")), Err(Errno::ENOENT));
    sys::rename(one.path("f2"), one.path("moved")).unwrap();
    assert_eq!(sys::rename(two.path("f2"), two.path("g")), Err(Errno::ENOENT));
    assert!(exists(&one.path("moved")), "it wasn't moved twice");
    // Another file under a known name is that file from then on.
    write(&one.path("tmp"), "newer");
    sys::rename(one.path("tmp"), one.path("f3")).unwrap();
    sys::rename(two.path("f3"), two.path("kept")).unwrap();
    assert_eq!(read(&one.path("kept")), Ok(b"newer".to_vec()));
    write(&one.path("tmp"), "newer");
    sys::rename(one.path("tmp"), one.path("f4")).unwrap();
    sys::unlink(two.path("f4")).unwrap();
    assert!(!exists(&one.path("f4")) || read(&one.path("f4")) == Err(libc::ENOENT), "the new one went");
    // By a descriptor it's the old file, which has no name that could be linked: never the new one.
    let old = sys::open(two.path("f6"), libc::O_PATH, 0).unwrap();
    write(&one.path("tmp"), "newer");
    sys::rename(one.path("tmp"), one.path("f6")).unwrap();
    use std::os::fd::AsRawFd;
    let (by_fd, new) = (format!("/proc/self/fd/{}", old.as_raw_fd()), two.path("by-fd"));
    let follow = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
    let cwd = nix::fcntl::AT_FDCWD;
    let linked = nix::unistd::linkat(cwd, by_fd.as_str(), cwd, &new, follow);
    assert!(matches!(linked, Err(Errno::ENOENT | Errno::ESTALE)), "{linked:?}");
    assert!(!exists(&one.path("by-fd")));
    // A link to what has been replaced is a link to what is there.
    write(&one.path("tmp"), "newer");
    sys::rename(one.path("tmp"), one.path("f5")).unwrap();
    soon(Ok(b"newer".to_vec()), "the name's new file", || read(&two.path("f5")));
    sys::link(two.path("f5"), two.path("link")).unwrap();
    assert_eq!(read(&one.path("link")), Ok(b"newer".to_vec()));
}

#[test]
fn a_name_is_made_exclusively_by_one() {
    let lab = Lab::new();
    let b = lab.dirs(1);
    let (one, two) = two(&lab, &b);
    sys::open(one.path("lock"), EXCLUSIVE, 0o644).unwrap();
    assert_eq!(sys::open(two.path("lock"), EXCLUSIVE, 0o644).map(drop), Err(Errno::EEXIST));
    sys::open(two.path("lock"), libc::O_WRONLY | libc::O_CREAT, 0o644).map(drop).unwrap();
    // Both at once, over and over: the backing decides, and nobody gets another answer.
    let barrier = std::sync::Barrier::new(2);
    let make = |mount: &crate::common::Mount| {
        let mut made = Vec::new();
        for i in 0..300 {
            barrier.wait();
            let file = sys::open(mount.path(format!("f{i}")), EXCLUSIVE, 0o644).map(drop);
            assert!(matches!(file, Ok(()) | Err(Errno::EEXIST)), "f{i}: {file:?}");
            barrier.wait();
            let dir = sys::mkdir(mount.path(format!("d{i}")), 0o755);
            assert!(matches!(dir, Ok(()) | Err(Errno::EEXIST)), "d{i}: {dir:?}");
            let own = mount.path(format!("own{i}-{}", mount.minor));
            write(&own, "x");
            barrier.wait();
            let renamed = sys::renameat2(&own, mount.path(format!("t{i}")), libc::RENAME_NOREPLACE);
            assert!(matches!(renamed, Ok(()) | Err(Errno::EEXIST)), "t{i}: {renamed:?}");
            barrier.wait();
            let removed = sys::rmdir(mount.path(format!("d{i}")));
            assert!(matches!(removed, Ok(()) | Err(Errno::ENOENT)), "d{i}: {removed:?}");
            made.push([file.is_ok(), dir.is_ok(), renamed.is_ok(), removed.is_ok()]);
        }
        made
    };
    let (a, b) = std::thread::scope(|s| {
        let (a, b) = (s.spawn(|| make(&one)), s.spawn(|| make(&two)));
        (a.join().unwrap(), b.join().unwrap())
    });
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        // Made, made, renamed to and removed by one, and not by the other.
        assert!((0..4).all(|n| a[n] != b[n]), "round {i}: {a:?} and {b:?}");
    }
}

#[test]
fn renaming_onto_what_somebody_else_has_just_made() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let (one, two) = two(&lab, &b);
    for i in 0..9 {
        let (from, to) = (ranked(i, i), ranked(i + 1, 100 + i));
        write(&two.path(&from), "ours");
        assert!(!exists(&two.path(&to)));
        write(&one.path(&to), "theirs");
        let keep = sys::renameat2(two.path(&from), two.path(&to), libc::RENAME_NOREPLACE);
        assert_eq!(keep, Err(Errno::EEXIST));
        assert_eq!(read(&two.path(&from)), Ok(b"ours".to_vec()));
        sys::rename(two.path(&from), two.path(&to)).unwrap();
        let copies = b.iter().filter(|b| exists(&b.join(&to))).count();
        assert_eq!(copies, 1, "what was replaced is gone, also from another backing");
        soon(Ok(b"ours".to_vec()), "replaced", || read(&one.path(&to)));
    }
}

#[test]
fn a_copy_that_somebody_else_made_goes_with_the_file() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let (one, two) = two(&lab, &b);
    write(&one.path("f"), "x");
    let on = (0..3).find(|i| exists(&b[*i].join("f"))).unwrap();
    // As if both had made the name at once, on different backings.
    write(&b[(on + 1) % 3].join("f"), "copy");
    sys::unlink(one.path("f")).unwrap();
    assert!(b.iter().all(|b| !exists(&b.join("f"))), "no copy comes back as the file");
    assert!(!exists(&two.path("f")));
}

#[test]
fn a_number_that_is_used_again_is_another_file() {
    let lab = Lab::new();
    // ext4 gives a number out again at once.
    let b = [lab.volume(crate::common::FsKind::Ext4, 64).join("kv")];
    let start =
        |point| crate::mount_at(&lab, point, &crate::shared(&b)).arg("--shared-ttl").arg("3600").start();
    let (one, two) = (start("one"), start("two"));
    let ino = |path: &str| sys::lstat(b[0].join(path)).unwrap().st_ino;
    let mut tried = 0;
    for i in 0..50 {
        let (dir, f) = (format!("d{i}"), format!("f{i}"));
        sys::mkdir(one.path(&dir), 0o755).unwrap();
        write(&one.path(&f), "old");
        // The kernel takes the name for this number, for an hour.
        assert!(exists(&two.path(&f)) && exists(&two.path(&dir)));
        let old = ino(&f);
        sys::unlink(one.path(&f)).unwrap();
        write(&one.path(&dir).join("g"), "new");
        if ino(&format!("{dir}/g")) != old {
            continue;
        }
        tried += 1;
        // The daemon has learned of the new file, and the kernel hasn't.
        assert_eq!(sys::rmdir(two.path(&dir)), Err(Errno::ENOTEMPTY));
        assert_eq!(read(&two.path(&f)), Err(libc::ENOENT));
        assert_eq!(read(&two.path(&dir).join("g")), Ok(b"new".to_vec()));
    }
    assert!(tried > 10, "only {tried} numbers were used again");
}

#[test]
fn an_open_file_that_is_removed_goes_on() {
    two_in_each_mode(|_, _, one, two| {
        write(&one.path("f"), "content");
        let fd = sys::open(two.path("f"), libc::O_RDWR, 0).unwrap();
        sys::unlink(one.path("f")).unwrap();
        soon(false, "the name", || exists(&two.path("f")));
        assert_eq!(sys::pread(&fd, 100, 0), Ok(b"content".to_vec()));
        assert_eq!(sys::pwrite(&fd, b"more", 7), Ok(4));
        assert_eq!(sys::pread(&fd, 100, 0), Ok(b"contentmore".to_vec()));
        // A new file of the name is another.
        write(&one.path("f"), "new");
        soon(Ok(b"new".to_vec()), "the new file", || read(&two.path("f")));
        assert_eq!(sys::pread(&fd, 100, 0), Ok(b"contentmore".to_vec()));
    });
}

#[test]
fn a_removed_file_gives_its_room_back() {
    let lab = Lab::new();
    let volume = lab.volume(crate::common::FsKind::Tmpfs, 64);
    let (one, two) = two(&lab, &[volume.join("kv")]);
    write(&one.path("big"), vec![1; 16 << 20]);
    // Known and closed on the other side: nothing there keeps it.
    assert_eq!(read(&two.path("big")).unwrap().len(), 16 << 20);
    let free = || sys::statvfs(&volume).map(|st| st.f_bavail * st.f_frsize >= 48 << 20).unwrap();
    assert!(!free());
    sys::unlink(one.path("big")).unwrap();
    soon(true, "room for 48 MiB", free);
}
