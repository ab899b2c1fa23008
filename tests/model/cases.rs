//! What went wrong once, in as few steps as it takes; and races of two operations, met head-on many times.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use kvfs::fs::{Fs, RenameMode};
use kvfs::index::NodeId;
use rustix::io::Errno;

use crate::check::raw_tree;
use crate::harness::{Disks, caller, removed_and_open, run};
use crate::ops::{At, Op};
use crate::stress::settled;

const ROOT: NodeId = NodeId::ROOT;
const TIMES: usize = 400;

fn mkdir(fs: &Fs, dir: NodeId, name: &str) -> NodeId {
    fs.mkdir(&caller(false), dir, name.as_bytes(), 0o755).unwrap().node
}

fn create(fs: &Fs, dir: NodeId, name: &str) -> kvfs::fs::Result<(NodeId, u64)> {
    let flags = libc::O_CREAT | libc::O_RDWR;
    fs.create(&caller(false), dir, name.as_bytes(), 0o644, flags).map(|(attr, opened)| (attr.node, opened.fh))
}

/// Does `one` and `other` at the same moment, again and again: each is given the number of the time.
fn meet(fs: &Fs, prepare: impl Fn(usize), one: impl Fn(usize) + Sync, other: impl Fn(usize) + Sync) {
    let (start, end) = (Barrier::new(3), Barrier::new(3));
    let failed = AtomicBool::new(false);
    // Who panics must not leave the others waiting.
    let tried = |act: &dyn Fn(usize), n| {
        let done = failed.load(Relaxed) || catch_unwind(AssertUnwindSafe(|| act(n))).is_ok();
        failed.fetch_or(!done, Relaxed);
    };
    std::thread::scope(|scope| {
        for act in [&one as &(dyn Fn(usize) + Sync), &other] {
            let (start, end, tried) = (&start, &end, &tried);
            scope.spawn(move || {
                for n in 0..TIMES {
                    start.wait();
                    tried(&|n| act(n), n);
                    end.wait();
                }
            });
        }
        for n in 0..TIMES {
            tried(&prepare, n);
            start.wait();
            end.wait();
        }
    });
    assert!(!failed.load(Relaxed), "a thread has panicked, see above");
    assert_eq!(fs.handles_open(), 0);
}

/// Of a directory that appears on two backings at once, with one file on both, the newest copy is the file.
/// Else the next mount shows another file.
#[test]
fn the_newest_file_of_an_appearing_directory_is_the_file() {
    let at = At { dir: &[], name: "a" };
    run(&[Op::PlaceTree { at, backings: vec![0, 1], shared: true }]).unwrap();
}

/// A directory that is gone from one of its backings can be removed. It once waited for its own lock.
#[test]
fn removing_a_directory_that_one_backing_has_lost() {
    for replace in [false, true] {
        let disks = Disks::new();
        for dir in ["backing0/d", "backing1/d", "backing0/e"] {
            std::fs::create_dir(disks.temp.path().join(dir)).unwrap();
        }
        let fs = Arc::new(disks.mount([0, 1, 2], false, true));
        std::fs::remove_dir(disks.temp.path().join("backing0/d")).unwrap();
        let (send, done) = mpsc::channel();
        let other = fs.clone();
        std::thread::spawn(move || {
            other.lookup(ROOT, b"d").unwrap();
            let removed = match replace {
                true => other.rename(ROOT, b"e", ROOT, b"d", RenameMode::Replace),
                false => other.rmdir(ROOT, b"d"),
            };
            drop(other);
            let _ = send.send(removed);
        });
        match done.recv_timeout(Duration::from_secs(5)) {
            Ok(removed) => assert_eq!(removed, Ok(())),
            Err(_) => panic!("it waits for ever (replace: {replace})"),
        }
        settled(&disks, Arc::into_inner(fs).unwrap());
    }
}

