//! Creates on a full set: they wait for room, keep nobody else waiting, and fail only when there'll be none.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::run::{MIB, mount, names, number, old, put, store, until};
use crate::common::{Errno, FsKind, Lab, Mount, Passthrough, pattern, ranked, sys};
use crate::kept::run::free;

#[path = "../direct/frozen.rs"]
mod frozen;
use frozen::Frozen;

/// Volumes that are full but for less than a file, with files from before the mount.
fn full(lab: &Lab, volumes: usize, evict: &str, args: &[&str]) -> (Mount, Vec<PathBuf>) {
    let volumes: Vec<_> = (0..volumes).map(|_| lab.volume(FsKind::Ext4, 64)).collect();
    for (v, volume) in volumes.iter().enumerate() {
        let files = (free(volume) - (10 << 20)) / MIB;
        (0..files).for_each(|i| old(&volume.join("kv"), &format!("d/v{v}-{i}"), MIB, 90_000 - 10 * i as i64));
        // What's left is somebody else's.
        let filler = sys::create(volume.join("filler")).unwrap();
        let rest = free(volume) as i64 - (9 << 20);
        sys::fallocate(&filler, 0, 0, rest).unwrap();
        sys::fsync(&sys::open(volume, libc::O_RDONLY, 0).unwrap()).unwrap();
    }
    let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = mount(lab, &backings, evict, &[&["--min-free", "10M"], args].concat()).start();
    (mount, volumes)
}

fn created(mount: &Mount, name: &str) -> Result<(), Errno> {
    sys::open(mount.path(name), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o644).map(drop)
}

#[test]
fn nothing_may_go_and_creates_say_so() {
    let lab = Lab::new();
    let (mount, _) = full(&lab, 1, "never", &[]);
    let all = names(mount.point());
    assert_eq!(created(&mount, "new"), Err(Errno::ENOSPC));
    assert_eq!(number(&mount, "waited"), 0, "at once: nothing is going to change");
    assert_eq!(names(mount.point()), all, "nothing was made");
    (0..3).for_each(|i| sys::unlink(mount.path(format!("d/v0-{i}"))).unwrap());
    // The kernel forgets them, and the file system frees their blocks, a moment later.
    until(&mount, "room", |_| created(&mount, "new").is_ok());
}

#[test]
fn nothing_can_go_and_creates_say_so_after_a_look() {
    for evict in ["lru", "orphans"] {
        let lab = Lab::new();
        let (mount, volumes) = full(&lab, 1, evict, &["--high-water", "100", "--low-water", "99"]);
        let open: Vec<_> = if evict == "lru" {
            let names = names(&mount.path("d"));
            names.iter().filter_map(|n| sys::open(mount.path("d").join(n), libc::O_RDONLY, 0).ok()).collect()
        } else {
            Vec::new()
        };
        let gone = number(&mount, "evicted_lru");
        if evict == "lru" {
            // Some may have gone before they were open: no more than is missing.
            let filler = sys::open(volumes[0].join("filler"), libc::O_WRONLY, 0).unwrap();
            let size = sys::fstat(&filler).unwrap().st_size;
            let rest = free(&volumes[0]) as i64 - (9 << 20);
            if rest > 0 {
                sys::fallocate(&filler, 0, size, rest).unwrap();
            }
        }
        assert_eq!(created(&mount, "new"), Err(Errno::ENOSPC), "{evict}");
        assert_eq!(sys::mkdir(mount.path("dir"), 0o755), Err(Errno::ENOSPC), "{evict}");
        assert_eq!(names(mount.point()).len(), 1, "{evict}: nothing was made");
        assert!(number(&mount, "refused") > 0);
        assert_eq!(number(&mount, "evicted_lru"), gone);
        drop(open);
        if evict == "lru" {
            until(&mount, "room, as soon as something can go", |_| created(&mount, "again").is_ok());
        }
    }
}

#[test]
fn creates_wait_for_the_evictor() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let backing = lab.volume(FsKind::Ext4, 64).join("kv");
        let builder = mount(&lab, &[backing], "lru", &["--min-free", "10M", "--threads", "2"]);
        let mount = builder.passthrough(mode).start();
        std::thread::scope(|scope| {
            for t in 0..6 {
                let mount = &mount;
                scope.spawn(move || {
                    // 60 MiB each; each writer in a directory of its own.
                    let dir = mount.path(format!("w{t}"));
                    std::fs::create_dir(&dir).unwrap();
                    for i in 0..60 {
                        put(&dir.join(ranked(t, i)), 1, MIB);
                        // LMCache's GDS makes directories on its way.
                        std::fs::create_dir_all(dir.join(format!("{}/{i}", i % 7))).unwrap();
                    }
                });
            }
        });
        assert_eq!(number(&mount, "refused"), 0, "{mode:?}");
        assert!(number(&mount, "evicted_lru") > 200);
    }
}

