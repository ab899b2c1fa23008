//! Requests at work: each thread that serves one has a record of it, with what it's about to change on disk.
//!
//! What always holds: an [`Intent`] is written after its operation has found that it may begin, under the lock
//! of its name, and before anything is changed on disk. So whoever finds one after a crash can tell from the
//! disk whether the operation was done: what it makes wasn't there before it began, what it removes was. A
//! record goes once the answer was sent, or when its thread begins with the next request; what the kernel doesn't
//! send again had been answered, and its record is given back after a while. A daemon that is killed before that
//! passes them on, but not for ever.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::alone::Alone;
use super::door::Door;
#[cfg(test)]
use super::state::WORK_RECORDS;
use super::state::{State, WORK_ROOM, WorkRecord, load, store};

/// Set in `fuse_in_header.unique` of a request that is sent again (`FUSE_UNIQUE_RESEND`,
/// include/uapi/linux/fuse.h).
const RESENT: u64 = 1 << 63;
/// A request over which so many daemons died is answered with an error.
const DEADLY: u32 = 3;

/// A request that wasn't sent again to so many daemons had been answered: what is sent again comes first.
const PASSED_ON: u32 = 32;

/// After so many requests that aren't sent again, and so long, none is that is.
const MANY: usize = 4096;
const LONG: Duration = Duration::from_secs(1);

/// A path below the mount's root.
pub type Path = Vec<u8>;

/// What an operation is about to do on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Something new under a name that isn't there.
    Make(Path),
    /// A name goes.
    Remove(Path),
    /// The inode of this number gets one more name, that isn't there.
    Link(Path),
    /// A file's name changes; on which backing it is, with its inode number.
    RenameFile {
        /// The old name.
        from: Path,
        /// The new one.
        to: Path,
        /// The backing.
        slot: u8,
        /// The inode number there.
        ino: u64,
    },
    /// A directory's name changes on these backings (bits of slots); nothing has the new name there.
    RenameDir {
        /// Its number.
        dir: u32,
        /// The old name.
        from: Path,
        /// The new one.
        to: Path,
        /// Backings that have it.
        slots: u64,
    },
    /// Two names change places.
    Exchange {
        /// One.
        from: Path,
        /// The other.
        to: Path,
        /// Where each is, and its inode number; of a directory on the first of its backings.
        sides: [(u8, u64); 2],
    },
    /// An attribute is set that must not be there, or must, or is removed.
    Attribute,
}

/// What became of an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It wasn't, or not as a whole: it's done again from the start.
    Open,
}

/// What is known of a request that comes again.
#[derive(Clone, Copy, Debug)]
struct Known {
    record: u32,
    intended: bool,
    outcome: Outcome,
    deaths: u32,
}

/// The requests at work.
#[derive(Debug)]
pub struct Work {
    state: Option<Arc<State>>,
    /// The last daemon ended by a fault of its own.
    crashed: bool,
    /// Those of the daemons before, by number.
    known: Mutex<HashMap<u64, Known>>,
    /// Of those, requests over which one has died, by whichever's fault.
    suspects: Alone,
    /// Requests since then that aren't sent again; beyond `MANY` nobody counts.
    new: AtomicUsize,
    since: Instant,
    /// What they come in by.
    pub door: Door,
}

/// What a thread is doing.
#[derive(Default)]
struct Current {
    /// The thread's own record.
    own: Option<(Arc<State>, u32)>,
    /// That of a daemon before, while its request is served again.
    adopted: Option<u32>,
    unique: u64,
    done: bool,
    begun: bool,
    intended: bool,
    sent_again: bool,
    thread: u32,
}

impl Current {
    /// The record of the request that is being served.
    fn record(&self) -> Option<&WorkRecord> {
        let (state, own) = self.own.as_ref()?;
        state.work_records().get(self.adopted.unwrap_or(*own) as usize)
    }

