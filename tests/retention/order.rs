//! What goes first, and what never goes.

use super::run::{
    MIB, absent, evict, evict_bytes, evict_until, living, mount, names, next_second, number, old, passing,
    put, read, set,
};
use crate::common::{Builder, FsKind, Lab, Passthrough, ranked, sys};

/// Eight files from before the mount, the first used the longest ago.
fn aged(kind: FsKind) -> (Lab, std::path::PathBuf, Builder) {
    let lab = Lab::new();
    let size = if kind == FsKind::Xfs { 320 } else { 96 };
    let backing = lab.volume(kind, size).join("kv");
    for i in 0..8 {
        old(&backing, &format!("f{i}"), MIB, 80_000 - 10_000 * i);
    }
    let builder = mount(&lab, std::slice::from_ref(&backing), "lru", &[]);
    (lab, backing, builder)
}

#[test]
fn least_recently_opened_goes_first() {
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Tmpfs] {
        let (_lab, backing, builder) = aged(kind);
        let mount = builder.start();
        // From now on uses are known by the daemon alone: the files' own times have been read.
        evict(&mount, &["--dry-run", "--bytes", "1"]).code(0);
        for i in [0, 1] {
            read(&mount.path(format!("f{i}")), 7, MIB);
        }
        // Looking at a file is no use of it.
        sys::stat(mount.path("f2")).unwrap();
        evict_bytes(&mount, 3 * MIB);
        assert_eq!(names(mount.point()), set(["f0", "f1", "f5", "f6", "f7"]), "{kind:?}");
        assert_eq!(names(&backing), names(mount.point()), "on the backing too");
        evict_bytes(&mount, 4 * MIB);
        let left = names(mount.point());
        assert_eq!(left.len(), 1, "{kind:?}");
        assert!(left.contains("f0") || left.contains("f1"), "{kind:?}: {left:?}");
    }
}

#[test]
fn files_written_or_mapped_lately_are_used_lately() {
    let (_lab, _, builder) = aged(FsKind::Ext4);
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let mount = builder.clone().passthrough(mode).start();
        evict(&mount, &["--dry-run", "--bytes", "1"]).code(0);
        let [a, b] = if mode == Passthrough::Auto { ["f0", "f1"] } else { ["f2", "f3"] };
        put(&mount.path(a), 1, MIB);
        let fd = sys::open(mount.path(b), libc::O_RDONLY, 0).unwrap();
        let map = sys::Map::new(&fd, MIB as usize, libc::PROT_READ, libc::MAP_SHARED).unwrap();
        drop(fd);
        map.get(0, 16);
        drop(map);
        evict_bytes(&mount, MIB);
        let left = names(mount.point());
        assert!(left.contains(a) && left.contains(b), "{mode:?}: {left:?}");
        mount.stop();
    }
}

#[test]
fn orphans_then_the_least_recently_used_then_those_of_living_creators() {
    let lab = Lab::new();
    let backing = lab.volume(FsKind::Ext4, 96).join("kv");
    for i in 0..3 {
        old(&backing, &format!("plain{i}"), MIB, 9000);
    }
    let mount = mount(&lab, &[backing], "lru", &[]).start();
    put(&mount.path(ranked(0, 50)), 1, MIB);
    passing(|| (0..3).for_each(|i| put(&mount.path(ranked(0, i)), 1, MIB)));
    next_second();
    read(&mount.path(ranked(0, 1)), 1, MIB);
    let has = |name: &str| mount.path(name).exists();
    evict_bytes(&mount, 2 * MIB);
    assert!(!has(&ranked(0, 0)) && !has(&ranked(0, 2)), "orphans first, of them the least recently used");
    assert_eq!(names(mount.point()).len(), 5);
    evict_bytes(&mount, MIB);
    assert!(!has(&ranked(0, 1)), "the last orphan, though it was used after the others");
    evict_bytes(&mount, 3 * MIB);
    assert_eq!(names(mount.point()), set([ranked(0, 50)]), "what a living process remembers goes last");
    assert_eq!((number(&mount, "evicted_orphans"), number(&mount, "evicted_lru")), (3, 3));
    evict_bytes(&mount, MIB);
    assert_eq!(number(&mount, "evicted_remembered"), 1);
}

