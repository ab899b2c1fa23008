//! One at a time: requests that were at work when a daemon died by a fault of its own.
//!
//! What always holds: while one of them is served no other is, so the next death tells which it was, and whoever was
//! merely there at the same time isn't taken for it. One that waits for long is served all the same: it may be
//! behind a drive.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Alone {
    /// A request's number, 0 for nobody's.
    turn: AtomicU64,
    waiting: Mutex<()>,
    over: Condvar,
    pub(super) patience: Duration,
}

impl Default for Alone {
    fn default() -> Alone {
        let (turn, waiting, over) = Default::default();
        Alone { turn, waiting, over, patience: PATIENCE }
    }
}

impl Alone {
    /// Waits until no other has its turn.
    pub(super) fn enter(&self, unique: u64) {
        let until = Instant::now() + self.patience;
        let mut waiting = self.waiting.lock();
        while self.turn.compare_exchange(0, unique, AcqRel, Relaxed).is_err() {
            if self.over.wait_until(&mut waiting, until).timed_out() {
                tracing::debug!("request {unique} doesn't wait for others any longer");
                return;
            }
        }
    }

    /// The request was served.
    pub(super) fn leave(&self, unique: u64) {
        if unique != 0 && self.turn.load(Acquire) == unique {
            let _waiting = self.waiting.lock();
            self.turn.store(0, Release);
            self.over.notify_one();
        }
    }
}
