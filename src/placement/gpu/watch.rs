//! Keeps what the driver says at hand, so that nobody who has to answer the kernel waits for the driver.
//!
//! What always holds: a thread that asks reads what is known and goes on. A thread of its own, which is there
//! while somebody asks and for a while after, does all reading; if the driver hangs, it hangs, alone, and what
//! was known stays known.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::nvml::{Library, Use};
use super::{Gpu, Inventory};

/// What is known of the GPUs at some time.
#[derive(Debug, Default)]
pub(in crate::placement) struct Seen {
    /// The GPUs.
    pub(in crate::placement) inventory: Inventory,
    uses: HashMap<u32, Use>,
    /// Before the driver was asked for `uses`, in clock ticks since boot.
    asked: u64,
}

impl Seen {
    /// Without processes.
    pub(in crate::placement) fn of(inventory: Inventory) -> Self {
        Self { inventory, uses: HashMap::new(), asked: 0 }
    }

    /// The only GPU that the process computes on, with its number and the UUID of the only MIG instance.
    ///
    /// An entry of a process that had the same id before isn't taken for one of this process: the driver was
    /// asked before this one started.
    pub(in crate::placement) fn only_gpu(&self, pid: u32, start: u64) -> Option<(usize, &Gpu, Option<&str>)> {
        match self.uses.get(&pid)? {
            Use::One { pci, mig } if start < self.asked => {
                let number = self.inventory.at(*pci)?;
                Some((number, &self.inventory.gpus()[number], mig.as_deref()))
            }
            _ => None,
        }
    }
}

/// The thread that asks the driver, and what it has found.
pub(in crate::placement) struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    sources: Sources,
    seen: RwLock<Arc<Seen>>,
    /// When somebody asked last, and when the thread ended without anything to do, in milliseconds since
    /// `epoch`.
    wanted: AtomicU64,
    ended: AtomicU64,
    running: AtomicBool,
    epoch: Instant,
}

/// Where the driver is asked.
#[derive(Debug, Clone)]
pub(in crate::placement) struct Sources {
    /// The NVIDIA driver's directory in `/proc/driver`.
    pub(in crate::placement) driver: PathBuf,
    /// NVML's library; by its usual name when it's not said.
    pub(in crate::placement) nvml: Option<PathBuf>,
    /// Whether the ids that NVML gives to processes are those that we see. It gives the initial namespace's.
    pub(in crate::placement) pids_are_ours: bool,
}

impl Watch {
    /// How old an answer may be.
    const EVERY: Duration = Duration::from_millis(1500);

    /// The thread ends, and lets go of the GPUs, when nobody has asked for so long.
    const IDLE: Duration = Duration::from_secs(30);

    /// After so long it's tried again where there was no library, or no GPU.
    const RETRY: Duration = Duration::from_secs(30);

    /// With what the driver's own files say now; NVML isn't asked before somebody wants to know.
    pub(in crate::placement) fn new(sources: Sources) -> Self {
        let seen = Seen::of(Inventory::read(&sources.driver));
        Self {
            shared: Arc::new(Shared {
                sources,
                seen: RwLock::new(Arc::new(seen)),
                wanted: AtomicU64::new(0),
                ended: AtomicU64::new(0),
                running: AtomicBool::new(false),
                epoch: Instant::now(),
            }),
        }
    }

    /// What is known; never waits for the driver.
    pub(in crate::placement) fn seen(&self) -> Arc<Seen> {
        self.shared.seen.read().clone()
    }

    /// The same, for somebody who wants it to be up to date from now on.
    pub(in crate::placement) fn asked(&self) -> Arc<Seen> {
        let shared = &self.shared;
        let now = shared.now();
        shared.wanted.store(now, Ordering::Relaxed);
        let ended = shared.ended.load(Ordering::Relaxed);
        let due = ended == 0 || now.saturating_sub(ended) >= Self::RETRY.as_millis() as u64;
        if due && !shared.running.load(Ordering::Relaxed) && !shared.running.swap(true, Ordering::AcqRel) {
            let thread = shared.clone();
            let started = std::thread::Builder::new()
                .name("gpus".into())
                .spawn(move || (crate::processors::anywhere(), thread.run()).1);
            if let Err(e) = started {
                tracing::debug!("no thread to ask the GPUs' driver: {e}");
                shared.end(true);
            }
        }
        self.seen()
    }
}

impl Shared {
    /// Never 0.
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64 + 1
    }

    fn publish(&self, seen: Seen) {
        *self.seen.write() = Arc::new(seen);
    }

    fn end(&self, in_vain: bool) {
        self.ended.store(if in_vain { self.now() } else { 0 }, Ordering::Relaxed);
        self.running.store(false, Ordering::Release);
    }

    fn run(&self) {
        // Whatever happens in here, the next who asks may try again.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.watch()));
        self.end(!matches!(result, Ok(true)));
    }

    /// Asks until nobody wants to know any more; false when there was nothing to ask.
    fn watch(&self) -> bool {
        // The driver may have been loaded after the mount.
        let listed = Inventory::read(&self.sources.driver);
        let before = self.seen.read().clone();
        let library = match Library::load(self.sources.nvml.as_deref()) {
            Ok(library) => library,
            Err(e) => {
                tracing::debug!("NVML isn't there to say who uses which GPU: {e}");
                self.publish(Seen { uses: before.uses.clone(), asked: before.asked, inventory: listed });
                return false;
            }
        };
        let mut inventory = listed.clone();
        for round in 0_u32.. {
            // MIG instances come and go.
            if round % 20 == 0 {
                match library.inventory() {
                    Ok(newer) => inventory = listed.clone().merge(newer),
                    Err(e) => tracing::debug!("NVML doesn't list the GPUs: {e}"),
                }
            }
            let asked = ticks_since_boot();
            let uses = match self.sources.pids_are_ours {
                true => library.uses(),
                false => Ok(HashMap::new()),
            };
            match uses {
                Ok(uses) => self.publish(Seen { inventory: inventory.clone(), uses, asked }),
                Err(e) => {
                    // What it said before may not be true any more.
                    tracing::debug!("NVML doesn't say who uses the GPUs: {e}");
                    self.publish(Seen::of(inventory.clone()));
                }
            }
            std::thread::sleep(Watch::EVERY);
            let idle = self.now().saturating_sub(self.wanted.load(Ordering::Relaxed));
            if idle > Watch::IDLE.as_millis() as u64 {
                break;
            }
        }
        true
    }
}

/// Clock ticks since boot: the unit and the clock of a process's start in `/proc/PID/stat`.
pub(in crate::placement) fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ticks = rustix::param::clock_ticks_per_second();
    now.tv_sec as u64 * ticks + now.tv_nsec as u64 * ticks / 1_000_000_000
}
