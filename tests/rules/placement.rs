//! `user.kvfs.placement` on a directory.

use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, Lab, Mount, ranked, sys};
use crate::{PLACEMENT, rule};

/// Hashes depend on the backings' markers, which are new in every run: with this many files, one of three
/// backings gets none in one run of 10^10.
const FILES: usize = 64;

/// The backings of files whose names ask for backing 0 under by_gpu.
fn spread(mount: &Mount, dir: &str, tag: usize) -> Vec<usize> {
    let mut on: Vec<usize> = (0..FILES)
        .map(|i| {
            let name = format!("{dir}/{}", ranked(0, tag * FILES + i));
            std::fs::write(mount.path(&name), "x").unwrap();
            mount.holder(&name)
        })
        .collect();
    on.sort_unstable();
    on.dedup();
    on
}

#[test]
fn the_nearest_rule_above_decides() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).start();
    for dir in ["d", "d/sub", "d/sub/deep", "other"] {
        sys::mkdir(mount.path(dir), 0o755).unwrap();
    }
    assert_eq!(spread(&mount, "d/sub", 0), [0], "the mount's own policy, by_gpu");
    sys::setxattr(mount.path("d"), PLACEMENT, b"hash", 0).unwrap();
    assert_eq!(spread(&mount, "d", 0), [0, 1, 2], "hashed");
    assert_eq!(spread(&mount, "d/sub", 1), [0, 1, 2], "also below");
    assert_eq!(spread(&mount, "d/sub/deep", 0), [0, 1, 2], "and further below");
    assert_eq!(spread(&mount, "other", 0), [0], "but not beside");
    sys::setxattr(mount.path("d/sub"), PLACEMENT, b"by_gpu", 0).unwrap();
    assert_eq!(spread(&mount, "d/sub", 2), [0], "a rule further in wins");
    assert_eq!(spread(&mount, "d/sub/deep", 1), [0], "and holds below");
    assert_eq!(spread(&mount, "d", 1), [0, 1, 2]);
    assert_eq!(rule(&mount, "d").unwrap()["placement"], "hash");
    sys::removexattr(mount.path("d/sub"), PLACEMENT).unwrap();
    assert_eq!(spread(&mount, "d/sub/deep", 2), [0, 1, 2], "back to the rule above");
    sys::removexattr(mount.path("d"), PLACEMENT).unwrap();
    assert_eq!(spread(&mount, "d/sub/deep", 3), [0], "back to the mount's");
    assert!(rule(&mount, "d").is_none());
    sys::setxattr(mount.point(), PLACEMENT, b"hash", 0).unwrap();
    assert_eq!(spread(&mount, "other", 1), [0, 1, 2], "the root's rule is everybody's");
}

#[test]
fn a_directory_that_moves_takes_its_rule_along_and_leaves_those_above() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).start();
    for dir in ["hashed", "hashed/in", "plain", "own"] {
        sys::mkdir(mount.path(dir), 0o755).unwrap();
    }
    sys::setxattr(mount.path("hashed"), PLACEMENT, b"hash", 0).unwrap();
    sys::setxattr(mount.path("own"), PLACEMENT, b"hash", 0).unwrap();
    assert_eq!(spread(&mount, "hashed/in", 0), [0, 1, 2]);
    sys::rename(mount.path("hashed/in"), mount.path("plain/in")).unwrap();
    assert_eq!(spread(&mount, "plain/in", 1), [0], "the rule above stayed behind");
    assert_eq!(spread(&mount, "own", 0), [0, 1, 2]);
    sys::rename(mount.path("own"), mount.path("plain/own")).unwrap();
    assert_eq!(spread(&mount, "plain/own", 1), [0, 1, 2], "its own came along");
    // Into a tree whose rules nobody has looked for yet.
    for dir in ["p", "p/q", "m"] {
        sys::mkdir(mount.path(dir), 0o755).unwrap();
    }
    sys::setxattr(mount.path("p/q"), PLACEMENT, b"hash", 0).unwrap();
    let mount = mount.restart();
    assert_eq!(spread(&mount, "m", 0), [0]);
    sys::rename(mount.path("m"), mount.path("p/q/m")).unwrap();
    assert_eq!(spread(&mount, "p/q/m", 1), [0, 1, 2], "what is above it now decides");
}