    /// The request that was served last was answered.
    fn answered(&mut self) {
        if let Some(record) = self.record() {
            record.unique.store(0, Release);
        }
        if let (Some((state, _)), Some(adopted)) = (&self.own, self.adopted.take()) {
            state.work.lock().push(adopted);
        }
        (self.unique, self.done, self.begun, self.intended) = (0, false, false, false);
        self.sent_again = false;
    }
}

impl Default for Work {
    fn default() -> Work {
        Work::new(None, false)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        self.answered();
        if let Some((state, own)) = self.own.take() {
            state.work.lock().push(own);
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Current> = RefCell::default();
}

/// The request is one over which several daemons have died.
#[derive(Debug, thiserror::Error)]
#[error("{0} daemons have died over this request: it's answered with an error")]
pub struct Deadly(u32);

impl Work {
    /// Kept in this state; of none, nothing is kept. `crashed`: the daemon before ended by a fault of its own.
    pub fn new(state: Option<Arc<State>>, crashed: bool) -> Work {
        let new = AtomicUsize::new(MANY + 1);
        let (known, suspects, door) = Default::default();
        Work { state, crashed, known, suspects, new, since: Instant::now(), door }
    }

    /// Looks at what the daemons before were doing: each intent is given to `settle`, which looks at the disk.
    pub fn take_over(&self, mut settle: impl FnMut(&Intent) -> Outcome) {
        let Some(state) = &self.state else { return };
        let crashed = self.crashed;
        let mut used = Vec::new();
        let mut known = self.known.lock();
        for (at, record) in state.work_records().iter().enumerate() {
            let unique = record.unique.load(Acquire);
            if unique == 0 {
                continue;
            }
            if record.takeovers.fetch_add(1, Relaxed) >= PASSED_ON {
                record.unique.store(0, Release);
                continue;
            }
            used.push(at as u32);
            let deaths = if crashed && record.at_work.swap(0, Relaxed) != 0 {
                record.deaths.fetch_add(1, Relaxed) + 1
            } else {
                record.deaths.load(Relaxed)
            };
            let len = (record.intent_len.load(Acquire) as usize).min(WORK_ROOM);
            let intent = (len > 0).then(|| postcard::from_bytes(&load(&record.intent, len)).ok()).flatten();
            let outcome = intent.as_ref().map_or(Outcome::Open, &mut settle);
            let intended = intent.is_some();
            known.insert(unique, Known { record: at as u32, intended, outcome, deaths });
        }
        state.work.lock().retain(|at| !used.contains(at));
        self.new.store(0, Relaxed);
    }

    /// A request has come that isn't sent again: those that are came before it.
    ///
    /// So what is still known after many of these was answered before the last crash, and is forgotten. Not at
    /// once: another thread may have read one and not begun with it.
    fn age(&self, state: &State) {
        if self.new.load(Relaxed) > MANY || self.new.fetch_add(1, Relaxed) < MANY {
            return;
        }
        if self.since.elapsed() < LONG {
            self.new.store(0, Relaxed);
            return;
        }
        for (_, known) in self.known.lock().drain() {
            if let Some(record) = state.work_records().get(known.record as usize) {
                record.unique.store(0, Release);
                state.work.lock().push(known.record);
            }
        }
    }

    /// Whether anything is written down.
    pub fn is_kept(&self) -> bool {
        self.state.is_some()
    }

    /// Whether a daemon before was doing this, too, when it died.
    #[cfg(test)]
    fn suspects(&self) -> bool {
        self.known.lock().values().any(|known| known.deaths > 0)
    }

    /// A request has come: what this thread does from now on is for it, and what it did before was answered.
    pub fn begin(&self, unique: u64, op: u32) -> Result<(), Deadly> {
        self.door.pass();
        let Some(state) = &self.state else { return Ok(()) };
        let plain = unique & !RESENT;
        if unique & RESENT == 0 {
            self.age(state);
        }
        let known = if unique & RESENT == 0 { None } else { self.known.lock().remove(&plain) };
        self.suspects.leave(self::unique());
        CURRENT.with_borrow_mut(Current::answered);
        if known.is_some_and(|known| (1..DEADLY).contains(&known.deaths)) {
            // Not at work yet: if the daemon dies meanwhile, it's over another.
            self.suspects.enter(plain);
        }
        CURRENT.with_borrow_mut(|current| {
            if current.own.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, state)) {
                *current = Current::default();
                current.own = state.work.lock().pop().map(|at| (state.clone(), at));
            }
            (current.unique, current.sent_again) = (plain, plain != unique);
            if let Some(known) = known {
                (current.begun, current.done) = (true, known.outcome == Outcome::Done);
                current.intended = known.intended;
                current.adopted = current.own.is_some().then_some(known.record);
            }
            if let Some(record) = current.record() {
                if known.is_none() {
                    record.intent_len.store(0, Relaxed);
                    record.deaths.store(0, Relaxed);
                }
                record.op.store(op, Relaxed);
                record.takeovers.store(0, Relaxed);
                record.at_work.store(1, Relaxed);
                record.unique.store(plain, Release);
            }
        });
        match known {
            Some(known) if known.deaths >= DEADLY => Err(Deadly(known.deaths)),
            _ => Ok(()),
        }
    }

