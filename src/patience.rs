//! Asks what may never answer, and gives up.
//!
//! The kernel answers some questions about a process only while that isn't in the middle of something: its command line
//! and its environment wait for the lock of its memory, its environment for an `exec` as well (`mm_access`,
//! kernel/fork.c), and an `exec` waits for the file systems whose files it closes. What always holds: nobody waits longer
//! than was said, and no more threads than were said are left behind.

use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use parking_lot::Mutex;

/// Those threads read a file or two.
const STACK: usize = 256 << 10;

/// How long to wait, and of how many processes the answers may be outstanding for longer.
pub(crate) struct Patience {
    within: Duration,
    most: usize,
    /// About whom, and whether that thread is still there.
    late: Mutex<Vec<(u32, Weak<()>)>>,
}

impl Patience {
    pub(crate) const fn new(within: Duration, most: usize) -> Self {
        Self { within, most, late: Mutex::new(Vec::new()) }
    }

    /// What this answers about a process, on a thread of its own. `None` when that takes longer, and at once while an
    /// earlier question about it, or too many about others, have no answer yet.
    pub(crate) fn ask<T, W>(&self, pid: u32, work: W) -> Option<T>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let late = self.late();
        if late.len() >= self.most || late.contains(&pid) {
            return None;
        }
        let (running, (tell, told)) = (Arc::new(()), mpsc::sync_channel(1));
        let ended = Arc::downgrade(&running);
        let run = move || {
            let _running = running;
            crate::processors::anywhere();
            // Nobody may be waiting any more.
            let _ = tell.send(work());
        };
        std::thread::Builder::new().name("kvfs-ask".into()).stack_size(STACK).spawn(run).ok()?;
        let answer = told.recv_timeout(self.within).ok();
        if answer.is_none() {
            self.late.lock().push((pid, ended));
        }
        answer
    }

    /// The processes about which questions were given up that still have no answer.
    fn late(&self) -> Vec<u32> {
        let mut late = self.late.lock();
        late.retain(|(_, running)| running.strong_count() > 0);
        late.iter().map(|(pid, _)| *pid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until_nobody_is_late(patience: &Patience) {
        while !patience.late().is_empty() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_answers_is_waited_for() {
        let patience = Patience::new(Duration::from_secs(60), 0x10);
        assert_eq!(patience.ask(1, || 7), Some(7));
        // Whoever panics has no answer, and isn't late.
        assert_eq!(patience.ask(1, || -> u8 { panic!("on purpose") }), None);
        until_nobody_is_late(&patience);
    }

    #[test]
    fn what_never_answers_is_given_up_and_left_alone() {
        let patience = Patience::new(Duration::from_millis(20), 2);
        let (ran, runs) = mpsc::channel();
        let asked = |pid, ran: &mpsc::Sender<()>| {
            let ran = ran.clone();
            patience.ask(pid, move || ran.send(()).is_ok())
        };
        let hang = |pid| {
            let (free, freed) = mpsc::channel::<()>();
            assert_eq!(patience.ask(pid, move || freed.recv()), None);
            free
        };
        let first = hang(1);
        assert_eq!(asked(1, &ran), None, "one question at a time");
        let second = hang(2);
        assert_eq!(patience.late(), [1, 2]);
        assert_eq!(asked(3, &ran), None, "two are enough");
        drop(ran);
        assert!(runs.recv().is_err(), "no thread was begun for these");
        drop((first, second));
        until_nobody_is_late(&patience);
        assert_eq!(hang(3).send(()), Ok(()), "and once more");
    }
}
