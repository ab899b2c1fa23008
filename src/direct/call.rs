//! A call under way: the results of its ops, and who waits for them.
//!
//! What always holds: a call is answered exactly once, by the op that ends last or by its deadline; an op
//! that is dropped without a result has failed with EIO; an op that ends after the answer changes nothing
//! but what it has written.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering::*};
use std::time::Instant;

use parking_lot::Mutex;

use super::abi::Path;
use crate::fs::Pinned;

/// The result of an op that hasn't ended: no errno and no byte count.
const PENDING: i64 = i64::MIN;

/// What the waiting client gets.
pub(crate) struct Outcome {
    /// By op: bytes, `-errno`, or `-(cuFile code)`.
    pub(crate) results: Vec<i64>,
    /// The path that served them; the lowest number if there were several.
    pub(crate) path: u32,
}

/// Told once, when the call has ended.
pub(crate) type Answer = Box<dyn FnOnce(Outcome) + Send>;

/// One ioctl with transfers.
pub(crate) struct Call {
    results: Box<[AtomicI64]>,
    remaining: AtomicUsize,
    path: AtomicU32,
    answer: Mutex<Option<Answer>>,
    changed: Mutex<Changed>,
    deadline: Instant,
}

/// The files that a call has written to, each with the range, until they are told of.
#[derive(Default)]
struct Changed {
    files: Vec<(Arc<Pinned>, u64, u64)>,
    /// Nobody waits any more: told at once.
    late: bool,
}

impl Call {
    /// A call of `ops` ops (at least one), which is answered at `deadline` at the latest.
    pub(crate) fn new(ops: usize, deadline: Instant, answer: Answer) -> Arc<Call> {
        Arc::new(Call {
            results: (0..ops).map(|_| AtomicI64::new(PENDING)).collect(),
            remaining: AtomicUsize::new(ops),
            path: AtomicU32::new(u32::MAX),
            answer: Mutex::new(Some(answer)),
            changed: Mutex::default(),
            deadline,
        })
    }

    /// The right to end one op. Each op's is to be taken once.
    pub(crate) fn ticket(self: &Arc<Call>, op: usize) -> Ticket {
        Ticket { call: self.clone(), op, ended: false }
    }

    /// When it's answered at the latest.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Answers now: ops that haven't ended get `ETIMEDOUT`. Whether it was this that answered.
    pub(crate) fn expire(&self) -> bool {
        let Some(answer) = self.answer.lock().take() else { return false };
        let changed = self.take_changed();
        answer(self.outcome());
        // The kernel may make this wait for a drive, without passthrough: neither this client nor the deadlines
        // of others.
        if !changed.is_empty() {
            let tell = move || tell(changed);
            if let Err(e) = std::thread::Builder::new().name("kvfs-changed".into()).spawn(tell) {
                tracing::warn!("the kernel isn't told of what a late transfer has written: {e}");
            }
        }
        true
    }

    fn reply(&self) {
        // With the answer still there: if this takes too long, the deadline gives it.
        tell(self.take_changed());
        let Some(answer) = self.answer.lock().take() else { return };
        answer(self.outcome());
    }

    /// What the call has written to so far; what comes later is told of at once.
    fn take_changed(&self) -> Vec<(Arc<Pinned>, u64, u64)> {
        let mut changed = self.changed.lock();
        changed.late = true;
        std::mem::take(&mut changed.files)
    }

    fn outcome(&self) -> Outcome {
        let result = |r: &AtomicI64| match r.load(Acquire) {
            PENDING => -i64::from(libc::ETIMEDOUT),
            result => result,
        };
        let path = self.path.load(Relaxed);
        Outcome {
            results: self.results.iter().map(result).collect(),
            path: if path == u32::MAX { Path::None as u32 } else { path },
        }
    }

    /// A file was written to. Told of once for all ops of the call, before it's answered.
    fn changed(&self, file: Arc<Pinned>, offset: u64, len: u64) {
        let mut changed = self.changed.lock();
        if changed.late {
            drop(changed);
            return file.data_changed(offset, len);
        }
        let end = offset.saturating_add(len);
        match changed.files.iter_mut().find(|(known, ..)| known.serial() == file.serial()) {
            Some((_, from, to)) => (*from, *to) = ((*from).min(offset), (*to).max(end)),
            None => changed.files.push((file, offset, end)),
        }
    }

    fn ended(&self, op: usize, result: i64) {
        self.results[op].store(result, Release);
        if self.remaining.fetch_sub(1, AcqRel) == 1 {
            self.reply();
        }
    }
}

/// Tells the kernel of ranges of files that have changed.
fn tell(changed: Vec<(Arc<Pinned>, u64, u64)>) {
    for (file, start, end) in changed {
        file.data_changed(start, end - start);
    }
}

/// The right, and the duty, to end one op of a call.
pub(crate) struct Ticket {
    call: Arc<Call>,
    op: usize,
    ended: bool,
}

impl Ticket {
    /// Ends the op: bytes, `-errno` or `-(cuFile code)`, and the path that it took.
    pub(crate) fn end(mut self, result: i64, path: Path) {
        self.ended = true;
        if path != Path::None {
            self.call.path.fetch_min(path as u32, Relaxed);
        }
        self.call.ended(self.op, result);
    }

    /// The op has changed bytes of a file.
    pub(super) fn changed(&self, file: Arc<Pinned>, offset: u64, len: u64) {
        self.call.changed(file, offset, len);
    }

    /// When the client stops waiting.
    pub(crate) fn deadline(&self) -> Instant {
        self.call.deadline
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            self.call.ended(self.op, -i64::from(libc::EIO));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn call(ops: usize) -> (Arc<Call>, mpsc::Receiver<Outcome>) {
        let (send, receive) = mpsc::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        (Call::new(ops, deadline, Box::new(move |o| send.send(o).unwrap())), receive)
    }

    #[test]
    fn the_last_op_answers() {
        let (call, answer) = call(3);
        call.ticket(1).end(5, Path::CufileStaged);
        call.ticket(0).end(7, Path::Bounce);
        assert!(answer.try_recv().is_err());
        call.ticket(2).end(-5012, Path::None);
        let outcome = answer.try_recv().unwrap();
        assert_eq!((outcome.results, outcome.path), (vec![7, 5, -5012], Path::Bounce as u32));
    }

    #[test]
    fn a_dropped_op_has_failed_and_a_late_one_is_timed_out() {
        let (call, answer) = call(2);
        drop(call.ticket(0));
        let late = call.ticket(1);
        assert!(call.expire());
        let outcome = answer.try_recv().unwrap();
        assert_eq!(outcome.results, [-i64::from(libc::EIO), -i64::from(libc::ETIMEDOUT)]);
        late.end(1, Path::Bounce);
        assert!(!call.expire());
        assert!(answer.try_recv().is_err());
    }
}
