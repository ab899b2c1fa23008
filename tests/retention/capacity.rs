//! `--capacity`: what files may take, and that it's counted right whatever happens to them.

use std::path::PathBuf;

use super::run::{MIB, counted, evict, evict_bytes, mount, names, number, old, put, until};
use crate::common::{Builder, FsKind, Lab, Mount, pattern, ranked, sys};

fn used(mount: &Mount, backing: usize) -> u64 {
    let status = mount.status();
    status["retention"]["backings"][backing]["used"]
        .as_u64()
        .unwrap_or_else(|| panic!("not counted: {status:#}"))
}

fn one(lab: &Lab, capacity: &str) -> (Builder, PathBuf) {
    let backing = lab.volume(FsKind::Ext4, 128).join("kv");
    (mount(lab, std::slice::from_ref(&backing), "lru", &["--capacity", capacity]), backing)
}

#[test]
fn counts_follow_whatever_is_done() {
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        let lab = Lab::new();
        let backing = lab.volume(kind, if kind == FsKind::Xfs { 320 } else { 128 }).join("kv");
        std::fs::create_dir(&backing).unwrap();
        old(&backing, "before", 3 * MIB, 1000);
        let mount = mount(&lab, std::slice::from_ref(&backing), "lru", &["--capacity", "64M"]).start();
        until(&mount, "the files from before", |s| {
            s["retention"]["backings"][0]["used"].as_u64() == Some(3 * MIB)
        });
        let agrees = |what: &str| {
            // Sizes are counted when a file is closed, which the daemon hears a moment later; blocks that the
            // file system keeps ready go with it.
            until(&mount, what, |s| {
                sys::fsync(&sys::open(&backing, libc::O_RDONLY, 0).unwrap()).unwrap();
                s["retention"]["backings"][0]["used"].as_u64() == Some(counted(&backing))
            });
        };
        (0..4).for_each(|i| put(&mount.path(format!("f{i}")), 1, MIB + 8192));
        agrees("made");
        sys::unlink(mount.path("f0")).unwrap();
        agrees("removed");
        sys::truncate(mount.path("f1"), 4096).unwrap();
        agrees("cut off by its path");
        put(&mount.path("f2"), 2, 4096);
        agrees("overwritten by less");
        put(&mount.path("f2"), 2, 2 * MIB);
        agrees("overwritten by more");
        sys::rename(mount.path("f3"), mount.path("f2")).unwrap();
        agrees("renamed over");
        // XFS keeps room ready behind the end of such a file, which is given back when it's needed.
        if kind == FsKind::Ext4 {
            let fd = sys::open(mount.path("before"), libc::O_RDWR, 0).unwrap();
            sys::ftruncate(&fd, MIB as i64).unwrap();
            sys::pwrite(&fd, &pattern(1, 8192), 2 * MIB as i64).unwrap();
            drop(fd);
            agrees("sparse");
        }
        sys::link(mount.path("f2"), mount.path("link")).unwrap();
        agrees("a link");
        sys::unlink(mount.path("f2")).unwrap();
        agrees("one of two links");
        evict_bytes(&mount, MIB);
        agrees("evicted");
        put(&mount.path("last"), 1, MIB);
        agrees("one more");
        let total = used(&mount, 0);
        let mount = mount.restart();
        until(&mount, "a survey", |s| s["retention"]["backings"][0]["used"].as_u64() == Some(total));
    }
}

/// Writes one file after the other: what they take never exceeds this.
fn write_into(mount: &Mount, backings: &[PathBuf], files: usize, most: u64) {
    for i in 0..files {
        put(&mount.path(ranked(i, i)), 1, MIB);
        let bytes: u64 = backings.iter().map(|b| counted(b)).sum();
        assert!(bytes <= most, "after {i} files: {bytes} of {most}");
    }
    evict(mount, &[]).code(0);
    assert!(number(mount, "evicted_lru") > 0);
    let bytes: u64 = backings.iter().map(|b| counted(b)).sum();
    // The low mark is eight files away. Two that are being written, or were just now, count with what they will
    // need, and the last one to go may have more than is missing.
    assert!(bytes + (8 + 3) * MIB >= most, "no more goes than has to: {bytes} of {most} are left");
    assert_eq!(number(mount, "refused"), 0);
}

