//! `user.kvfs.quota` on a directory.

use std::path::Path;

use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, Lab, Mount, Passthrough, ranked, sys};
use crate::{QUOTA, rule, wait_used, write};

const MIB: usize = 1 << 20;
const M: u64 = 1 << 20;

fn start(lab: &Lab, dirs: &[&str]) -> Mount {
    let mount = lab.mount(&lab.dirs(3)).start();
    for dir in dirs {
        sys::mkdir(mount.path(dir), 0o755).unwrap();
    }
    mount
}

fn set(mount: &Mount, dir: &str, limit: &str) {
    sys::setxattr(mount.path(dir), QUOTA, limit.as_bytes(), 0).unwrap();
}

/// Has the quota know how large files are: so much is promised to one that's being written, and a file counts
/// only a moment after its writer has closed it.
fn prime(mount: &Mount, top: &str, dir: &str, used: u64) {
    let path = mount.path(dir).join("prime");
    write(&path, MIB).unwrap();
    wait_used(mount, top, used + M);
    sys::unlink(&path).unwrap();
    wait_used(mount, top, used);
}

/// Stores chunks of 1 MiB until one is refused; how many there were, and why the last one was.
fn fill(dir: &Path, tag: usize) -> (usize, Errno) {
    for i in 0..100 {
        // All backings are used.
        let path = dir.join(ranked(i, tag * 100 + i));
        if let Err(e) = write(&path, MIB) {
            assert!(!path.exists(), "a refused file isn't there, not even empty");
            return (i, e);
        }
    }
    panic!("100 MiB went into {}", dir.display())
}

#[test]
fn a_full_directory_refuses_new_files_until_there_is_room() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(3)).passthrough(mode).start();
        sys::mkdir(mount.path("t"), 0o755).unwrap();
        sys::mkdir(mount.path("t/in"), 0o755).unwrap();
        set(&mount, "t", "8M");
        prime(&mount, "t", "t/in", 0);
        assert_eq!(fill(&mount.path("t/in"), 0), (8, Errno::EDQUOT), "{mode:?}");
        wait_used(&mount, "t", 8 * M);
        assert_eq!(write(&mount.path("t/one"), 1), Err(Errno::EDQUOT), "the whole tree is full");
        write(&mount.path("outside"), MIB).unwrap();
        sys::mkdir(mount.path("t/more"), 0o755).unwrap();
        sys::symlink("x", mount.path("t/link")).unwrap();
        sys::unlink(mount.path("t/in").join(ranked(3, 3))).unwrap();
        assert_eq!(fill(&mount.path("t"), 1), (1, Errno::EDQUOT), "what was removed is free again");
        assert_eq!(rule(&mount, "t").unwrap()["quota"].as_u64(), Some(8 * M));
        set(&mount, "t", "10M");
        prime(&mount, "t", "t", 8 * M);
        assert_eq!(fill(&mount.path("t"), 2), (2, Errno::EDQUOT), "a new limit counts at once");
        sys::removexattr(mount.path("t"), QUOTA).unwrap();
        write(&mount.path("t/free"), MIB).unwrap();
        assert!(rule(&mount, "t").is_none());
    }
}

#[test]
fn files_that_are_there_are_counted_and_again_after_a_remount() {
    let lab = Lab::new();
    let mount = start(&lab, &["t", "t/a", "t/a/b", "beside"]);
    for (i, dir) in ["t", "t/a", "t/a/b", "beside"].iter().enumerate() {
        write(&mount.path(dir).join(ranked(i, i)), (i + 1) * MIB).unwrap();
    }
    write(&mount.path("t/small"), 1).unwrap();
    set(&mount, "t", "100M");
    wait_used(&mount, "t", 6 * M + 4096);
    let mount = mount.restart();
    // Nobody has asked for anything in it yet.
    wait_used(&mount, "t", 6 * M + 4096);
    assert_eq!(rule(&mount, "t").unwrap()["quota"].as_u64(), Some(100 * M));
    set(&mount, "t", "8M");
    prime(&mount, "t", "t", 6 * M + 4096);
    assert_eq!(fill(&mount.path("t/a"), 7), (2, Errno::EDQUOT));
}

