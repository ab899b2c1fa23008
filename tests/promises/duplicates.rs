//! One path on several backings: the newest copy is the file, the others are shadows that go
//! with it. None of them may ever come back, also not after a restart.

use std::path::{Path, PathBuf};

use super::{put, text};
use crate::common::lab::names;
use crate::common::{Errno, Lab, Mount, ranked, sys};

/// Three backings with the file `x` on each, the copy on `newest` made last.
fn three(lab: &Lab, newest: usize) -> Vec<PathBuf> {
    let b = lab.dirs(3);
    let order: Vec<usize> = (0..3).filter(|i| *i != newest).chain([newest]).collect();
    for i in order {
        // ctime decides, so each copy has to be made at a later tick of the clock.
        sys::tick();
        put(&b[i], "x", format!("copy {i}"));
        // What mtime says is another matter.
        sys::utimens(b[i].join("x"), (1000, 0), (9000 - 1000 * i as i64, 0), 0).unwrap();
    }
    b
}

fn shadows(mount: &Mount) -> u64 {
    mount.status()["index"]["shadows"].as_u64().unwrap()
}

fn gone_everywhere(backings: &[PathBuf], name: &str) {
    assert_eq!(crate::common::mount::holders(backings, Path::new(name)), [0usize; 0], "{name} is left");
}

#[test]
fn the_newest_copy_is_the_file() {
    for newest in 0..3 {
        let lab = Lab::new();
        let b = three(&lab, newest);
        let mount = lab.mount(&b).start();
        assert_eq!(text(&mount.path("x")), format!("copy {newest}"));
        assert_eq!(names(mount.point()), ["x"], "listed once");
        assert_eq!(shadows(&mount), 2);
        assert_eq!(mount.status()["index"]["files"].as_u64(), Some(1));
        let again = mount.restart();
        assert_eq!(text(&again.path("x")), format!("copy {newest}"), "the same after a restart");
    }
}

#[test]
fn unlink_removes_the_shadows() {
    for newest in 0..3 {
        let lab = Lab::new();
        let b = three(&lab, newest);
        let mount = lab.mount(&b).start();
        sys::unlink(mount.path("x")).unwrap();
        assert_eq!(sys::lstat(mount.path("x")).map(drop), Err(Errno::ENOENT));
        gone_everywhere(&b, "x");
        assert_eq!(shadows(&mount), 0);
        let again = mount.restart();
        assert_eq!(sys::lstat(again.path("x")).map(drop), Err(Errno::ENOENT), "none comes back");
    }
}

#[test]
fn rename_takes_the_file_and_removes_the_shadows() {
    for newest in 0..3 {
        let lab = Lab::new();
        let b = three(&lab, newest);
        let mount = lab.mount(&b).start();
        sys::rename(mount.path("x"), mount.path("y")).unwrap();
        assert_eq!(text(&mount.path("y")), format!("copy {newest}"));
        gone_everywhere(&b, "x");
        assert_eq!(mount.holders("y"), [newest], "the data stayed where it was");
        let again = mount.restart();
        assert_eq!(names(again.point()), ["y"], "the old name does not come back");
        assert_eq!(text(&again.path("y")), format!("copy {newest}"));
    }
}

#[test]
fn rename_onto_a_name_with_shadows_replaces_all_of_them() {
    let lab = Lab::new();
    let b = three(&lab, 2);
    put(&b[0], "z", "the new one");
    let mount = lab.mount(&b).start();
    sys::rename(mount.path("z"), mount.path("x")).unwrap();
    assert_eq!(text(&mount.path("x")), "the new one");
    assert_eq!(mount.holders("x"), [0]);
    let again = mount.restart();
    assert_eq!(text(&again.path("x")), "the new one", "no older copy wins after a restart");
}

#[test]
fn writing_and_truncating_keep_the_file_the_newest() {
    let lab = Lab::new();
    let b = three(&lab, 0);
    let mount = lab.mount(&b).start();
    std::fs::write(mount.path("x"), "written anew").unwrap();
    assert_eq!(text(&b[0].join("x")), "written anew", "into the copy that is the file");
    let again = mount.restart();
    assert_eq!(text(&again.path("x")), "written anew");
    sys::unlink(again.path("x")).unwrap();
    std::fs::write(again.path("x"), "recreated").unwrap();
    assert_eq!(again.holders("x").len(), 1);
    let third = again.restart();
    assert_eq!(text(&third.path("x")), "recreated");
}

#[test]
fn exchange_and_link_with_shadows() {
    let lab = Lab::new();
    let b = three(&lab, 1);
    put(&b[1], "other", "other");
    let mount = lab.mount(&b).start();
    sys::link(mount.path("x"), mount.path("l")).unwrap();
    assert_eq!(text(&mount.path("l")), "copy 1");
    sys::renameat2(mount.path("x"), mount.path("other"), libc::RENAME_EXCHANGE).unwrap();
    let check = |mount: &Mount| {
        assert_eq!(text(&mount.path("x")), "other");
        assert_eq!(text(&mount.path("other")), "copy 1");
        assert_eq!(text(&mount.path("l")), "copy 1");
    };
    check(&mount);
    check(&mount.restart());
}

#[test]
fn a_copy_that_appears_behind_the_mount_is_a_shadow_from_the_next_start() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    std::fs::write(mount.path(ranked(0, 1)), "the file").unwrap();
    sys::tick();
    put(&b[1], &ranked(0, 1), "a stray copy");
    assert_eq!(text(&mount.path(ranked(0, 1))), "the file", "an indexed name is not looked for again");
    let again = mount.restart();
    assert_eq!(text(&again.path(ranked(0, 1))), "a stray copy", "the newest, once both are known");
    assert_eq!(shadows(&again), 1);
    sys::unlink(again.path(ranked(0, 1))).unwrap();
    assert_eq!(sys::lstat(again.path(ranked(0, 1))).map(drop), Err(Errno::ENOENT));
    gone_everywhere(&b, &ranked(0, 1));
}

#[test]
fn a_file_and_a_directory_of_one_name() {
    // Nobody can say which is right; both stay on their backings, one is shown, and nothing breaks.
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[0], "both", "a file");
    put(&b[1], "both/inside", "a directory");
    let mount = lab.mount(&b).start();
    assert_eq!(names(mount.point()), ["both"], "listed once");
    let kind = sys::lstat(mount.path("both")).unwrap().st_mode & libc::S_IFMT;
    match kind {
        libc::S_IFDIR => assert_eq!(text(&mount.path("both/inside")), "a directory"),
        _ => assert_eq!(text(&mount.path("both")), "a file"),
    }
    std::fs::write(mount.path("beside"), "x").unwrap();
    drop(mount);
    assert_eq!(text(&b[0].join("both")), "a file");
    assert_eq!(text(&b[1].join("both/inside")), "a directory");
}
