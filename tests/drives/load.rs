//! Clients at work: for each drive one that makes, reads and removes files, and counts how that goes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use crate::common::{ns, pattern, ranked};

#[derive(Default)]
struct Seen {
    rounds: AtomicU64,
    errors: Mutex<BTreeSet<i32>>,
    resting: AtomicBool,
    rests: AtomicU64,
}

/// Ends when dropped.
pub(super) struct Load {
    seen: Vec<Arc<Seen>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// A client for each of `n` drives, in a directory of its own below `point`.
    pub(super) fn start(point: &Path, n: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let seen: Vec<Arc<Seen>> = (0..n).map(|_| Arc::default()).collect();
        let client = |rank: usize| {
            let dir = point.join(format!("load{rank}"));
            std::fs::create_dir_all(&dir).unwrap();
            let (seen, stop) = (seen[rank].clone(), stop.clone());
            std::thread::spawn(move || work(&dir, rank, &seen, &stop))
        };
        let clients = (0..n).map(client).collect();
        let load = Load { seen, stop, clients };
        (0..n).for_each(|rank| load.goes_on(rank));
        load
    }

    /// Waits until a client has done some whole rounds more.
    #[track_caller]
    pub(super) fn goes_on(&self, rank: usize) {
        let from = self.seen[rank].rounds.load(SeqCst);
        self.wait(rank, "at work", |seen| seen.rounds.load(SeqCst) >= from + 3);
    }

    /// The errors that a client has met.
    pub(super) fn errors(&self, rank: usize) -> Vec<i32> {
        self.seen[rank].errors.lock().iter().copied().collect()
    }

    /// Lets a client rest between two rounds, and waits until it does.
    #[track_caller]
    pub(super) fn rest(&self, rank: usize, rests: bool) {
        let from = self.seen[rank].rests.load(SeqCst);
        self.seen[rank].resting.store(rests, SeqCst);
        if rests {
            self.wait(rank, "resting", |seen| seen.rests.load(SeqCst) > from);
        }
    }

    #[track_caller]
    fn wait(&self, rank: usize, what: &str, done: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + ns::HANG;
        while !done(&self.seen[rank]) {
            assert!(!self.clients[rank].is_finished(), "client {rank} has ended");
            assert!(Instant::now() < deadline, "client {rank} isn't {what}: {:?}", self.errors(rank));
            std::thread::yield_now();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for client in self.clients.drain(..) {
            let ended = client.join();
            if !std::thread::panicking() {
                ended.expect("a client has ended well");
            }
        }
    }
}

fn work(dir: &Path, rank: usize, seen: &Seen, stop: &AtomicBool) {
    for i in 0.. {
        while seen.resting.load(SeqCst) && !stop.load(SeqCst) {
            seen.rests.fetch_add(1, SeqCst);
            std::thread::yield_now();
        }
        if stop.load(SeqCst) {
            return;
        }
        match round(&dir.join(ranked(rank, i)), i as u64) {
            Ok(()) => drop(seen.rounds.fetch_add(1, SeqCst)),
            Err(e) => drop(seen.errors.lock().insert(e.raw_os_error().unwrap_or(0))),
        }
    }
}

/// A file's life: made, read back, renamed, read again, removed.
fn round(path: &PathBuf, seed: u64) -> io::Result<()> {
    let data = pattern(seed, 20_000);
    std::fs::write(path, &data)?;
    assert!(std::fs::read(path)? == data, "what was read is what was written");
    let renamed = path.with_extension("renamed");
    std::fs::rename(path, &renamed)?;
    assert!(std::fs::read(&renamed)? == data, "what was read is what was written");
    std::fs::remove_file(&renamed)
}
