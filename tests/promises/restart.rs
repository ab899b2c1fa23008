//! Nothing about a file is kept only in kvfs: after a restart everything is as it was, and
//! without kvfs every byte is a plain file.

use super::text;
use crate::common::{Errno, Lab, pattern, ranked, sys, tree};

#[test]
fn everything_is_still_served() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    for i in 0..40 {
        let dir = mount.path(format!("d{}/e{}", i % 3, i % 5));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(ranked(i, i)), pattern(i as u64, 1000 * i)).unwrap();
    }
    sys::symlink("d0", mount.path("link")).unwrap();
    sys::mknod(mount.path("fifo"), libc::S_IFIFO | 0o640, 0).unwrap();
    sys::link(mount.path("d0/e0").join(ranked(0, 0)), mount.path("hard")).unwrap();
    sys::chmod(mount.path("d1"), 0o1770).unwrap();
    sys::setxattr(mount.path("hard"), "user.k", b"v", 0).unwrap();
    sys::rename(mount.path("d2"), mount.path("renamed")).unwrap();
    let before = tree::snapshot(mount.point());
    let placed: Vec<_> = before.keys().map(|n| mount.holders(n)).collect();
    let index = mount.status()["index"].clone();

    let again = mount.restart();
    assert_eq!(tree::snapshot(again.point()), before);
    assert_eq!(before.keys().map(|n| again.holders(n)).collect::<Vec<_>>(), placed, "no file moved");
    for key in ["files", "dirs", "shadows"] {
        assert_eq!(
            again.status()["index"][key],
            index[key],
            "index.{key} from a scan as from the work itself"
        );
    }
    let mut builder = again.stop();
    builder.backings.reverse();
    assert_eq!(tree::snapshot(builder.start().point()), before, "in another order of backings");
}

#[test]
fn node_numbers_stay() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    std::fs::create_dir(mount.path("d")).unwrap();
    for i in 0..4 {
        std::fs::write(mount.path("d").join(ranked(i, i)), "x").unwrap();
    }
    let numbers = |mount: &crate::common::Mount| -> Vec<u64> {
        let files = (0..4).map(|i| sys::lstat(mount.path("d").join(ranked(i, i))).unwrap().st_ino);
        files.chain([sys::lstat(mount.point()).unwrap().st_ino]).collect()
    };
    let before = numbers(&mount);
    assert_eq!(before.last(), Some(&1), "the root is 1");
    assert_eq!(numbers(&mount.restart()), before);
}

#[test]
fn what_was_removed_stays_removed() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).start();
    for i in 0..30 {
        std::fs::write(mount.path(ranked(i, i)), "x").unwrap();
    }
    for i in 0..10 {
        sys::unlink(mount.path(ranked(i, i))).unwrap();
        sys::rename(mount.path(ranked(10 + i, 10 + i)), mount.path(ranked(20 + i, 20 + i))).unwrap();
    }
    let again = mount.restart();
    assert_eq!(crate::common::lab::names(again.point()).len(), 10);
    assert_eq!(again.status()["index"]["shadows"].as_u64(), Some(0));
}

#[test]
fn synced_data_is_on_the_backing() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let fd = sys::create(mount.path("f")).unwrap();
    sys::write(&fd, &pattern(3, 1 << 20)).unwrap();
    sys::fsync(&fd).unwrap();
    let backing = mount.backings()[mount.holder("f")].clone();
    // Nothing is held back in the daemon: kill it and the file is whole.
    mount.signal(libc::SIGKILL);
    let point = mount.point().to_path_buf();
    drop(fd);
    mount.ended();
    assert_eq!(std::fs::read(backing.join("f")).unwrap(), pattern(3, 1 << 20));
    assert_eq!(sys::lstat(point.join("f")).map(drop), Err(Errno::ENOTCONN));
}

#[test]
fn a_backing_left_out_takes_its_files_and_brings_them_back() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    for i in 0..3 {
        std::fs::write(mount.path(ranked(i, i)), format!("of {i}")).unwrap();
    }
    let mut builder = mount.stop();
    builder.backings = vec![b[0].clone(), b[2].clone()];
    let mount = builder.start();
    assert_eq!(sys::lstat(mount.path(ranked(1, 1))).map(drop), Err(Errno::ENOENT));
    assert_eq!(text(&mount.path(ranked(2, 2))), "of 2");
    let mut builder = mount.stop();
    builder.backings = b;
    let mount = builder.start();
    for i in 0..3 {
        assert_eq!(text(&mount.path(ranked(i, i))), format!("of {i}"));
    }
}
