//! Readers, writers and removers over a mount from which files are evicted all the time, with inode numbers that
//! are used again at once: whoever opens a name gets the whole file or ENOENT.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::run::{Faults, MIB, evict_bytes, mount, number, store};
use crate::common::{Errno, FsKind, Lab, Passthrough, ranked, sys};

const NAMES: usize = 40;
const LEN: usize = 192 << 10;
const EVICTIONS: u64 = 1500;

/// Which name it is of, and which of its writings, in every block.
fn content(name: usize, version: u64) -> Vec<u8> {
    let words = (0..LEN as u64 / 8).map(|at| (name as u64) << 48 | version << 20 | at & 0xf_ffff);
    words.flat_map(u64::to_le_bytes).collect()
}

fn check(name: usize, bytes: &[u8]) -> Result<(), String> {
    let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
    if bytes.len() != LEN {
        return Err(format!("{} bytes", bytes.len()));
    }
    if word(0) >> 48 != name as u64 {
        return Err(format!("the file of name {}", word(0) >> 48));
    }
    let version = word(0) >> 20 & 0xfff_ffff;
    if bytes == content(name, version) { Ok(()) } else { Err(format!("a mixture, of {version} and others")) }
}

/// Half of the names are LMCache's local_disk.
fn path(dir: &Path, name: usize) -> std::path::PathBuf {
    if name.is_multiple_of(2) { dir.join(ranked(name, name)) } else { dir.join(format!("{name}.data")) }
}

fn read(dir: &Path, name: usize, how: usize) -> Result<bool, String> {
    let path = path(dir, name);
    let wrong = |what: &str, e: String| Err(format!("{}: {what}: {e}", path.display()));
    if how.is_multiple_of(2) {
        match sys::stat(&path) {
            Ok(st) if st.st_size != LEN as i64 => return wrong("stat", format!("{} bytes", st.st_size)),
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(e) => return wrong("stat", e.to_string()),
        }
    }
    let flags = if how.is_multiple_of(3) { libc::O_RDONLY | libc::O_DIRECT } else { libc::O_RDONLY };
    let fd = match sys::open(&path, flags, 0) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(false),
        Err(e) => return wrong("open", e.to_string()),
    };
    match sys::pread_at_skew(&fd, LEN + 4096, 0, 0) {
        Ok(bytes) => check(name, &bytes).map(|()| true).or_else(|e| wrong("read", e)),
        Err(e) => wrong("read", e.to_string()),
    }
}

fn storm(kind: FsKind, mode: Passthrough, args: &[&str]) {
    let lab = Lab::new();
    let size = if kind == FsKind::Xfs { 320 } else { 64 };
    let volumes = [lab.volume(kind, size), lab.volume(kind, size)];
    let backings = volumes.map(|v| v.join("kv"));
    let mount = mount(&lab, &backings, "lru", args).passthrough(mode).start();
    let dir = mount.path("d");
    std::fs::create_dir(&dir).unwrap();
    let (stop, faults) = (AtomicBool::new(false), Faults::default());
    let (reads, versions) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let goes_on = || !stop.load(Relaxed) && !faults.seen();
    std::thread::scope(|scope| {
        for t in 0..3 {
            let (dir, faults, reads, goes_on) = (&dir, &faults, &reads, &goes_on);
            scope.spawn(move || {
                for round in t.. {
                    if !goes_on() {
                        return;
                    }
                    match read(dir, (round * 7 + t) % NAMES, round) {
                        Ok(hit) => drop(reads.fetch_add(usize::from(hit), Relaxed)),
                        Err(e) => faults.add(e),
                    }
                }
            });
        }
        for t in 0..2 {
            let (dir, faults, versions, goes_on) = (&dir, &faults, &versions, &goes_on);
            scope.spawn(move || {
                for round in 0.. {
                    if !goes_on() {
                        return;
                    }
                    // Published whole, so that whoever opens the name finds it whole.
                    let name = (round * 11 + t) % NAMES;
                    let tmp = dir.join(format!("{t}.tmp"));
                    let version = versions.fetch_add(1, Relaxed) as u64;
                    if let Err(e) = store(&tmp, &content(name, version)) {
                        faults.add(e);
                    }
                    match sys::rename(&tmp, path(dir, name)) {
                        // It's idle between its writing and its publishing.
                        Ok(()) | Err(Errno::ENOENT) => {}
                        Err(e) => faults.add(format!("rename: {e}")),
                    }
                    if round % 5 == 0 {
                        match sys::unlink(path(dir, (round * 3) % NAMES)) {
                            Ok(()) | Err(Errno::ENOENT) => {}
                            Err(e) => faults.add(format!("unlink: {e}")),
                        }
                    }
                }
            });
        }
        while number(&mount, "evicted_lru") < EVICTIONS && !faults.seen() {
            evict_bytes(&mount, 2 * MIB);
        }
        stop.store(true, Relaxed);
    });
    assert!(reads.load(Relaxed) > 0 || faults.seen());
    faults.none(&mount);
    let mut files = 0;
    for name in 0..NAMES {
        files += usize::from(read(&dir, name, 1).unwrap());
    }
    let again = mount.restart();
    let found = (0..NAMES).filter(|name| read(&again.path("d"), *name, 1).unwrap()).count();
    assert_eq!(found, files, "a fresh scan finds the same");
}

#[test]
fn on_xfs_passed_through() {
    storm(FsKind::Xfs, Passthrough::Auto, &[]);
}

#[test]
fn on_xfs_through_the_daemon() {
    storm(FsKind::Xfs, Passthrough::Off, &["--exclusive"]);
}

#[test]
fn on_ext4_passed_through() {
    storm(FsKind::Ext4, Passthrough::Auto, &["--exclusive"]);
}

#[test]
fn with_clients_that_may_open_files_on_their_backings() {
    storm(FsKind::Xfs, Passthrough::Auto, &["--allow-locate"]);
}
