//! The start of the threads that answer: none reads a client's request before all are ready for one.
//!
//! What always holds: each thread comes here once, and all leave together, when the device has taken the place
//! of the socket that they read from before.

use std::io;
use std::sync::{Barrier, OnceLock};

use parking_lot::{Condvar, Mutex};

use super::handshake::{Threshold, touch_buffer};

/// Where threads wait for each other.
pub(super) struct Start {
    all: Barrier,
    threshold: OnceLock<Threshold>,
    outcome: Mutex<Option<io::Result<()>>>,
    told: Condvar,
}

impl Start {
    /// For so many threads.
    pub(super) fn new(threads: usize) -> Start {
        let (outcome, told) = (Mutex::default(), Condvar::new());
        Start { all: Barrier::new(threads), threshold: OnceLock::new(), outcome, told }
    }

    /// What is to be crossed.
    pub(super) fn set(&self, threshold: Threshold) {
        let _ = self.threshold.set(threshold);
    }

    /// A thread has come; `inside` is a part of its buffer.
    pub(super) fn arrive(&self, inside: &[u8]) {
        touch_buffer(inside);
        if self.all.wait().is_leader() {
            let crossed = match self.threshold.get() {
                Some(threshold) => threshold.cross(),
                None => Err(io::Error::other("nothing to cross")),
            };
            *self.outcome.lock() = Some(crossed);
            self.told.notify_all();
        }
        self.all.wait();
    }

    /// Waits until all have left.
    pub(super) fn crossed(&self) -> io::Result<()> {
        let mut outcome = self.outcome.lock();
        while outcome.is_none() {
            self.told.wait(&mut outcome);
        }
        outcome.take().unwrap_or(Ok(()))
    }
}
