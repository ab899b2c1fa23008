//! Directories are merged: one exists if it exists on any backing, is removed from all, and takes
//! what is in it along wherever that lies.

use super::{put, text};
use crate::common::lab::names;
use crate::common::{Errno, Lab, ranked, sys};

#[test]
fn entries_of_all_backings_are_one_listing() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    for (i, backing) in b.iter().enumerate() {
        put(backing, &format!("d/f{i}"), "x");
        put(backing, &format!("d/sub/g{i}"), "x");
    }
    std::fs::create_dir(b[2].join("d/empty")).unwrap();
    let mount = lab.mount(&b).start();
    assert_eq!(names(&mount.path("d")), ["empty", "f0", "f1", "f2", "sub"]);
    assert_eq!(names(&mount.path("d/sub")), ["g0", "g1", "g2"]);
}

#[test]
fn removed_only_when_empty_on_all_and_then_from_all() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    for (i, backing) in b.iter().enumerate() {
        put(backing, &format!("d/f{i}"), "x");
    }
    let mount = lab.mount(&b).start();
    for i in [1, 0, 2] {
        assert_eq!(sys::rmdir(mount.path("d")), Err(Errno::ENOTEMPTY));
        assert!(b.iter().all(|b| b.join("d").is_dir()), "a refused rmdir removes nothing");
        sys::unlink(mount.path(format!("d/f{i}"))).unwrap();
    }
    assert_eq!(sys::rmdir(mount.path("d")), Ok(()));
    assert!(b.iter().all(|b| !b.join("d").exists()), "gone from every backing");
    assert_eq!(names(mount.restart().point()), Vec::<String>::new());
}

#[test]
fn a_directory_follows_where_files_land() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    sys::umask(0);
    sys::mkdir(mount.path("d"), 0o2750).unwrap();
    sys::chown(mount.path("d"), 21, 22).unwrap();
    sys::chmod(mount.path("d"), 0o2750).unwrap();
    assert_eq!(mount.holders("d").len(), 1, "made on one backing");
    for (i, backing) in b.iter().enumerate() {
        std::fs::write(mount.path("d").join(ranked(i, i)), "x").unwrap();
        assert_eq!(mount.holder(format!("d/{}", ranked(i, i))), i);
        let st = sys::lstat(backing.join("d")).unwrap();
        let owner = (st.st_mode & 0o7777, st.st_uid, st.st_gid);
        assert_eq!(owner, (0o2750, 21, 22), "the directory on backing {i} is like the first");
    }
    assert_eq!(mount.holders("d"), [0, 1, 2]);
}

#[test]
fn a_rename_moves_all_parts() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    for (i, backing) in b.iter().enumerate() {
        put(backing, &format!("from/sub/f{i}"), format!("of {i}"));
    }
    put(&b[1], "parent/x", "x");
    let mount = lab.mount(&b).start();
    sys::rename(mount.path("from"), mount.path("parent/to")).unwrap();
    let check = |point: &std::path::Path| {
        assert_eq!(names(point), ["parent"]);
        for i in 0..3 {
            assert_eq!(text(&point.join(format!("parent/to/sub/f{i}"))), format!("of {i}"));
        }
    };
    check(mount.point());
    for (i, backing) in b.iter().enumerate() {
        assert!(!backing.join("from").exists(), "no part of the old name is left on backing {i}");
        assert_eq!(
            text(&backing.join(format!("parent/to/sub/f{i}"))),
            format!("of {i}"),
            "data stays on backing {i}"
        );
    }
    check(mount.restart().point());
}

#[test]
fn a_rename_onto_an_empty_directory_that_is_on_other_backings() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    put(&b[0], "from/f", "x");
    std::fs::create_dir(b[1].join("to")).unwrap();
    std::fs::create_dir(b[2].join("to")).unwrap();
    put(&b[2], "full/y", "y");
    let mount = lab.mount(&b).start();
    assert_eq!(sys::rename(mount.path("from"), mount.path("full")), Err(Errno::ENOTEMPTY));
    assert_eq!(sys::rename(mount.path("from"), mount.path("to")), Ok(()));
    assert_eq!(names(&mount.path("to")), ["f"]);
    let again = mount.restart();
    assert_eq!(names(again.point()), ["full", "to"]);
    assert_eq!(text(&again.path("to/f")), "x");
}

#[test]
fn hidden_entries_do_not_keep_a_directory_alive() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[0], "d/.kvfs-tmp", "left by kvfs");
    std::fs::create_dir(b[1].join("d")).unwrap();
    let mount = lab.mount(&b).start();
    assert_eq!(names(&mount.path("d")), Vec::<String>::new());
    assert_eq!(sys::rmdir(mount.path("d")), Ok(()), "empty for a client, so it can be removed");
    assert!(b.iter().all(|b| !b.join("d").exists()));
}

#[test]
fn a_removed_directory_does_not_come_back_with_new_files() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    for round in 0..20 {
        let d = mount.path("d");
        sys::mkdir(&d, 0o755).unwrap();
        for i in 0..4 {
            std::fs::write(d.join(ranked(i, i)), format!("{round}")).unwrap();
        }
        std::fs::remove_dir_all(&d).unwrap();
        assert_eq!(mount.holders("d"), [0usize; 0], "round {round}");
    }
}