    /// The request that this thread is at was answered, unless it was handed on.
    pub fn answered(&self) {
        if self.state.is_some() {
            CURRENT.with_borrow_mut(Current::answered);
        }
    }

    /// The request that this thread is at was served, or handed on.
    pub fn served(&self) {
        if self.state.is_some() {
            self.suspects.leave(unique());
        }
    }
}

/// A request that another thread goes on with.
pub struct HandedOver(Current);

/// Takes the request at work from this thread.
pub fn hand_over() -> HandedOver {
    HandedOver(CURRENT.take())
}

impl HandedOver {
    /// This thread goes on with it.
    pub fn resume(self) {
        drop(CURRENT.replace(self.0));
    }
}

/// The request that this thread serves was done by a daemon that died before it could answer.
pub fn is_done() -> bool {
    CURRENT.with_borrow(|current| current.done)
}

/// A daemon that died had begun with the request that this thread serves.
pub fn was_begun() -> bool {
    CURRENT.with_borrow(|current| current.begun)
}

/// A daemon that died had written down what it was about to do for the request that this thread serves.
pub fn was_intended() -> bool {
    CURRENT.with_borrow(|current| current.intended)
}

/// The request that this thread serves was read by a daemon that died before it could answer.
pub fn is_sent_again() -> bool {
    CURRENT.with_borrow(|current| current.sent_again)
}

/// The request that this thread serves is a client's, by this thread of it.
pub fn asked_by(thread: u32) {
    CURRENT.with_borrow_mut(|current| current.thread = thread);
}

/// The thread of a client whose request this thread serves.
pub fn asking_thread() -> u32 {
    CURRENT.with_borrow(|current| current.thread)
}

/// The number of the request that this thread serves; 0 for none.
pub fn unique() -> u64 {
    CURRENT.with_borrow(|current| current.unique)
}

impl Work {
    /// Writes down what this thread is about to do for its request.
    pub fn intend(&self, intent: impl FnOnce() -> Intent) {
        CURRENT.with_borrow(|current| {
            let Some(record) = current.record().filter(|_| self.state.is_some()) else { return };
            // What is longer than any two paths isn't kept: after a crash it's done again.
            let mut room = [0; WORK_ROOM];
            let len = postcard::to_slice(&intent(), &mut room).map_or(0, |bytes| bytes.len());
            record.intent_len.store(0, Release);
            store(&record.intent, &room[..len]);
            record.intent_len.store(len as u32, Release);
        });
    }
}

#[cfg(test)]
mod tests;