#[test]
fn a_rule_is_on_every_backing_and_survives() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    sys::mkdir(mount.path("d"), 0o755).unwrap();
    sys::mkdir(mount.path("d/sub"), 0o755).unwrap();
    sys::setxattr(mount.path("d"), PLACEMENT, b"hash", 0).unwrap();
    assert!(mount.holders("d").len() < 3, "not every backing has it when the rule is set");
    assert_eq!(spread(&mount, "d/sub", 0), [0, 1, 2]);
    for backing in &b {
        let copy = sys::getxattr(backing.join("d"), PLACEMENT);
        assert_eq!(copy.as_deref(), Ok(&b"hash"[..]), "{}", backing.display());
        assert_eq!(sys::getxattr(backing.join("d/sub"), PLACEMENT), Err(Errno::ENODATA));
    }
    let mount = mount.restart();
    assert_eq!(sys::getxattr(mount.path("d"), PLACEMENT).as_deref(), Ok(&b"hash"[..]));
    assert_eq!(spread(&mount, "d/sub", 1), [0, 1, 2], "found again two levels above the new file");
    // With the other backings first, too: each has it.
    let reordered: Vec<_> = b.iter().rev().cloned().collect();
    drop(mount);
    let mount = lab.mount(&reordered).start();
    assert_eq!(spread(&mount, "d/sub", 2), [0, 1, 2]);
    sys::removexattr(mount.path("d"), PLACEMENT).unwrap();
    for backing in &b {
        assert_eq!(sys::getxattr(backing.join("d"), PLACEMENT), Err(Errno::ENODATA));
    }
}

#[test]
fn what_is_no_policy_is_refused_and_the_log_says_why() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    sys::mkdir(mount.path("d"), 0o755).unwrap();
    for bad in [&b"by-gpu"[..], b"", b"hash\n", &[0xff]] {
        assert_eq!(sys::setxattr(mount.path("d"), PLACEMENT, bad, 0), Err(Errno::EINVAL), "{bad:?}");
    }
    assert!(mount.story().contains("did you mean \"by_gpu\""), "{}", mount.story());
    assert_eq!(sys::getxattr(mount.path("d"), PLACEMENT), Err(Errno::ENODATA));
    assert_eq!(sys::removexattr(mount.path("d"), PLACEMENT), Err(Errno::ENODATA));
    // One that got there behind the mount's back doesn't count, and is named.
    let on = mount.holder("d");
    sys::setxattr(mount.backings()[on].join("d"), PLACEMENT, b"nonsense", 0).unwrap();
    let mount = mount.restart();
    std::fs::write(mount.path("d/f"), "x").unwrap();
    assert!(mount.story().contains("nonsense"), "{}", mount.story());
}

#[test]
fn rules_are_attributes_like_others_and_on_files_there_are_none() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let dir = mount.path("d");
    sys::mkdir(&dir, 0o755).unwrap();
    sys::setxattr(&dir, PLACEMENT, b"hash", libc::XATTR_CREATE).unwrap();
    assert_eq!(sys::setxattr(&dir, PLACEMENT, b"hash", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(sys::listxattr(&dir).unwrap(), [PLACEMENT], "listed: a copy keeps it");
    std::fs::write(dir.join("f"), "x").unwrap();
    assert_eq!(sys::setxattr(dir.join("f"), PLACEMENT, b"hash", 0), Err(Errno::EPERM));
    let why = String::from_utf8(sys::getxattr(dir.join("f"), PLACEMENT).unwrap()).unwrap();
    assert!(why.starts_with("hash:"), "a file's says what placed it: {why}");
    assert_eq!(sys::setxattr(&dir, "user.kvfs.backings", b"x", 0), Err(Errno::EPERM));
    // Who may write the directory may say where its files go.
    sys::chown(&dir, NOBODY, NOBODY).unwrap();
    as_user(NOBODY, NOBODY, || sys::setxattr(&dir, PLACEMENT, b"by_gpu", 0)).unwrap();
    let stranger = as_user(1234, 1234, || sys::setxattr(&dir, PLACEMENT, b"hash", 0));
    assert_eq!(stranger, Err(Errno::EACCES));
}