#[test]
fn a_quota_deep_down_is_found_by_the_first_file_made_below_it() {
    let lab = Lab::new();
    let mount = start(&lab, &["a", "a/b", "a/b/c"]);
    set(&mount, "a/b", "4M");
    let mount = mount.restart();
    assert!(rule(&mount, "a/b").is_none(), "not yet looked for so deep");
    prime(&mount, "a/b", "a/b/c", 0);
    assert_eq!(fill(&mount.path("a/b/c"), 0), (4, Errno::EDQUOT));
}

#[test]
fn the_inner_and_the_outer_quota_both_hold() {
    let lab = Lab::new();
    let mount = start(&lab, &["t", "t/in"]);
    set(&mount, "t", "6M");
    set(&mount, "t/in", "4M");
    prime(&mount, "t", "t/in", 0);
    assert_eq!(fill(&mount.path("t/in"), 0), (4, Errno::EDQUOT));
    assert_eq!(fill(&mount.path("t"), 1), (2, Errno::EDQUOT), "what is further in counts further out");
    sys::unlink(mount.path("t/in").join(ranked(0, 0))).unwrap();
    write(&mount.path("t/x"), MIB).unwrap();
    wait_used(&mount, "t", 6 * M);
    assert_eq!(write(&mount.path("t/in/y"), 1), Err(Errno::EDQUOT), "room inside, but none around it");
}

#[test]
fn files_take_their_bytes_along_and_directories_stay() {
    let lab = Lab::new();
    let mount = start(&lab, &["t", "u", "t/dir", "out", "u/dir"]);
    set(&mount, "t", "4M");
    set(&mount, "u", "4M");
    for i in 0..4 {
        write(&mount.path("t").join(ranked(i, i)), MIB).unwrap();
    }
    write(&mount.path("out/f"), MIB).unwrap();
    wait_used(&mount, "t", 4 * M);
    let full = sys::rename(mount.path("out/f"), mount.path("t/f"));
    assert_eq!(full, Err(Errno::EDQUOT), "it doesn't fit");
    assert_eq!(std::fs::read(mount.path("out/f")).unwrap().len(), MIB, "and stays where it was");
    sys::rename(mount.path("t").join(ranked(0, 0)), mount.path("u/f")).unwrap();
    wait_used(&mount, "t", 3 * M);
    wait_used(&mount, "u", M);
    sys::rename(mount.path("out/f"), mount.path("t/f")).unwrap();
    wait_used(&mount, "t", 4 * M);
    // What is replaced makes room.
    write(&mount.path("out/g"), MIB).unwrap();
    sys::rename(mount.path("out/g"), mount.path("t/f")).unwrap();
    wait_used(&mount, "t", 4 * M);
    let exdev = |from: &str, to: &str| {
        assert_eq!(sys::rename(mount.path(from), mount.path(to)), Err(Errno::EXDEV), "{from} to {to}");
        assert!(mount.path(from).is_dir());
    };
    exdev("t/dir", "u/moved");
    exdev("t/dir", "moved");
    exdev("out", "t/out");
    sys::rename(mount.path("t/dir"), mount.path("t/renamed")).unwrap();
    let exchange = |a: &str, b: &str| sys::renameat2(mount.path(a), mount.path(b), libc::RENAME_EXCHANGE);
    assert_eq!(exchange("t/renamed", "u/dir"), Err(Errno::EXDEV));
    write(&mount.path("u/big"), 2 * MIB).unwrap();
    assert_eq!(exchange("t/f", "u/big"), Err(Errno::EDQUOT), "more would come in than goes out");
    exchange("t/f", "u/f").unwrap();
    // A directory with a quota of its own is another's content all the same.
    sys::mkdir(mount.path("own"), 0o755).unwrap();
    set(&mount, "own", "1M");
    exdev("own", "t/own");
    sys::rename(mount.path("own"), mount.path("out/own")).unwrap();
    assert_eq!(
        rule(&mount, "out/own").unwrap()["quota"].as_u64(),
        Some(M),
        "where no quota is, it goes along"
    );
}

#[test]
fn statfs_inside_shows_the_share() {
    let lab = Lab::new();
    let mount = start(&lab, &["t", "t/in"]);
    let size = |path: &Path| {
        let st = sys::statvfs(path).unwrap();
        (st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize, st.f_bfree * st.f_frsize)
    };
    let whole = size(&mount.path("t"));
    set(&mount, "t", "16M");
    write(&mount.path("t/in/f"), 4 * MIB).unwrap();
    wait_used(&mount, "t", 4 * M);
    assert_eq!(size(&mount.path("t")), (16 * M, 12 * M, 12 * M));
    assert_eq!(size(&mount.path("t/in")), (16 * M, 12 * M, 12 * M));
    assert_eq!(size(&mount.path("t/in/f")), (16 * M, 12 * M, 12 * M), "by a file's path as well");
    assert_eq!(size(mount.point()).0, whole.0, "outside, all of it");
    set(&mount, "t", "2M");
    assert_eq!(size(&mount.path("t")), (2 * M, 0, 0));
    let mount = mount.restart();
    assert_eq!(size(&mount.path("t/in")).0, 2 * M);
}