#[test]
fn a_drive_that_hangs_keeps_nobody_waiting_who_needs_another() {
    let lab = Lab::new();
    let (mount, volumes) = full(&lab, 2, "lru", &["--threads", "2"]);
    // What is told first of a backing that hangs is that it doesn't give room; that of the other comes.
    let frozen = Frozen::new(&volumes[0]);
    let faults = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (mount, faults) = (&mount, &faults);
            scope.spawn(move || {
                for i in 0..30 {
                    // By its rank it belongs to the backing that hangs; its directory is on the other.
                    let made = store(&mount.path(ranked(0, t << 8 | i)), &pattern(1, MIB as usize));
                    if let Err(e) = made {
                        faults.lock().unwrap().push(e);
                    }
                }
            });
        }
    });
    assert_eq!(*faults.lock().unwrap(), Vec::<String>::new(), "{}", mount.story());
    let new =
        |volume: usize| names(&volumes[volume].join("kv")).iter().filter(|n| n.ends_with(".pt")).count();
    assert!(new(0) == 0 && new(1) > 0, "they went to the other");
    // Files of the backing that hangs can be read, and names of the other changed.
    assert!(std::fs::read_dir(mount.path("d")).unwrap().count() > 10);
    let first = names(&volumes[0].join("kv/d")).into_iter().next_back().unwrap();
    assert_eq!(std::fs::read(mount.path("d").join(first)).unwrap().len(), MIB as usize);
    until(&mount, "the end of the work on the other", |s| s["retention"]["evicting"] == false);
    drop(frozen);
    until(&mount, "an eviction from the one that hung", |_| names(&volumes[0].join("kv/d")).len() < 40);
}

/// More creates than the daemon has threads wait for a drive that stands still; `false` when it did for so long
/// that it may have been taken for one that hangs.
fn creates_wait_for_a_drive_that_stands_still() -> bool {
    let lab = Lab::new();
    let (mount, volumes) =
        full(&lab, 1, "lru", &["--threads", "2", "--high-water", "100", "--low-water", "99"]);
    // Each in a directory of its own, whose lock keeps no other from waiting too.
    (0..6).for_each(|i| std::fs::create_dir(volumes[0].join(format!("kv/w{i}"))).unwrap());
    until(&mount, "the end of what began with the mount", |s| s["retention"]["evicting"] == false);
    // Nothing may have room that was there before.
    let filler = sys::open(volumes[0].join("filler"), libc::O_WRONLY, 0).unwrap();
    let (size, rest) = (sys::fstat(&filler).unwrap().st_size, free(&volumes[0]) as i64 - (9 << 20));
    if rest > 0 {
        sys::fallocate(&filler, 0, size, rest).unwrap();
    }
    let stands = std::time::Instant::now();
    let frozen = Frozen::new(&volumes[0]);
    let ended = AtomicUsize::new(0);
    let (results, ended_before, in_time) = std::thread::scope(|scope| {
        let creates: Vec<_> = (0..6)
            .map(|i| {
                let (mount, ended) = (&mount, &ended);
                scope.spawn(move || {
                    let result = created(mount, &format!("w{i}/new"));
                    ended.fetch_add(1, Relaxed);
                    result
                })
            })
            .collect();
        until(&mount, "creates that wait", |s| s["retention"]["waited"].as_u64() >= Some(6));
        for i in 30..35 {
            sys::stat(mount.path(format!("d/v0-{i}"))).unwrap();
            assert_eq!(std::fs::read(mount.path(format!("d/v0-{i}"))).unwrap().len(), MIB as usize);
        }
        assert_eq!(sys::stat(mount.path("d/none")).map(drop), Err(Errno::ENOENT));
        let ended_before = ended.load(Relaxed);
        drop(frozen);
        // After four seconds it hangs, and there's nothing to be waited for.
        let in_time = stands.elapsed() < std::time::Duration::from_secs(3);
        let results: Vec<_> = creates.into_iter().map(|create| create.join().unwrap()).collect();
        (results, ended_before, in_time)
    });
    for (i, result) in results.iter().enumerate() {
        let there = mount.path(format!("w{i}/new")).exists();
        assert_eq!(there, result.is_ok(), "what failed wasn't made");
    }
    if in_time {
        assert_eq!(ended_before, 0, "they waited");
        assert_eq!(results, [Ok(()); 6], "there was room in time: {}", mount.story());
        assert_eq!(number(&mount, "refused"), 0);
    }
    in_time
}

#[test]
fn creates_that_wait_keep_nobody_else_waiting_and_succeed() {
    let in_time = (0..10).any(|_| creates_wait_for_a_drive_that_stands_still());
    assert!(in_time, "this machine is too slow for a drive to stand still less than three seconds");
}

#[test]
fn files_that_are_opened_and_not_written_lock_nobody_out() {
    let lab = Lab::new();
    let backing = lab.volume(FsKind::Ext4, 96).join("kv");
    let mount = mount(&lab, &[backing], "orphans", &[]).start();
    put(&mount.path("one like the others"), 1, 8 * MIB);
    let opened: Vec<_> = (0..100).filter_map(|i| sys::create(mount.path(format!("pool{i}"))).ok()).collect();
    assert!(!opened.is_empty());
    // Room that was kept free for them is free again, at the latest when it has waited for it.
    let made = (0..20).any(|i| created(&mount, &format!("other{i}")).is_ok());
    assert!(made, "{:#}", mount.status()["retention"]);
}
