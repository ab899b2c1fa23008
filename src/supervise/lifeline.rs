//! Whether anything of a daemon that died is still under way.
//!
//! The kernel goes on with I/O that a process has begun when that is killed, and its parent hears of its end
//! before that of the I/O. A request that was answered again meanwhile could be overtaken by what the dead daemon
//! had begun for it: an older write would land on a newer one, or a read in memory that its client uses for something else.
//! So each daemon has a pipe, whose one end everything holds that can have I/O under way, rings of io_uring as
//! a registered file (the kernel lets go of those with a ring's last request: `io_ring_exit_work`); the other is
//! kept for its successors, and hangs up when all that is gone.
//!
//! What always holds: what is handed to [`Lifeline::after`] runs once, when all the daemons before are gone for good,
//! or is told after `PATIENCE` that they aren't.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::keeper::{Keeper, Tag};

/// How long a request waits for what a daemon before had under way: a drive that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Told whether nothing is under way any more.
type Then = Box<dyn FnOnce(bool) + Send>;

/// A daemon's, and those of the ones before it.
#[derive(Default)]
pub struct Lifeline {
    /// Our end.
    own: Option<OwnedFd>,
    /// Of the daemons before, by number, until [`Lifeline::listen`].
    before: Mutex<Vec<(u32, OwnedFd)>>,
    /// Whether some of them are still awaited.
    awaited: AtomicBool,
    waiting: Mutex<Vec<Then>>,
}

impl Lifeline {
    /// That of daemon `number`, with those of the daemons `before` as they were kept.
    pub fn new(keeper: &Keeper, number: u32, before: Vec<(u32, OwnedFd)>) -> io::Result<Lifeline> {
        let (theirs, own) = pipe2(OFlag::O_CLOEXEC)?;
        keeper.keep(Tag::Lifeline(number), theirs.as_fd());
        let awaited = AtomicBool::new(!before.is_empty());
        Ok(Lifeline { own: Some(own), before: Mutex::new(before), awaited, waiting: Mutex::default() })
    }

    /// A daemon's, in a process that works for it.
    pub fn held(own: OwnedFd) -> Lifeline {
        Lifeline { own: Some(own), ..Lifeline::default() }
    }

    /// What is to be held by whatever may have I/O under way when this daemon dies.
    pub fn own(&self) -> Option<BorrowedFd<'_>> {
        self.own.as_ref().map(AsFd::as_fd)
    }

    /// Has a ring hold it. A kernel that can't leaves it out.
    pub fn hold_by(&self, ring: &io_uring::Submitter<'_>) {
        use std::os::fd::AsRawFd;
        if let Some(own) = &self.own
            && let Err(e) = ring.register_files(&[own.as_raw_fd()])
        {
            tracing::debug!("a ring's end can't be seen by a daemon after this one: {e}");
        }
    }

    /// Begins to wait for the daemons before, on a thread of its own.
    pub fn listen(self: &Arc<Lifeline>, keeper: &Arc<Keeper>) -> io::Result<()> {
        let before = std::mem::take(&mut *self.before.lock());
        if before.is_empty() {
            return Ok(());
        }
        let (lifeline, keeper) = (self.clone(), keeper.clone());
        let wait = move || {
            let until = Instant::now() + PATIENCE;
            let ended = before.into_iter().fold(true, |all, (number, fd)| {
                let ended = hangs_up(&fd, until);
                if ended {
                    keeper.release(Tag::Lifeline(number));
                } else {
                    tracing::warn!("daemon {number} has died and still has I/O under way");
                }
                all && ended
            });
            lifeline.awaited.store(false, Release);
            for then in std::mem::take(&mut *lifeline.waiting.lock()) {
                then(ended);
            }
        };
        std::thread::Builder::new().name("kvfs-lifeline".into()).spawn(wait).map(drop)
    }

    /// Whether daemons before may have something under way.
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Acquire)
    }

    /// Runs `then` when nothing of the daemons before is under way any more (`true`), or when that has taken
    /// too long.
    pub fn after(&self, then: impl FnOnce(bool) + Send + 'static) {
        let mut waiting = self.waiting.lock();
        if self.is_awaited() {
            return waiting.push(Box::new(then));
        }
        drop(waiting);
        then(true);
    }
}

/// Waits for the other end's last holder. False when it's late.
fn hangs_up(fd: &OwnedFd, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // Nobody writes: what is told is the end.
        match poll(&mut [PollFd::new(fd, PollFlags::empty())], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready == Ok(1),
        }
    }
}

impl std::fmt::Debug for Lifeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifeline").field("awaited", &self.awaited).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_under_way_is_waited_for() {
        let (theirs, own) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let before = Lifeline::held(own);
        let ring = io_uring::IoUring::new(4).unwrap();
        before.hold_by(&ring.submitter());
        let keeper = Arc::new(Keeper::none());
        let lifeline = Arc::new(Lifeline::new(&keeper, 2, vec![(1, theirs)]).unwrap());
        lifeline.listen(&keeper).unwrap();
        let (told, order) = mpsc::channel();
        let told_then = told.clone();
        lifeline.after(move |ended| told_then.send(if ended { "ended" } else { "late" }).unwrap());
        drop(before);
        assert!(lifeline.is_awaited());
        told.send("the ring goes").unwrap();
        drop(ring);
        assert_eq!((order.recv().unwrap(), order.recv().unwrap()), ("the ring goes", "ended"));
        lifeline.after(move |ended| told.send(if ended { "at once" } else { "late" }).unwrap());
        assert_eq!(order.recv().unwrap(), "at once");
    }

    #[test]
    fn without_a_daemon_before_nothing_is_waited_for() {
        let keeper = Arc::new(Keeper::none());
        let lifeline = Arc::new(Lifeline::new(&keeper, 1, Vec::new()).unwrap());
        lifeline.listen(&keeper).unwrap();
        assert!(!lifeline.is_awaited());
    }
}
