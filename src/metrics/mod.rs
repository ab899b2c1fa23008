//! What a mount counts and times while it serves, and how that is told.
//!
//! What always holds: what a request's thread does here takes no lock, allocates nothing (but when an operation is met
//! for the first time) and asks nobody; each thread counts in a shard of its own kind. What another room counts already
//! isn't counted here: `control/stats.rs` puts everything together. A daemon that is started again begins at 0.

mod family;
mod histogram;
pub mod passthrough;
mod seeds;
mod serve;
mod text;
mod writers;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use crate::index::{MAX_BACKINGS, Slot};

pub use family::{Families, Family, Kind, Sample, Value};
pub use histogram::Histogram;
pub use seeds::RandomNames;
pub use serve::{Address, BindError, Listener, Server};
pub use text::{CONTENT_TYPE, encode};
pub use writers::{Writer, Writers};

use histogram::Cells;

/// Shards: about as many as there are threads that answer the kernel.
const SHARDS: usize = 8;
/// What a request was at when it was at no backing.
const NOWHERE: usize = MAX_BACKINGS;
const PLACES: usize = MAX_BACKINGS + 1;
/// Reasons of placement: they fit in four bits.
const REASONS: usize = 16;

/// Who moves a client's bytes, where the kernel doesn't by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// The daemon, for a read or a write that came to it.
    Daemon = 0,
    /// The ioctl fast path.
    Direct = 1,
}

impl Mover {
    /// All of them.
    pub const ALL: [Mover; MOVERS] = [Mover::Daemon, Mover::Direct];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Mover::Daemon => "daemon",
            Mover::Direct => "direct",
        }
    }
}

const MOVERS: usize = 2;

/// What was moved by the kernel itself, by backing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassedThrough {
    /// As the kernel has counted it.
    Counted {
        /// Slot, bytes read, bytes written.
        bytes: Vec<(u8, u64, u64)>,
        /// Calls that it has missed, at most; `None` where that isn't known.
        missed: Option<u64>,
    },
    /// It isn't known, for this reason.
    Unknown(String),
}

type PassedThroughSource = Box<dyn Fn() -> PassedThrough + Send + Sync>;

/// What one thread, or a few, have counted.
#[repr(align(128))]
struct Shard {
    /// By operation and place.
    requests: Box<[OnceLock<Box<Cells>>]>,
    found: AtomicU64,
    missed: AtomicU64,
    /// By who moved them and backing.
    read: [[AtomicU64; MAX_BACKINGS]; MOVERS],
    written: [[AtomicU64; MAX_BACKINGS]; MOVERS],
}

/// The counters of a mount's hot paths.
pub struct Metrics {
    shards: [Shard; SHARDS],
    created: [[AtomicU64; REASONS]; MAX_BACKINGS],
    faults: [AtomicU64; MAX_BACKINGS],
    passed_through: OnceLock<PassedThroughSource>,
    /// Since when it counts.
    pub since: SystemTime,
    /// Who made files lately.
    pub writers: Writers,
    /// Whose names never repeat.
    pub random_names: RandomNames,
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// The calling thread's shard.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: Cell<usize> = const { Cell::new(usize::MAX) });
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Relaxed) % SHARDS);
        }
        mine.get()
    })
}

impl Metrics {
    /// For so many operations, which are known by their numbers.
    pub fn new(ops: usize) -> Metrics {
        let shard = |_| Shard {
            requests: (0..ops * PLACES).map(|_| OnceLock::new()).collect(),
            found: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            read: std::array::from_fn(|_| zeros()),
            written: std::array::from_fn(|_| zeros()),
        };
        Metrics {
            shards: std::array::from_fn(shard),
            created: std::array::from_fn(|_| zeros()),
            faults: zeros(),
            passed_through: OnceLock::new(),
            since: SystemTime::now(),
            writers: Writers::default(),
            random_names: RandomNames::default(),
        }
    }

    /// A request was answered after so long; `at` is the backing that it was at last.
    pub fn request(&self, op: usize, at: Option<Slot>, took: Duration) {
        let place = at.map_or(NOWHERE, Slot::index);
        if let Some(cells) = self.shards[shard()].requests.get(op * PLACES + place) {
            cells.get_or_init(Box::default).add(took);
        }
    }

    /// A name was looked up.
    pub fn looked_up(&self, found: bool) {
        let shard = &self.shards[shard()];
        if found { &shard.found } else { &shard.missed }.fetch_add(1, Relaxed);
    }

    /// So many bytes were read for a client.
    pub fn read(&self, by: Mover, slot: Slot, bytes: u64) {
        self.shards[shard()].read[by as usize][slot.index()].fetch_add(bytes, Relaxed);
    }

    /// So many bytes were written for a client.
    pub fn written(&self, by: Mover, slot: Slot, bytes: u64) {
        self.shards[shard()].written[by as usize][slot.index()].fetch_add(bytes, Relaxed);
    }

    /// A file was created on a backing, for the reason with this code.
    pub fn created(&self, slot: Slot, reason: u8) {
        self.created[slot.index()][usize::from(reason) % REASONS].fetch_add(1, Relaxed);
    }

    /// A request met an error that tells of a fault of the drive.
    pub fn fault(&self, slot: Slot) {
        self.faults[slot.index()].fetch_add(1, Relaxed);
    }

    /// Who knows what the kernel moves by itself. The first one counts.
    pub fn set_passed_through(&self, source: impl Fn() -> PassedThrough + Send + Sync + 'static) {
        let _ = self.passed_through.set(Box::new(source));
    }

    /// What the kernel has moved by itself; `None` where nobody knows.
    pub fn passed_through(&self) -> Option<PassedThrough> {
        self.passed_through.get().map(|source| source())
    }

    /// How long requests took, by operation and backing: those that there were.
    pub fn requests(&self) -> Vec<(usize, Option<Slot>, Histogram)> {
        let places = self.shards[0].requests.len();
        let of = |place: usize| {
            let cells = self.shards.iter().filter_map(|shard| shard.requests[place].get());
            let histogram = Histogram::sum_of(cells.map(|cells| &**cells));
            let slot = place % PLACES;
            let at = (slot != NOWHERE).then_some(Slot(slot as u8));
            (histogram.count > 0).then_some((place / PLACES, at, histogram))
        };
        (0..places).filter_map(of).collect()
    }

    fn sum(&self, of: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| of(shard).load(Relaxed)).sum()
    }

    /// Lookups that found their name, and that didn't.
    pub fn lookups(&self) -> (u64, u64) {
        (self.sum(|shard| &shard.found), self.sum(|shard| &shard.missed))
    }

    /// Bytes read from a backing, and written to it.
    pub fn bytes(&self, by: Mover, slot: Slot) -> (u64, u64) {
        let (by, at) = (by as usize, slot.index());
        (self.sum(|shard| &shard.read[by][at]), self.sum(|shard| &shard.written[by][at]))
    }

    /// Files created on a backing, by the code of the reason: those that there were.
    pub fn creates(&self, slot: Slot) -> impl Iterator<Item = (u8, u64)> {
        let counts = self.created[slot.index()].iter().enumerate();
        counts.map(|(code, n)| (code as u8, n.load(Relaxed))).filter(|(_, n)| *n > 0)
    }

    /// Faults that requests met at a backing.
    pub fn faults(&self, slot: Slot) -> u64 {
        self.faults[slot.index()].load(Relaxed)
    }
}
