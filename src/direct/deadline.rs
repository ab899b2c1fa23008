//! Deadlines of calls under way.
//!
//! A client in an ioctl can't be killed before it's answered (fs/fuse/dev.c: a request that was read is waited
//! for). What always holds: every call is answered by its deadline, whatever became of its ops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use slab::Slab;

use super::call::{Answer, Call};

/// How late a deadline may be noticed.
const COARSENESS: Duration = Duration::from_millis(250);

/// The calls under way.
pub(crate) struct Deadlines {
    calls: Mutex<Slab<Option<Arc<Call>>>>,
    started: Condvar,
    limit: Duration,
}

impl Deadlines {
    /// Calls get `limit` from now on.
    pub(crate) fn start(limit: Duration) -> std::io::Result<Arc<Deadlines>> {
        let deadlines = Arc::new(Deadlines { calls: Mutex::default(), started: Condvar::new(), limit });
        let watched = Arc::downgrade(&deadlines);
        std::thread::Builder::new().name("kvfs-deadlines".into()).spawn(move || {
            while let Some(deadlines) = watched.upgrade() {
                deadlines.look();
            }
        })?;
        Ok(deadlines)
    }

    /// A call of `ops` ops that is answered in time.
    pub(crate) fn call(self: &Arc<Deadlines>, ops: usize, answer: Answer) -> Arc<Call> {
        let deadline = Instant::now() + self.limit;
        let mut calls = self.calls.lock();
        let key = calls.insert(None);
        let theirs = self.clone();
        let call = Call::new(
            ops,
            deadline,
            Box::new(move |outcome| {
                theirs.calls.lock().try_remove(key);
                answer(outcome);
            }),
        );
        calls[key] = Some(call.clone());
        let first = calls.len() == 1;
        drop(calls);
        if first {
            self.started.notify_one();
        }
        call
    }

    /// Calls under way.
    pub(crate) fn count(&self) -> u64 {
        self.calls.lock().len() as u64
    }

    /// Answers the calls that are late; waits a while.
    fn look(&self) {
        let late: Vec<_> = {
            let mut calls = self.calls.lock();
            if calls.is_empty() {
                self.started.wait_for(&mut calls, Duration::from_secs(5));
            }
            let now = Instant::now();
            let is_late = |call: &&Arc<Call>| call.deadline() <= now;
            calls.iter().filter_map(|(_, call)| call.as_ref()).filter(is_late).cloned().collect()
        };
        for call in late {
            if call.expire() {
                tracing::warn!("a transfer was answered with ETIMEDOUT after {:?}", self.limit);
            }
        }
        std::thread::sleep(COARSENESS);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_call_is_answered_without_its_ops() {
        let deadlines = Deadlines::start(Duration::from_millis(1)).unwrap();
        let (send, receive) = mpsc::channel();
        let call = deadlines.call(1, Box::new(move |o| send.send(o.results).unwrap()));
        let ticket = call.ticket(0);
        assert_eq!(receive.recv().unwrap(), [-i64::from(libc::ETIMEDOUT)]);
        assert_eq!(deadlines.count(), 0);
        drop(ticket);
    }
}
