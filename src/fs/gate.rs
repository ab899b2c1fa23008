//! Transfers and truncations of one file, apart from each other.
//!
//! The kernel holds its inode lock over a write(2) and over a truncation, so the two never mix. A transfer of
//! the ioctl path is no write(2), and goes to the disk in pieces: a truncation in between would leave the later
//! pieces behind a hole. What always holds: while a truncation runs no transfer does; a transfer that comes
//! meanwhile waits without a thread.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

type Later = Box<dyn FnOnce(Passage) + Send>;

#[derive(Default)]
struct State {
    running: usize,
    truncations: usize,
    waiting: Vec<Later>,
}

/// One file's.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    idle: Condvar,
}

/// Leave for one transfer to run, until it's dropped.
pub(crate) struct Passage(Arc<Gate>);

impl Gate {
    /// Runs a transfer now; or, when a truncation is under way, when that has ended, on its thread.
    pub(super) fn enter(self: &Arc<Gate>, transfer: impl FnOnce(Passage) + Send + 'static) {
        let mut state = self.state.lock();
        if state.truncations > 0 {
            state.waiting.push(Box::new(transfer));
            return;
        }
        state.running += 1;
        drop(state);
        transfer(Passage(self.clone()));
    }

    /// The same for a transfer that can be tried again: `None` when it would have to wait.
    pub(super) fn try_enter(self: &Arc<Gate>) -> Option<Passage> {
        let mut state = self.state.lock();
        if state.truncations > 0 {
            return None;
        }
        state.running += 1;
        Some(Passage(self.clone()))
    }

    /// Whether a truncation would have to wait.
    pub(super) fn is_busy(&self) -> bool {
        self.state.lock().running > 0
    }

    /// Runs a truncation when no transfer is left.
    pub(super) fn truncating<T>(self: &Arc<Gate>, truncate: impl FnOnce() -> T) -> T {
        let mut state = self.state.lock();
        state.truncations += 1;
        while state.running > 0 {
            self.idle.wait(&mut state);
        }
        drop(state);
        // Opened again even if `truncate` panics.
        let _open = Reopen(self);
        truncate()
    }
}

struct Reopen<'a>(&'a Arc<Gate>);

impl Drop for Reopen<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.truncations -= 1;
        if state.truncations > 0 {
            return;
        }
        let waiting = std::mem::take(&mut state.waiting);
        state.running += waiting.len();
        drop(state);
        for transfer in waiting {
            transfer(Passage(self.0.clone()));
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running -= 1;
        if state.running == 0 {
            self.0.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_truncation_waits_for_transfers_and_they_for_it() {
        let gate = Arc::new(Gate::default());
        let first = gate.try_enter().unwrap();
        let (events, seen) = mpsc::channel();
        let truncation = std::thread::spawn({
            let (gate, events) = (gate.clone(), events.clone());
            move || gate.truncating(|| events.send("truncated").unwrap())
        });
        // It's waiting as soon as no transfer may start.
        while gate.try_enter().is_some() {}
        gate.enter(move |_| events.send("second transfer").unwrap());
        assert!(seen.try_recv().is_err());
        drop(first);
        truncation.join().unwrap();
        assert_eq!(seen.iter().take(2).collect::<Vec<_>>(), ["truncated", "second transfer"]);
        assert!(!gate.is_busy());
    }

    #[test]
    fn a_panic_leaves_the_gate_open() {
        let gate = Arc::new(Gate::default());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gate.truncating(|| panic!("on purpose"));
        }));
        assert!(panicked.is_err());
        assert!(gate.try_enter().is_some());
    }
}