/// While a directory is renamed across directories, a file makes it come to be on another backing.
#[test]
fn a_directory_grows_onto_a_backing_while_it_is_renamed() {
    let disks = Disks::new();
    let fs = disks.mount([0, 1, 2], false, false);
    // Nobody else needs `to` on all backings.
    let dirs = |n: usize| (format!("from{n}"), format!("to{n}"));
    let nodes = parking_lot::Mutex::new((ROOT, ROOT));
    meet(
        &fs,
        |n| *nodes.lock() = (mkdir(&fs, ROOT, &dirs(n).0), mkdir(&fs, ROOT, &dirs(n).1)),
        |n| {
            let to = nodes.lock().1;
            fs.rename(ROOT, dirs(n).0.as_bytes(), to, b"moved", RenameMode::Replace).unwrap();
        },
        |n| {
            let from = nodes.lock().0;
            for k in 0..3 {
                let (_, fh) = create(&fs, from, &format!("{n}-{k}.pt")).unwrap();
                fs.release(fh);
            }
        },
    );
    settled(&disks, fs);
}

/// While a directory on several backings is renamed into another, that one is removed.
#[test]
fn a_directory_is_renamed_into_one_that_is_removed() {
    let disks = Disks::new();
    let fs = disks.mount([0, 1, 2], false, false);
    let nodes = parking_lot::Mutex::new(ROOT);
    meet(
        &fs,
        |n| {
            let from = mkdir(&fs, ROOT, &format!("from{n}"));
            for k in 0..4 {
                fs.release(create(&fs, from, &format!("{n}-{k}.pt")).unwrap().1);
            }
            *nodes.lock() = mkdir(&fs, ROOT, &format!("to{n}"));
        },
        |n| {
            let to = *nodes.lock();
            match fs.rename(ROOT, format!("from{n}").as_bytes(), to, b"moved", RenameMode::Replace) {
                Ok(()) => {}
                Err(e) => assert_eq!(e.errno(), Errno::NOENT),
            }
        },
        |n| match fs.rmdir(ROOT, format!("to{n}").as_bytes()) {
            Ok(()) => {}
            Err(e) => assert_eq!(e.errno(), Errno::NOTEMPTY),
        },
    );
    settled(&disks, fs);
}

/// Two directories change places while a file is made in one, and no directory is kept open.
#[test]
fn a_file_is_made_in_a_directory_that_changes_places() {
    let disks = Disks::new();
    let fs = disks.mount([0, 1, 2], false, true);
    let (a, b) = (mkdir(&fs, ROOT, "a"), mkdir(&fs, ROOT, "b"));
    meet(
        &fs,
        |_| {},
        |_| (0..4).for_each(|_| fs.rename(ROOT, b"a", ROOT, b"b", RenameMode::Exchange).unwrap()),
        |n| {
            for dir in [a, b, a, b, a, b] {
                fs.release(create(&fs, dir, &format!("{}.pt", n % 40)).unwrap().1);
            }
        },
    );
    settled(&disks, fs);
}

/// A file is closed for the last time while it's removed: its room must be given back.
#[test]
fn a_file_is_closed_while_it_is_removed() {
    let disks = Disks::new();
    let fs = disks.mount([0, 1, 2], false, false);
    let handles = parking_lot::Mutex::new(Vec::new());
    let names: Vec<String> = (0..10).map(|n| format!("file{n}.pt")).collect();
    meet(
        &fs,
        |_| *handles.lock() = names.iter().map(|name| create(&fs, ROOT, name).unwrap().1).collect(),
        |_| handles.lock().drain(..).for_each(|fh| fs.release(fh)),
        |_| names.iter().for_each(|name| fs.unlink(ROOT, name.as_bytes()).unwrap()),
    );
    let kept = removed_and_open(&fs, disks.temp.path());
    assert!(kept.is_empty(), "removed, and still held open: {kept:?}");
    assert!(raw_tree(&disks.dirs).is_empty());
}