#[test]
fn only_the_operator_sets_a_quota() {
    let lab = Lab::new();
    let mount = start(&lab, &["t"]);
    let dir = mount.path("t");
    sys::chown(&dir, NOBODY, NOBODY).unwrap();
    let as_nobody = |limit: &[u8]| as_user(NOBODY, NOBODY, || sys::setxattr(&dir, QUOTA, limit, 0));
    assert_eq!(as_nobody(b"1T"), Err(Errno::EPERM));
    set(&mount, "t", "2M");
    assert_eq!(as_nobody(b"1T"), Err(Errno::EPERM));
    let removed = as_user(NOBODY, NOBODY, || sys::removexattr(&dir, QUOTA));
    assert_eq!(removed, Err(Errno::EPERM), "nor takes it away");
    assert_eq!(sys::getxattr(&dir, QUOTA).as_deref(), Ok(&b"2M"[..]));
    assert_eq!(sys::listxattr(&dir).unwrap(), [QUOTA]);
    for bad in [&b"2X"[..], b"", b"-1", b"2%", &[0xff]] {
        assert_eq!(sys::setxattr(&dir, QUOTA, bad, 0), Err(Errno::EINVAL), "{bad:?}");
    }
    prime(&mount, "t", "t", 0);
    let filled = as_user(NOBODY, NOBODY, || fill(&dir, 0));
    assert_eq!(filled, (2, Errno::EDQUOT), "who is bound by it can't pass it");
}

#[test]
fn a_file_with_two_names_counts_once() {
    let lab = Lab::new();
    let mount = start(&lab, &["t", "t/in"]);
    set(&mount, "t", "10M");
    write(&mount.path("t/f"), 2 * MIB).unwrap();
    write(&mount.path("t/h"), MIB).unwrap();
    wait_used(&mount, "t", 3 * M);
    sys::link(mount.path("t/f"), mount.path("t/in/g")).unwrap();
    write(&mount.path("t/in/g"), 3 * MIB).unwrap();
    wait_used(&mount, "t", 4 * M);
    sys::unlink(mount.path("t/f")).unwrap();
    wait_used(&mount, "t", 4 * M);
    // Whichever of the names it was counted with.
    for (name, first, last) in [("i", "i", "i2"), ("j", "j2", "j")] {
        write(&mount.path("t").join(name), MIB).unwrap();
        wait_used(&mount, "t", 5 * M);
        sys::link(mount.path("t").join(name), mount.path("t").join(format!("{name}2"))).unwrap();
        sys::unlink(mount.path("t").join(first)).unwrap();
        wait_used(&mount, "t", 5 * M);
        sys::unlink(mount.path("t").join(last)).unwrap();
        wait_used(&mount, "t", 4 * M);
    }
    assert_eq!(sys::link(mount.path("t/in/g"), mount.path("out")), Err(Errno::EXDEV));
    let mount = mount.restart();
    sys::link(mount.path("t/in/g"), mount.path("t/again")).unwrap();
    wait_used(&mount, "t", 4 * M);
    sys::unlink(mount.path("t/again")).unwrap();
    sys::unlink(mount.path("t/in/g")).unwrap();
    wait_used(&mount, "t", M);
}

