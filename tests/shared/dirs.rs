//! Directories: made, renamed and removed by one, seen by the other, at any depth.

use crate::common::lab::names;
use crate::common::{Errno, Lab, ranked, sys};
use crate::{exists, read, soon, tree, two, write};

#[test]
fn a_new_tree() {
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(3));
    assert!(!exists(&two.path("a")));
    std::fs::create_dir_all(one.path("a/b/c/d")).unwrap();
    for i in 0..6 {
        write(&one.path("a/b/c/d").join(ranked(i, i)), format!("{i}"));
    }
    for i in 0..6 {
        assert_eq!(read(&two.path("a/b/c/d").join(ranked(i, i))), Ok(format!("{i}").into_bytes()));
    }
    assert_eq!(tree(two.point()), tree(one.point()));
    // And into what the other has made.
    write(&two.path("a/b/c/of-two"), "2");
    assert_eq!(read(&one.path("a/b/c/of-two")), Ok(b"2".to_vec()));
    sys::mkdir(two.path("a/b/e"), 0o700).unwrap();
    assert_eq!(sys::lstat(one.path("a/b/e")).unwrap().st_mode & 0o7777, 0o700);
}

#[test]
fn a_directory_that_is_renamed_is_not_followed() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let (one, two) = two(&lab, &b);
    std::fs::create_dir_all(one.path("a/b/c")).unwrap();
    std::fs::create_dir_all(one.path("x/y")).unwrap();
    for i in 0..6 {
        write(&one.path("a/b/c").join(ranked(i, i)), format!("{i}"));
        // The other has it all open.
        assert_eq!(read(&two.path("a/b/c").join(ranked(i, i))), Ok(format!("{i}").into_bytes()));
    }
    sys::rename(one.path("a/b"), one.path("x/y/z")).unwrap();
    for i in 0..6 {
        let text = Ok(format!("{i}").into_bytes());
        assert_eq!(read(&two.path("x/y/z/c").join(ranked(i, i))), text, "at its new place at once");
        soon(Err(libc::ENOENT), "the old place", || read(&two.path("a/b/c").join(ranked(i, i))));
    }
    soon(tree(one.point()), "the same tree", || tree(two.point()));
    // A new directory of the old name is another directory.
    std::fs::create_dir_all(one.path("a/b/c")).unwrap();
    write(&one.path("a/b/c/new"), "new");
    assert_eq!(read(&two.path("a/b/c/new")), Ok(b"new".to_vec()));
    soon(vec!["new".to_owned()], "only what is in it", || names(&two.path("a/b/c")));
    write(&two.path("a/b/c/from-two"), "2");
    assert_eq!(names(&one.path("x/y/z/c")).len(), 6, "nothing went to where the old one is now");
    assert_eq!(names(&one.path("a/b/c")), ["from-two", "new"]);
}

#[test]
fn a_directory_that_is_replaced_under_its_name() {
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(2));
    sys::mkdir(one.path("d"), 0o755).unwrap();
    write(&one.path("d/old"), "old");
    assert_eq!(read(&two.path("d/old")), Ok(b"old".to_vec()));
    sys::rename(one.path("d"), one.path("away")).unwrap();
    sys::mkdir(one.path("d"), 0o755).unwrap();
    write(&one.path("d/new"), "new");
    soon(vec!["new".to_owned()], "the new directory", || names(&two.path("d")));
    soon(Err(libc::ENOENT), "the old one's file", || read(&two.path("d/old")));
    assert_eq!(read(&two.path("d/new")), Ok(b"new".to_vec()));
    assert_eq!(read(&two.path("away/old")), Ok(b"old".to_vec()));
    // A file in the place of a directory, and the other way.
    std::fs::remove_dir_all(one.path("d")).unwrap();
    write(&one.path("d"), "a file now");
    soon(Ok(b"a file now".to_vec()), "a file", || read(&two.path("d")));
    sys::unlink(one.path("d")).unwrap();
    sys::mkdir(one.path("d"), 0o755).unwrap();
    soon(true, "a directory", || two.path("d").is_dir());
}

