//! The threads that evict: one for each file system, and one that sees to them.
//!
//! What always holds: a file is evicted by the thread of its file system alone, and a drive that hangs keeps
//! no other thread waiting; which files are whose orphans, and what time it is, is the same for all.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::creators::GONE;
use super::{Retention, Store, worker};

/// How often room is looked at when nobody asks.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// How often it's looked whether creators have ended, at most.
const BURY: Duration = Duration::from_millis(200);
/// How long threads are waited for at the end that have stopped to show signs of life.
const END: Duration = Duration::from_secs(5);

/// Starts them. They end when [`Retention::stop`] was called, and write the record of uses then.
pub fn start(retention: Arc<Retention>, store: Arc<dyn Store>) -> io::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("kvfs-evict".into());
    thread.spawn(move || {
        let mut evictor = Evictor { retention, store, workers: HashMap::new() };
        while evictor.next_round() {
            evictor.see_to_workers();
            evictor.retention.see_to_time(&*evictor.store);
        }
        evictor.end();
    })
}

struct Evictor {
    retention: Arc<Retention>,
    store: Arc<dyn Store>,
    /// By the file system's device number.
    workers: HashMap<u64, JoinHandle<()>>,
}

impl Evictor {
    /// Waits; false at the end.
    fn next_round(&self) -> bool {
        let mut pressure = self.retention.pressure.lock();
        if !pressure.stop && !self.workers.is_empty() {
            self.retention.changed.wait_for(&mut pressure, INTERVAL);
        }
        !pressure.stop
    }

    /// Backings come and go.
    fn see_to_workers(&mut self) {
        self.workers.retain(|_, thread| !thread.is_finished());
        for backing in self.store.backings().iter().filter(|b| !b.health.is_out()) {
            if self.workers.contains_key(&backing.device) {
                continue;
            }
            match worker::start(&self.retention, &self.store, backing.device) {
                Ok(thread) => drop(self.workers.insert(backing.device, thread)),
                Err(e) => tracing::warn!("nothing is evicted from {}: {e}", backing.path.display()),
            }
        }
        for device in self.retention.newly_stuck() {
            let paths: Vec<_> =
                self.store.backings().iter().filter(|b| b.device == device).cloned().collect();
            for backing in paths {
                tracing::warn!(
                    "backing {} doesn't answer: nothing is evicted from it until it does",
                    backing.path.display()
                );
            }
        }
    }

    /// Threads that wait for a drive can't be waited for.
    fn end(&mut self) {
        let mut until = Instant::now() + END;
        while self.workers.values().any(|thread| !thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
            if !self.retention.all_stuck() {
                until = Instant::now() + END;
            }
        }
    }
}

impl Retention {
    /// Files of processes that have ended are orphans: whether there were such.
    pub(super) fn bury_creators(&self, store: &dyn Store, at_once: bool) -> bool {
        // Whoever is at it does it for all.
        let mut last = self.buried.lock();
        if !at_once && last.is_some_and(|at| at.elapsed() < BURY) {
            return false;
        }
        let ended = self.creators.ended();
        let some = !ended.is_empty();
        if some {
            store.index().read().recode_creators(&ended, GONE);
            for code in ended {
                store.creator_ended(code);
                self.creators.free(code);
            }
        }
        *last = Some(Instant::now());
        some
    }

    /// Moments go on for as long as the mount lives.
    fn see_to_time(&self, store: &dyn Store) {
        let now = SystemTime::now();
        if self.clock.is_late(now) {
            self.clock.move_on(&mut store.index().write(), now);
        }
    }
}