#[test]
fn a_file_with_two_names_counts_once_whichever_is_known_first() {
    let lab = Lab::new();
    let mount = start(&lab, &["t", "t/in"]);
    for i in 0..4 {
        write(&mount.path(format!("t/f{i}")), MIB).unwrap();
        sys::link(mount.path(format!("t/f{i}")), mount.path(format!("t/in/g{i}"))).unwrap();
    }
    set(&mount, "t", "64M");
    wait_used(&mount, "t", 4 * M);
    // A name that was counted goes, and a new one may be found before the one that counts now.
    for i in 0..4 {
        sys::unlink(mount.path(format!("t/f{i}"))).unwrap();
        sys::link(mount.path(format!("t/in/g{i}")), mount.path(format!("t/h{i}"))).unwrap();
        write(&mount.path(format!("t/h{i}")), 2 * MIB).unwrap();
        wait_used(&mount, "t", (5 + i) * M);
    }
    let mount = mount.restart();
    wait_used(&mount, "t", 8 * M);
    // Only one name of each is known to the kernel, and that goes.
    for name in ["t/in/g0", "t/h1"] {
        sys::unlink(mount.path(name)).unwrap();
        wait_used(&mount, "t", 8 * M);
    }
    for name in ["t/in/g2", "t/h2", "t/h3", "t/in/g3"] {
        sys::stat(mount.path(name)).unwrap();
    }
    wait_used(&mount, "t", 8 * M);
    sys::unlink(mount.path("t/in/g1")).unwrap();
    wait_used(&mount, "t", 6 * M);
}

#[test]
fn whatever_changes_a_size_is_counted() {
    let lab = Lab::new();
    let mount = start(&lab, &["t"]);
    set(&mount, "t", "64M");
    let path = mount.path("t/f");
    write(&path, 8 * MIB).unwrap();
    wait_used(&mount, "t", 8 * M);
    sys::truncate(&path, 2 << 20).unwrap();
    wait_used(&mount, "t", 2 * M);
    let fd = sys::open(&path, libc::O_RDWR, 0).unwrap();
    sys::fallocate(&fd, 0, 0, 16 << 20).unwrap();
    wait_used(&mount, "t", 16 * M);
    sys::fallocate(&fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 8 << 20).unwrap();
    wait_used(&mount, "t", 8 * M);
    sys::ftruncate(&fd, 0).unwrap();
    wait_used(&mount, "t", 0);
    sys::pwrite(&fd, &vec![1; MIB], 0).unwrap();
    drop(fd);
    wait_used(&mount, "t", M);
    // A copy, while the files are open.
    write(&mount.path("t/copy"), 1).unwrap();
    wait_used(&mount, "t", M + 4096);
    let from = sys::open(&path, libc::O_RDONLY, 0).unwrap();
    let to = sys::open(mount.path("t/copy"), libc::O_RDWR, 0).unwrap();
    assert_eq!(sys::copy_file_range(&from, 0, &to, 0, MIB), Ok(MIB));
    wait_used(&mount, "t", 2 * M);
    sys::unlink(mount.path("t/copy")).unwrap();
    wait_used(&mount, "t", M);
    // A sparse file takes what it has.
    let fd = sys::create(mount.path("t/sparse")).unwrap();
    sys::pwrite(&fd, b"x", 32 << 20).unwrap();
    drop(fd);
    wait_used(&mount, "t", M + 4096);
    sys::unlink(&path).unwrap();
    sys::unlink(mount.path("t/sparse")).unwrap();
    wait_used(&mount, "t", 0);
}

#[test]
fn what_the_fast_path_writes_counts_before_the_file_is_closed() {
    use kvfs::client::{Access, File, HostBuffer, Mount as Client, Pages};
    let lab = Lab::new();
    let mount = start(&lab, &["t"]);
    set(&mount, "t", "64M");
    let client = Client::open(mount.point()).unwrap();
    let buffer = HostBuffer::new(2 * MIB, Pages::Ordinary).unwrap();
    let registered = client.register(&buffer, Access::Both).unwrap();
    write(&mount.path("t/f"), 1).unwrap();
    wait_used(&mount, "t", 4096);
    let both = std::fs::OpenOptions::new().read(true).write(true).clone();
    let file = File::with(&mount.path("t/f"), &both).unwrap();
    assert_eq!(file.write(0, &registered, 0, 2 * M).unwrap(), 2 * M);
    wait_used(&mount, "t", 2 * M);
}

#[test]
fn files_that_are_being_written_count_with_what_they_will_need() {
    let lab = Lab::new();
    let mount = start(&lab, &["t"]);
    set(&mount, "t", "4M");
    write(&mount.path("t/first"), MIB).unwrap();
    wait_used(&mount, "t", M);
    let open: Vec<_> = (0..4).map(|i| sys::create(mount.path(format!("t/open{i}")))).collect();
    let results: Vec<_> = open.iter().map(|fd| fd.as_ref().err().copied()).collect();
    assert_eq!(results, [None, None, None, Some(Errno::EDQUOT)], "3 of 1 MiB each fit beside the first");
}