#[test]
fn open_files_never_go() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let (_lab, _, builder) = aged(FsKind::Ext4);
        let mount = builder.passthrough(mode).start();
        let reading = sys::open(mount.path("f0"), libc::O_RDONLY, 0).unwrap();
        let writing = sys::open(mount.path("f1"), libc::O_WRONLY, 0).unwrap();
        let path = sys::open(mount.path("f2"), libc::O_RDONLY, 0).unwrap();
        let map = sys::Map::new(&path, MIB as usize, libc::PROT_READ, libc::MAP_PRIVATE).unwrap();
        drop(path);
        // In another process.
        let other = living(|| std::mem::forget(sys::open(mount.path("f3"), libc::O_RDWR, 0).unwrap()));
        evict_bytes(&mount, 1 << 30);
        assert_eq!(names(mount.point()), set(["f0", "f1", "f2", "f3"]), "{mode:?}");
        assert_eq!(sys::pread(&reading, MIB as usize, 0).unwrap().len(), MIB as usize);
        assert_eq!(sys::pwrite(&writing, b"x", 0), Ok(1));
        assert_eq!(map.get(0, 4096), crate::common::pattern(7, 4096));
        // A file with no use but an open handle, deleted meanwhile, is nobody's business either.
        sys::unlink(mount.path("f0")).unwrap();
        evict_bytes(&mount, 1 << 30);
        assert_eq!(sys::pread(&reading, MIB as usize, 0).unwrap().len(), MIB as usize);
        drop((reading, writing, map));
        other.kill();
        evict_until(&mount, "all closed and gone", || names(mount.point()).is_empty());
    }
}

#[test]
fn more_open_files_than_are_chosen_at_a_time_are_passed_over() {
    let lab = Lab::new();
    let backing = lab.volume_with(FsKind::Ext4, 96, &["-N", "20000"]).join("kv");
    std::fs::create_dir_all(backing.join("open")).unwrap();
    for i in 0..5000 {
        std::fs::write(backing.join(format!("open/{i}")), "x").unwrap();
    }
    sys::tick();
    old(&backing, "idle", MIB, 0);
    let mount = mount(&lab, &[backing], "lru", &[]).start();
    let held: Vec<_> =
        (0..5000).map(|i| sys::open(mount.path(format!("open/{i}")), libc::O_RDONLY, 0).unwrap()).collect();
    evict_bytes(&mount, MIB);
    assert!(!mount.path("idle").exists(), "behind five thousand that are open there's one that can go");
    assert_eq!(names(&mount.path("open")).len(), held.len());
}

#[test]
fn hard_links_empty_files_and_files_of_other_types_stay() {
    let lab = Lab::new();
    let backing = lab.volume(FsKind::Ext4, 96).join("kv");
    for name in ["a", "linked", "empty"] {
        old(&backing, name, if name == "empty" { 0 } else { MIB }, 50_000);
    }
    std::fs::hard_link(backing.join("linked"), backing.join("other")).unwrap();
    let mount = mount(&lab, std::slice::from_ref(&backing), "lru", &[]).start();
    sys::mknod(mount.path("fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
    sys::mknod(mount.path("socket"), libc::S_IFSOCK | 0o644, 0).unwrap();
    sys::mknod(mount.path("device"), libc::S_IFCHR | 0o644, libc::makedev(1, 3)).unwrap();
    sys::symlink("a", mount.path("symlink")).unwrap();
    sys::mkdir(mount.path("dir"), 0o755).unwrap();
    put(&mount.path("dir/b"), 1, MIB);
    evict_bytes(&mount, 1 << 30);
    let left = ["linked", "other", "empty", "fifo", "socket", "device", "symlink", "dir"];
    assert_eq!(names(mount.point()), set(left));
    absent("below a directory", sys::lstat(mount.path("dir/b")));
    assert!(!evict(&mount, &["--dry-run", "--bytes", "1G"]).code(0).stdout.contains("linked"), "nor planned");
    sys::unlink(mount.path("other")).unwrap();
    evict_bytes(&mount, 1 << 30);
    assert!(!mount.path("linked").exists(), "its last link");
}

#[test]
fn a_file_with_copies_goes_with_them() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Ext4, 96), lab.volume(FsKind::Ext4, 96)];
    let backings = volumes.map(|v| v.join("kv"));
    backings.iter().for_each(|backing| old(backing, "twice", MIB, 5000));
    let mount = mount(&lab, &backings, "lru", &[]).start();
    evict_bytes(&mount, MIB);
    absent("the file", sys::lstat(mount.path("twice")));
    assert_eq!(mount.holders("twice"), Vec::<usize>::new(), "no copy comes back");
}
