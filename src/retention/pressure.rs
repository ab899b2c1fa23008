//! What the threads that evict are asked for, and what each has done.
//!
//! What always holds: who waits for a round waits for those threads alone that show signs of life; one that
//! hangs with its drive is left out until it's back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Retention;
use crate::index::Slot;

/// A thread that has shown no sign of life for so long hangs.
const STUCK: Duration = Duration::from_secs(4);

/// What is asked for, and done.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Rounds asked for so far.
    asked: u64,
    /// Bytes to be freed in any case, by slot.
    pub(super) ordered: Vec<(Slot, u64)>,
    /// The threads.
    pub(super) workers: Vec<Arc<Worker>>,
    /// All files from before the mount are to be known.
    survey: bool,
    /// The daemon ends.
    pub(super) stop: bool,
}

/// A file system's thread. Its numbers change under the lock of [`Pressure`].
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) device: u64,
    /// The round asked for last that it has begun, and ended; 0 before the first.
    begun: AtomicU64,
    ended: AtomicU64,
    busy: AtomicBool,
    /// How far its survey is, and of how much; 0 of 0 while there's none.
    surveyed: (AtomicU64, AtomicU64),
    /// Whether it has been given an order that has to wait.
    has_orders: AtomicBool,
    /// Whether it has made one.
    knows_all: AtomicBool,
    /// When it has last shown a sign of life, in ms since `since`.
    beat: AtomicU64,
    since: Instant,
    told_stuck: AtomicBool,
}

impl Worker {
    /// It lives.
    pub(super) fn beat(&self) {
        self.beat.store(self.since.elapsed().as_millis() as u64, Relaxed);
    }

    fn is_stuck(&self) -> bool {
        let silent = self.since.elapsed().saturating_sub(Duration::from_millis(self.beat.load(Relaxed)));
        self.busy.load(Relaxed) && silent > STUCK
    }

    fn is_surveying(&self) -> bool {
        self.surveyed.1.load(Relaxed) > 0 && !self.is_stuck()
    }
}

impl Pressure {
    /// A thread for a file system is about to start.
    pub(super) fn enter(&mut self, device: u64) -> Arc<Worker> {
        let worker = Arc::new(Worker {
            device,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            surveyed: Default::default(),
            has_orders: AtomicBool::new(false),
            knows_all: AtomicBool::new(false),
            beat: AtomicU64::new(0),
            since: Instant::now(),
            told_stuck: AtomicBool::new(false),
        });
        self.workers.push(worker.clone());
        worker
    }

    /// Asks for a round of every thread: its number.
    pub(super) fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    /// Whether a round was asked for that the thread hasn't begun.
    pub(super) fn is_asked(&self, worker: &Worker) -> bool {
        worker.begun.load(Relaxed) < self.asked
    }

    /// Whether a round is asked for that some thread hasn't begun.
    pub(super) fn is_any_asked(&self) -> bool {
        self.workers.iter().any(|worker| self.is_asked(worker))
    }

    /// The thread begins the round asked for last.
    pub(super) fn begin(&mut self, worker: &Worker) {
        worker.beat();
        worker.begun.store(self.asked, Relaxed);
        worker.busy.store(true, Relaxed);
    }

    /// Whether every thread that isn't stuck has ended this round.
    pub(super) fn has_ended(&self, round: u64) -> bool {
        !self.workers.is_empty()
            && self.workers.iter().all(|worker| worker.ended.load(Relaxed) >= round || worker.is_stuck())
    }

    /// Whether the thread is to look at all files.
    pub(super) fn wants_survey(&self, worker: &Worker) -> bool {
        self.survey && !worker.knows_all.load(Relaxed)
    }

    /// The thread has looked at all files.
    pub(super) fn has_surveyed(&self, worker: &Worker) {
        worker.knows_all.store(true, Relaxed);
    }

    /// Whether files are being looked at that nobody has looked at yet.
    pub(super) fn is_surveying(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_surveying())
    }
}

impl Retention {
    /// A round of a thread has ended; `survey` says how far its survey is, `has_orders` whether some wait for it.
    pub(super) fn end_round(&self, worker: &Worker, survey: Option<(u64, u64)>, has_orders: bool) {
        let _pressure = self.pressure.lock();
        worker.has_orders.store(has_orders, Relaxed);
        let (done, of) = survey.unwrap_or_default();
        worker.surveyed.0.store(done, Relaxed);
        worker.surveyed.1.store(of, Relaxed);
        worker.ended.store(worker.begun.load(Relaxed), Relaxed);
        worker.busy.store(false, Relaxed);
        worker.told_stuck.store(false, Relaxed);
        self.ended.notify_all();
    }

    /// A thread ends.
    pub(super) fn leave(&self, worker: &Arc<Worker>) {
        self.pressure.lock().workers.retain(|other| !Arc::ptr_eq(other, worker));
        self.ended.notify_all();
    }

    /// File systems whose threads hang since the last question.
    pub(super) fn newly_stuck(&self) -> Vec<u64> {
        let pressure = self.pressure.lock();
        let stuck = pressure.workers.iter().filter(|w| w.is_stuck() && !w.told_stuck.swap(true, Relaxed));
        stuck.map(|worker| worker.device).collect()
    }

    /// Whether all threads that are left hang.
    pub(super) fn all_stuck(&self) -> bool {
        self.pressure.lock().workers.iter().all(|worker| worker.is_stuck())
    }

    /// Room is short: somebody had better look.
    pub fn kick(&self) {
        let mut pressure = self.pressure.lock();
        if !pressure.is_any_asked() {
            pressure.ask();
            self.changed.notify_all();
        }
    }

    /// Orders so many bytes to be freed on these backings, whatever the marks say.
    pub fn order(&self, bytes: Vec<(Slot, u64)>) {
        let mut pressure = self.pressure.lock();
        pressure.ordered.extend(bytes);
        pressure.ask();
        self.changed.notify_all();
    }

    /// Whether files from before the mount have yet to be looked at before a plan can be made. They are.
    pub fn is_surveying_for_a_plan(&self) -> bool {
        let mut pressure = self.pressure.lock();
        let is_needed = pressure.workers.is_empty()
            || pressure.workers.iter().any(|w| !w.knows_all.load(Relaxed) && !w.is_stuck());
        if is_needed && !std::mem::replace(&mut pressure.survey, true) {
            pressure.ask();
            self.changed.notify_all();
        }
        is_needed
    }

    /// Whether somebody evicts, or has been asked to.
    pub fn is_evicting(&self) -> bool {
        let pressure = self.pressure.lock();
        let is_busy = |w: &Arc<Worker>| {
            w.busy.load(Relaxed) || w.has_orders.load(Relaxed) || w.ended.load(Relaxed) < pressure.asked
        };
        pressure.workers.is_empty() && pressure.asked > 0 && !pressure.stop
            || pressure.workers.iter().any(|w| is_busy(w) && !w.is_stuck())
    }

    /// How many names the surveys have gone through, of how many.
    pub(super) fn surveyed(&self) -> (u64, u64) {
        let pressure = self.pressure.lock();
        let sum = |of: fn(&Worker) -> &AtomicU64| pressure.workers.iter().map(|w| of(w).load(Relaxed)).sum();
        (sum(|w| &w.surveyed.0), sum(|w| &w.surveyed.1))
    }

    /// The mount has ended.
    pub fn stop(&self) {
        self.pressure.lock().stop = true;
        self.changed.notify_all();
        self.ended.notify_all();
    }
}