#[test]
fn removing_directories() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let (one, two) = two(&lab, &b);
    std::fs::create_dir_all(one.path("d/sub")).unwrap();
    for i in 0..3 {
        write(&one.path("d").join(ranked(i, i)), "x");
        assert!(exists(&two.path("d").join(ranked(i, i))));
    }
    std::fs::remove_dir_all(two.path("d")).unwrap();
    soon(false, "removed", || exists(&one.path("d")));
    assert!(b.iter().all(|b| !exists(&b.join("d"))));
    // Somebody else's file keeps it, and what somebody else has removed doesn't.
    sys::mkdir(one.path("e"), 0o755).unwrap();
    assert!(exists(&two.path("e")));
    for i in 0..3 {
        write(&two.path("e").join(ranked(i, i)), "x");
    }
    assert_eq!(sys::rmdir(one.path("e")), Err(Errno::ENOTEMPTY));
    assert_eq!(names(&one.path("e")).len(), 3, "and nothing of it is gone");
    for i in 0..3 {
        sys::unlink(one.path("e").join(ranked(i, i))).unwrap();
    }
    assert_eq!(sys::rmdir(two.path("e")), Ok(()), "the other knows of its files");
    assert_eq!(sys::rmdir(one.path("e")), Err(Errno::ENOENT), "gone already");
    // The same for a rename onto it.
    for dir in ["from", "to"] {
        sys::mkdir(one.path(dir), 0o755).unwrap();
        assert!(exists(&two.path(dir)));
    }
    write(&two.path("to/f"), "x");
    assert_eq!(sys::rename(one.path("from"), one.path("to")), Err(Errno::ENOTEMPTY));
    sys::unlink(one.path("to/f")).unwrap();
    assert_eq!(sys::rename(two.path("from"), two.path("to")), Ok(()));
    soon(false, "renamed", || exists(&one.path("from")));
}

#[test]
fn what_was_removed_does_not_come_back() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let (one, two) = two(&lab, &b);
    for round in 0..10 {
        let dir = format!("d{round}");
        std::fs::create_dir_all(one.path(&dir).join("in")).unwrap();
        write(&one.path(&dir).join("in/f"), "x");
        assert!(exists(&two.path(&dir).join("in/f")));
        std::fs::remove_dir_all(one.path(&dir)).unwrap();
        // The other may still take the directory for there, and wants a file in it, on any backing.
        for i in 0..3 {
            let made = sys::create(two.path(&dir).join("in").join(ranked(i, i))).map(drop);
            assert_eq!(made, Err(Errno::ENOENT));
        }
        assert!(b.iter().all(|b| !exists(&b.join(&dir))), "round {round}");
    }
}

#[test]
fn who_is_in_a_directory_that_moves_can_go_on() {
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(1));
    sys::mkdir(one.path("d"), 0o755).unwrap();
    write(&one.path("d/f"), "x");
    assert!(exists(&two.path("d/f")));
    let fd = sys::open(two.path("d"), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    sys::rename(one.path("d"), one.path("e")).unwrap();
    soon(false, "the old name", || exists(&two.path("d")));
    // Not where it was: what is asked of the descriptor is answered or refused, and never another directory's.
    sys::mkdir(one.path("d"), 0o755).unwrap();
    write(&one.path("d/other"), "x");
    assert!(exists(&two.path("d/other")));
    use std::os::fd::AsRawFd;
    let by_fd = format!("/proc/self/fd/{}/other", fd.as_raw_fd());
    assert!(matches!(sys::lstat(&by_fd).map(drop), Err(Errno::ESTALE | Errno::ENOENT)));
    assert_eq!(read(&two.path("e/f")), Ok(b"x".to_vec()));
}
