//! GDS data and its metadata: no metadata without its data, as clients see them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::run::{Faults, evict_bytes, evict_until, mount, names, number, old};
use crate::common::{Errno, FsKind, Lab, Mount, Passthrough, pattern, ranked, sys};

const DATA: usize = 256 << 10;
const PAIRS: usize = 24;

fn data(i: usize) -> String {
    let name = ranked(i, i).replace('@', "%40");
    format!("7{}/12/{}.kvcache.safetensors", i % 3, name.trim_end_matches(".pt"))
}

fn metadata(i: usize) -> String {
    format!("{}.metadata", data(i))
}

/// As LMCache writes it: data under another name, renamed, then metadata the same way.
fn publish(mount: &Mount, i: usize) -> Result<(), String> {
    for (name, len) in [(data(i), DATA), (metadata(i), 4096)] {
        let tmp = mount.path(format!("{name}.tmp72ec72f3"));
        super::run::store(&tmp, &pattern(i as u64, len))?;
        match sys::rename(&tmp, mount.path(&name)) {
            Ok(()) => {}
            // Evicted before it was published: it was idle for a moment, and nothing else was left to go.
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(format!("{name}: rename: {e}")),
        }
    }
    Ok(())
}

/// A client that finds metadata and then no data looks at the metadata once more: it must be gone too.
fn look(mount: &Mount, i: usize) -> Result<bool, String> {
    let (data, metadata) = (mount.path(data(i)), mount.path(metadata(i)));
    match sys::stat(&metadata) {
        Err(Errno::ENOENT) => return Ok(false),
        Err(e) => return Err(format!("{}: stat: {e}", metadata.display())),
        Ok(_) => {}
    }
    match sys::open(&data, libc::O_RDONLY, 0) {
        Ok(fd) => match sys::pread(&fd, DATA + 1, 0) {
            Ok(bytes) if bytes == pattern(i as u64, DATA) => Ok(true),
            other => Err(format!("{}: {:?}", data.display(), other.map(|bytes| bytes.len()))),
        },
        // What was looked up by one path and not yet by the other: only the present state counts.
        Err(Errno::ENOENT) => match (sys::stat(&metadata), sys::stat(&data)) {
            (Ok(_), Err(Errno::ENOENT)) => Err(format!("{}: there, without its data", metadata.display())),
            _ => Ok(false),
        },
        Err(e) => Err(format!("{}: open: {e}", data.display())),
    }
}

fn whole(backings: &[PathBuf]) {
    let has = |name: &str| backings.iter().any(|b| b.join(name).exists());
    for i in 0..PAIRS {
        assert!(!has(&metadata(i)) || has(&data(i)), "{}: metadata without data", metadata(i));
    }
}

fn storm(mode: Passthrough, placement: &str) {
    let lab = Lab::new();
    let volumes = [lab.volume(FsKind::Ext4, 64), lab.volume(FsKind::Ext4, 64)];
    let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = mount(&lab, &backings, "lru", &["--placement", placement]).passthrough(mode).start();
    (0..3).for_each(|i| std::fs::create_dir_all(mount.path(format!("7{i}/12"))).unwrap());
    (0..PAIRS).for_each(|i| publish(&mount, i).unwrap());
    let (stop, faults, hits) = (AtomicBool::new(false), Faults::default(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Relaxed) && !faults.seen() {
                    for i in 0..PAIRS {
                        match look(&mount, i) {
                            Ok(hit) => drop(hits.fetch_add(usize::from(hit), Relaxed)),
                            Err(e) => faults.add(e),
                        }
                    }
                }
            });
        }
        // Each data file is written by one thread alone, so that a lookup of both is of one state.
        scope.spawn(|| {
            while !stop.load(Relaxed) && !faults.seen() {
                for i in 0..PAIRS {
                    if !mount.path(metadata(i)).exists()
                        && let Err(e) = publish(&mount, i)
                    {
                        faults.add(e);
                    }
                }
            }
        });
        while number(&mount, "evicted_lru") < 300 && !faults.seen() {
            evict_bytes(&mount, 4 * DATA as u64);
        }
        stop.store(true, Relaxed);
    });
    assert!(hits.load(Relaxed) > 0);
    faults.none(&mount);
    whole(&backings);
}

#[test]
fn metadata_never_promises_data_that_is_gone() {
    storm(Passthrough::Auto, "by_gpu");
}

#[test]
fn nor_on_two_backings() {
    storm(Passthrough::Off, "hash");
}

#[test]
fn both_go_or_both_stay() {
    let lab = Lab::new();
    let backing = lab.volume(FsKind::Ext4, 64).join("kv");
    for i in 0..4 {
        old(&backing, &data(i), DATA as u64, 9000);
        // Metadata that is used later than its data, or earlier.
        old(&backing, &metadata(i), 4096, if i % 2 == 0 { 90_000 } else { 100 });
    }
    old(&backing, &metadata(9), 4096, 50_000);
    let mount = mount(&lab, std::slice::from_ref(&backing), "lru", &[]).start();
    let open = sys::open(mount.path(data(3)), libc::O_RDONLY, 0).unwrap();
    evict_bytes(&mount, DATA as u64 + 4096);
    let here = |name: &str| backing.join(name).exists();
    let both = |i: usize| (here(&data(i)), here(&metadata(i)));
    assert!(!here(&metadata(9)), "metadata without data is a file like any other, and used the longest ago");
    let gone = (0..4).filter(|i| both(*i) == (false, false)).count();
    let left = (0..4).filter(|i| both(*i) == (true, true)).count();
    assert_eq!((gone, left), (1, 3));
    evict_bytes(&mount, 1 << 30);
    assert_eq!(both(3), (true, true), "open data keeps its metadata");
    assert_eq!(number(&mount, "evicted_lru"), 7, "metadata counts as a file");
    drop(open);
    evict_until(&mount, "the last pair gone", || names(&backing.join("70/12")).is_empty());
    assert_eq!(number(&mount, "evicted_lru"), 9);
}

#[cfg(feature = "fault-points")]
#[test]
fn metadata_goes_before_its_data() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Ext4, 64).join("kv"), lab.volume(FsKind::Ext4, 64).join("kv")];
    old(&backings[0], &data(0), DATA as u64, 9000);
    old(&backings[1], &metadata(0), 4096, 9000);
    let builder = mount(&lab, &backings, "lru", &[]);
    let dying = builder.clone().env("KVFS_FAULT_ABORT_AT", "evicted-metadata").start();
    // The daemon dies in it.
    super::run::evict(&dying, &["--bytes", "1M"]);
    let point = dying.point().to_path_buf();
    dying.ended();
    crate::common::ns::unmount_below(&point);
    assert!(!backings[1].join(metadata(0)).exists(), "it's gone");
    assert!(backings[0].join(data(0)).exists(), "and its data is there, which nobody looks for");
    let mount = builder.start();
    assert!(!mount.path(metadata(0)).exists() && mount.path(data(0)).exists(), "a later mount finds it so");
}