#[test]
fn files_take_no_more_than_they_may() {
    let lab = Lab::new();
    let (builder, backing) = one(&lab, "30M");
    write_into(&builder.start(), &[backing], 90, 30 * MIB);
}

#[test]
fn a_share_of_the_backing() {
    let lab = Lab::new();
    let (builder, backing) = one(&lab, "20%");
    let size = sys::statvfs(backing.parent().unwrap()).unwrap();
    write_into(&builder.start(), &[backing], 80, size.f_blocks * size.f_frsize / 5);
}

#[test]
fn all_backings_together() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Ext4, 96).join("kv"), lab.volume(FsKind::Ext4, 96).join("kv")];
    let mount = mount(&lab, &backings, "lru", &["--capacity", "total=40M"]).start();
    write_into(&mount, &backings, 120, 40 * MIB);
    assert!(backings.iter().all(|b| names(b).len() > 5), "each gives its share");
}

#[test]
fn one_backing_of_several() {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Ext4, 96), lab.volume(FsKind::Ext4, 96)];
    let backings = volumes.map(|v| v.join("kv"));
    let mut builder = mount(&lab, &backings, "lru", &[]);
    builder.backings[0] = PathBuf::from(format!("{}:capacity=12M", backings[0].display()));
    let mount = builder.start();
    for i in 0..40 {
        put(&mount.path(ranked(0, i)), 1, MIB);
        assert!(counted(&backings[0]) <= 12 * MIB, "after {i} files");
    }
    (0..30).for_each(|i| put(&mount.path(ranked(1, 100 + i)), 1, MIB));
    assert!(names(&backings[1]).len() >= 30, "the other has all there is");
    assert_eq!(mount.status()["retention"]["backings"][1]["capacity"], serde_json::Value::Null);
}

#[test]
fn files_from_before_the_mount_count() {
    let lab = Lab::new();
    let (builder, backing) = one(&lab, "30M");
    (0..50).for_each(|i| old(&backing, &format!("f{i:02}"), MIB, 90_000 - 1000 * i));
    let mount = builder.start();
    until(&mount, "an eviction", |_| counted(&backing) <= 28 * MIB);
    evict(&mount, &[]).code(0);
    assert!(names(mount.point()).contains("f49") && !names(mount.point()).contains("f00"), "the oldest went");
    assert_eq!(used(&mount, 0), counted(&backing));
}

#[test]
fn a_file_from_before_the_mount_counts_once_however_many_names_it_has() {
    let lab = Lab::new();
    let (builder, backing) = one(&lab, "64M");
    for i in 0..8 {
        old(&backing, &format!("f{i}"), MIB, 1000);
        (0..i).for_each(|j| {
            std::fs::hard_link(backing.join(format!("f{i}")), backing.join(format!("f{i}-{j}"))).unwrap()
        });
    }
    let mount = builder.start();
    until(&mount, "all of them counted", |s| s["retention"]["backings"][0]["used"].as_u64() >= Some(8 * MIB));
    // The survey is over before an eviction is planned.
    evict(&mount, &["--dry-run", "--bytes", "1"]).code(0);
    assert_eq!(used(&mount, 0), 8 * MIB);
    for name in names(mount.point()) {
        sys::stat(mount.path(name)).unwrap();
    }
    assert_eq!(used(&mount, 0), 8 * MIB, "nor when it's asked about by each");
    (1..8).for_each(|i| sys::unlink(mount.path(format!("f{i}"))).unwrap());
    until(&mount, "one name less of each", |s| {
        s["retention"]["backings"][0]["used"].as_u64() == Some(8 * MIB)
    });
    assert_eq!(used(&mount, 0), counted(&backing));
}

#[test]
fn wrong_values_are_refused() {
    let lab = Lab::new();
    let (point, backing) = (lab.dir("mnt"), lab.dir("b"));
    for bad in ["much", "101%", "total=50%", "total="] {
        let words = ["mount".into(), point.clone(), "--backing".into(), backing.clone()];
        let words = words.into_iter().chain(["--capacity".into(), bad.into()]);
        crate::common::kvfs(words).fault(41, &["--capacity", bad]);
    }
}
