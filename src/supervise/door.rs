//! The door that requests come in by: closed before a daemon hands over to another.
//!
//! What always holds: a request that comes when the door is closed isn't begun with and gets no answer, so the
//! kernel sends it to the next daemon. Whoever closes the door waits for those inside, but not for ever: what
//! they haven't answered by then comes again, too.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How often those inside are counted.
const LOOK: Duration = Duration::from_micros(200);

/// Open, until it's closed for good.
#[derive(Debug, Default)]
pub struct Door {
    closed: AtomicBool,
    inside: AtomicUsize,
}

/// A request at work.
#[derive(Debug)]
pub struct Inside<'a>(&'a Door);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

impl Door {
    /// A request has come. Where the door is closed its thread stays here until the process ends.
    pub fn pass(&self) {
        while self.closed.load(SeqCst) {
            std::thread::park();
        }
    }

    /// A request is worked on while this is there.
    pub fn work(&self) -> Inside<'_> {
        self.inside.fetch_add(1, SeqCst);
        Inside(self)
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    /// Waits until nobody is inside and `others` says so too. False when that took longer than `patience`.
    pub fn is_empty_within(&self, patience: Duration, others: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        while self.inside.load(SeqCst) > 0 || !others() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_inside_are_waited_for_and_nobody_comes_in() {
        let door = &Door::default();
        door.pass();
        let inside = door.work();
        door.close();
        assert!(!door.is_empty_within(Duration::from_millis(1), || true));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| door.is_empty_within(Duration::from_secs(60), || true));
            drop(inside);
            assert!(waiting.join().unwrap());
        });
        assert!(!door.is_empty_within(Duration::from_millis(1), || false));
    }
}
