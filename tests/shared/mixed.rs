//! Sets of backings of which some are shared, and what that costs those that aren't.

use std::path::PathBuf;

use crate::common::lab::names;
use crate::common::{Errno, Lab, Mount, ranked, sys};
use crate::{exists, mount_at, read, shared, soon, write};

/// Two mounts, each with a backing of its own (0) and one that both have (1).
fn two_mixed(lab: &Lab, args: &[&str]) -> (Mount, Mount) {
    let both = lab.dir("both");
    let start = |point: &str| {
        let mut set = vec![lab.dir(&format!("own-{point}"))];
        set.extend(shared(std::slice::from_ref(&both)));
        args.iter().fold(mount_at(lab, point, &set), |b, arg| b.arg(*arg)).start()
    };
    (start("one"), start("two"))
}

/// How many lookups 50 stats of a file cost.
fn cost(mount: &Mount, name: &str) -> u64 {
    let path = mount.path(name);
    sys::lstat(&path).unwrap();
    let asked = || mount.op("lookup");
    let before = asked();
    for _ in 0..50 {
        sys::lstat(&path).unwrap();
    }
    asked() - before
}

#[test]
fn local_files_are_ones_own_and_shared_ones_everybodys() {
    let lab = Lab::new();
    let (one, two) = two_mixed(&lab, &[]);
    sys::mkdir(one.path("d"), 0o755).unwrap();
    write(&one.path("d").join(ranked(0, 0)), "local");
    write(&one.path("d").join(ranked(1, 1)), "shared");
    assert_eq!(read(&two.path("d").join(ranked(1, 1))), Ok(b"shared".to_vec()));
    assert_eq!(read(&two.path("d").join(ranked(0, 0))), Err(libc::ENOENT));
    assert_eq!(names(&two.path("d")), [ranked(1, 1)]);
    // The directory is renamed by the other: what is local stays, under the name that it had here.
    sys::rename(two.path("d"), two.path("e")).unwrap();
    soon(Err(libc::ENOENT), "moved", || read(&one.path("d").join(ranked(1, 1))));
    assert_eq!(read(&one.path("e").join(ranked(1, 1))), Ok(b"shared".to_vec()));
    assert_eq!(read(&one.path("d").join(ranked(0, 0))), Ok(b"local".to_vec()));
    soon(vec![ranked(0, 0)], "what is left", || names(&one.path("d")));
    assert_eq!(names(&one.path("e")), [ranked(1, 1)]);
    // It takes part again when it's there again.
    sys::mkdir(two.path("d"), 0o755).unwrap();
    write(&two.path("d").join(ranked(1, 2)), "again");
    assert_eq!(read(&one.path("d").join(ranked(1, 2))), Ok(b"again".to_vec()));
    assert_eq!(names(&one.path("d")).len(), 2);
    assert_eq!(sys::rmdir(one.path("d")), Err(Errno::ENOTEMPTY));
    // Removed by the other, as far as it's the other's.
    std::fs::remove_dir_all(two.path("d")).unwrap();
    soon(Err(libc::ENOENT), "removed", || read(&one.path("d").join(ranked(1, 2))));
    assert_eq!(read(&one.path("d").join(ranked(0, 0))), Ok(b"local".to_vec()));
    std::fs::remove_dir_all(one.path("d")).unwrap();
    assert!(!exists(&one.path("d")));
}

#[test]
fn the_kernel_keeps_what_is_local() {
    let lab = Lab::new();
    let (one, _two) = two_mixed(&lab, &["--shared-ttl", "0"]);
    write(&one.path(ranked(0, 0)), "local");
    write(&one.path(ranked(1, 1)), "shared");
    assert!(cost(&one, &ranked(0, 0)) < 10, "a local file's name and attributes are kept");
    assert!(cost(&one, &ranked(1, 1)) >= 50, "a shared one's are asked for each time");
}

#[test]
fn a_longer_time_to_live_is_kept() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let one = mount_at(&lab, "one", &shared(&b)).arg("--shared-ttl").arg("3600").start();
    write(&one.path("f"), "x");
    assert!(cost(&one, "f") < 10);
    assert!(!exists(&one.path("miss")));
    write(&b[0].join("miss"), "x");
    assert_eq!(read(&one.path("miss")), Ok(b"x".to_vec()), "a miss is never kept");
    assert_eq!(names(one.point()), ["f", "miss"]);
    write(&b[1].join("more"), "x");
    assert_eq!(names(one.point()), ["f", "miss", "more"], "nor is a listing");
}

#[test]
fn without_shared_backings_nothing_is_asked_twice() {
    let lab = Lab::new();
    // Else not everybody is shown the same listing.
    let one = mount_at(&lab, "one", &lab.dirs(2)).arg("--publish").arg("on-create").start();
    sys::mkdir(one.path("d"), 0o755).unwrap();
    write(&one.path("d/f"), "x");
    assert!(cost(&one, "d/f") < 10);
    assert_eq!(names(&one.path("d")), ["f"]);
    let asked = |m: &Mount| m.op("readdir") + m.op("readdirplus") + m.op("lookup") + m.op("getattr");
    let before = asked(&one);
    for _ in 0..50 {
        assert_eq!(names(&one.path("d")), ["f"]);
    }
    assert!(asked(&one) - before < 10, "the kernel keeps the listing");
}

#[test]
fn exclusive_means_the_local_ones() {
    let lab = Lab::new();
    let (one, two) = two_mixed(&lab, &["--exclusive"]);
    let own = lab.path("own-one");
    write(&own.join("behind"), "x");
    assert!(!exists(&one.path("behind")), "a local backing isn't asked for what the index doesn't have");
    for i in 0..5 {
        let name = ranked(1, i);
        assert!(!exists(&one.path(&name)));
        write(&two.path(&name), "x");
        assert_eq!(read(&one.path(&name)), Ok(b"x".to_vec()), "a shared one is, each time");
    }
}

#[test]
fn a_rule_that_somebody_else_sets_is_obeyed_soon() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let (one, two) = crate::two(&lab, &b);
    sys::mkdir(one.path("d"), 0o755).unwrap();
    write(&two.path("d").join(ranked(0, 0)), "x");
    sys::setxattr(one.path("d"), "user.kvfs.placement", b"hash", 0).unwrap();
    // By the mount's own policy all of these go to the first backing.
    let n = std::cell::Cell::new(1);
    soon(true, "hashed", || {
        let name = format!("d/{}", ranked(0, n.replace(n.get() + 1)));
        write(&two.path(&name), "x");
        !exists(&b[0].join(&name))
    });
}

#[test]
fn new_directories_of_others_below_ones_own() {
    let lab = Lab::new();
    let (one, two) = two_mixed(&lab, &[]);
    // Local to one, as deep as it goes; the other makes the same path.
    let own: PathBuf = lab.path("own-one").join("a/b/c");
    std::fs::create_dir_all(&own).unwrap();
    write(&own.join("local"), "1");
    assert_eq!(names(&one.path("a/b/c")), ["local"]);
    std::fs::create_dir_all(two.path("a/b/c")).unwrap();
    for i in 0..4 {
        write(&two.path("a/b/c").join(ranked(1, i)), "2");
    }
    assert_eq!(names(&one.path("a/b/c")).len(), 5, "a listing finds what has joined");
    assert_eq!(read(&one.path("a/b/c").join(ranked(1, 3))), Ok(b"2".to_vec()));
}
