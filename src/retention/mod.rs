//! How much may stay: the record of uses, who still needs a file, and what goes when room is short.
//!
//! What always holds: a file that's open is never taken; files that nobody can read any more (orphans) go
//! before any other, and without `--evict lru` they alone go; of files that a client knows by memory the
//! living ones go last. How full a backing is, its file system says; what is taken, the index's record of
//! uses says. Nothing of that record is needed to serve files: losing it costs precision, not data.

mod clock;
mod creators;
mod evictor;
mod marks;
mod plan;
mod pressure;
mod recency;
mod status;
mod survey;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::backing::List;
use crate::index::{CreatorCode, DirId, EntryId, FileRef, Index, Moment, NodeId, Slot, What};
use crate::placement::Target;
use crate::placement::names::{self, Client};
use crate::placement::process::Processes;

pub use clock::Clock;
pub use creators::{CREATOR_XATTR, Creators, Record, Writers};
pub use evictor::start;
pub use marks::Marks;
pub use plan::{Class, Victim};
pub use status::{BackingPlan, EvictPlan, PlannedVictim, RetentionStatus};

/// How often who waits for room looks whether it's there.
const LOOK: Duration = Duration::from_millis(20);

/// Creates that may wait for room at a time. More clients at once are told at once that there is none.
const MOST_WAITING: usize = 512;

/// What may be evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Evict {
    /// Nothing.
    Never,
    /// Files that only their creator could have found, and whose creator is gone.
    #[default]
    Orphans,
    /// These first, then whatever was used least recently.
    Lru,
}

impl Evict {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Evict::Never => "never",
            Evict::Orphans => "orphans",
            Evict::Lru => "lru",
        }
    }
}

/// How much may stay.
#[derive(Clone, Copy, Debug, Default)]
pub struct RetentionOptions {
    /// What may go.
    pub evict: Evict,
    /// When it goes.
    pub marks: Marks,
    /// The most that all files together may take, in bytes.
    pub total: Option<u64>,
    /// Clients may have opened files on their backings by themselves: an evicted file keeps its content for
    /// whoever still has it.
    pub keeps_content: bool,
}

/// What a look at a file on its backing tells.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it takes there, in bytes.
    pub bytes: u64,
    /// How many names it has there.
    pub links: u32,
    /// The later of its last read, as far as the backing keeps it, and its last change.
    pub used: SystemTime,
    /// Its last change of content.
    pub changed: SystemTime,
    /// Who made it, if that was written down.
    pub record: Option<Vec<u8>>,
}

/// What became of a victim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It's gone, perhaps with its metadata: so many files, and so many bytes that come back.
    Gone {
        /// How many files.
        files: u64,
        /// What they took.
        bytes: u64,
    },
    /// It's open, was used again, has other links, takes nothing, or isn't there any more.
    Spared,
    /// The backing refuses, for this reason.
    Failed(String),
}

/// The filesystem as eviction needs it.
pub trait Store: Send + Sync {
    /// The names.
    fn index(&self) -> &RwLock<Index>;
    /// The backings.
    fn backings(&self) -> List;
    /// Whether somebody has the file open.
    fn is_open(&self, node: NodeId) -> bool;
    /// Looks at a file; `None` when it can't be looked at.
    fn look(&self, dir: DirId, name: &[u8], file: FileRef) -> Option<Seen>;
    /// Removes a file, if it's still the same, unused since, and not open.
    fn evict(&self, victim: &Victim) -> Outcome;
    /// Whether the kernel has so many evicted files to forget that it's better to wait.
    fn is_behind(&self) -> bool;
    /// Lets go of what the kernel has forgotten of a backing.
    fn let_go(&self, slot: Slot);
    /// A process that made files has ended.
    fn creator_ended(&self, creator: CreatorCode);
}

/// What was evicted so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) files: [AtomicU64; 3],
    pub(crate) bytes: AtomicU64,
    pub(crate) spared: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) waited: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// A create that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn begin(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A mount's retention.
pub struct Retention {
    /// How much may stay.
    pub options: RetentionOptions,
    /// Between moments and times.
    pub clock: Clock,
    /// Who made files.
    pub creators: Creators,
    pub(crate) counts: Counts,
    pressure: Mutex<pressure::Pressure>,
    /// Somebody asks for something.
    changed: Condvar,
    /// Something was done.
    ended: Condvar,
    /// Creates that wait now.
    waiting: AtomicUsize,
    /// When it was last looked whether creators have ended.
    buried: Mutex<Option<Instant>>,
}

impl Retention {
    /// For a mount that begins now.
    pub fn new(options: RetentionOptions, processes: Arc<Processes>) -> Arc<Retention> {
        Arc::new(Retention {
            options,
            clock: Clock::starting_at(SystemTime::now()),
            creators: Creators::new("/proc", processes),
            counts: Counts::default(),
            pressure: Mutex::default(),
            changed: Condvar::new(),
            ended: Condvar::new(),
            waiting: AtomicUsize::new(0),
            buried: Mutex::default(),
        })
    }

    /// Whether files may be evicted at all.
    pub fn evicts(&self) -> bool {
        self.options.evict != Evict::Never
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        self.clock.moment(SystemTime::now())
    }

    /// Who makes a file, if that matters: only the creator of some files can ever read them.
    pub fn creator_of(&self, tid: u32, path: &[u8]) -> Option<(CreatorCode, Option<Record>)> {
        (self.evicts() && is_known_by_memory(path)).then(|| self.creators.of_thread(tid))
    }

    /// Whether only those who remember a file may be able to find it: by what is known of its creator, else by
    /// its path.
    pub fn may_be_remembered(&self, creator: CreatorCode, path: impl FnOnce() -> Vec<u8>) -> bool {
        creator != creators::ANYONE || is_known_by_memory(&path())
    }

    /// Waits until `has_room`, while files are evicted; gives up when nothing is left to evict and no room
    /// `is_kept_free` for files that are being written, or in the end.
    pub fn wait_for_room(
        &self,
        until: Instant,
        has_room: impl Fn() -> bool,
        is_kept_free: impl Fn() -> bool,
    ) -> bool {
        self.counts.waited.fetch_add(1, Relaxed);
        let _waiting = Waiting::begin(&self.waiting);
        let found = loop {
            let gone = self.gone();
            let hopeless = !self.evicts() || self.wait_for_a_round(until, &has_room);
            if has_room() {
                break true;
            }
            let idle = hopeless || self.gone() == gone && !self.pressure.lock().is_surveying();
            if Instant::now() >= until || idle && !is_kept_free() {
                break false;
            }
            if idle {
                std::thread::sleep(LOOK);
            }
        };
        if !found {
            self.counts.refused.fetch_add(1, Relaxed);
        }
        found
    }

    /// Waits until a round has ended that began from now on, or there's room; true if there will be no round.
    fn wait_for_a_round(&self, until: Instant, has_room: &impl Fn() -> bool) -> bool {
        // Room may come in the middle of a round, or from somebody else.
        let mut pressure = self.pressure.lock();
        let round = pressure.ask();
        self.changed.notify_all();
        while !pressure.has_ended(round) && !pressure.stop && Instant::now() < until {
            self.ended.wait_for(&mut pressure, LOOK);
            let there = parking_lot::MutexGuard::unlocked(&mut pressure, has_room);
            if there {
                break;
            }
        }
        pressure.stop
    }

    /// Whether one more create may wait: each has a thread meanwhile.
    pub fn has_patience(&self) -> bool {
        self.waiting.load(Relaxed) < MOST_WAITING
    }

    /// Files evicted so far.
    fn gone(&self) -> u64 {
        self.counts.files.iter().map(|n| n.load(Relaxed)).sum()
    }
}

/// Whether a file can be found only by whoever remembers having written it: LMCache's `local_disk` keeps its
/// keys in memory alone, and a static NIXL pool gets new names at each start (LMCache 0.5.6).
pub fn is_known_by_memory(path: &[u8]) -> bool {
    names::parse(&Target { path })
        .is_some_and(|info| matches!(info.client, Client::LmcacheLocalDisk | Client::LmcacheNixlPool))
}

/// A file of LMCache's `gds_path` and its metadata: `(data, metadata)` of either name.
pub(crate) fn pair(name: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    const METADATA: &[u8] = b".metadata";
    let data = name.strip_suffix(METADATA).unwrap_or(name);
    let is_gds = data.ends_with(b".kvcache.safetensors") || data.ends_with(b".weka1");
    is_gds.then(|| (data.to_vec(), [data, METADATA].concat()))
}

/// The metadata that goes before a victim.
fn metadata_of(store: &dyn Store, victim: &Victim) -> Option<Victim> {
    let (_, name) = pair(&victim.name).filter(|(data, _)| *data == victim.name)?;
    let index = store.index().read();
    let (entry, What::File(file)) = index.find(victim.dir, &name)? else { return None };
    let (creator, used) = index.use_of(entry);
    Some(Victim { entry, file, name, creator, used, ..victim.clone() })
}

/// A victim's place in the tree.
pub(crate) fn place(index: &Index, entry: EntryId) -> (DirId, Vec<u8>) {
    let (dir, name) = index.place(entry);
    (dir, name.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evicting(evict: Evict) -> Arc<Retention> {
        let options = RetentionOptions { evict, ..Default::default() };
        Retention::new(options, Arc::new(Processes::new("/proc")))
    }

    #[test]
    fn what_only_its_creator_can_find() {
        assert!(is_known_by_memory(b"meta-llama-Llama-3.1-8B-Instruct@8@3@657aaba709c54b87@bfloat16.pt"));
        assert!(is_known_by_memory(b"sub/obj_17_a0b1.bin"));
        for found_by_others in [
            &b"73/12/m%408%403%40657aaba709c54b87%40bfloat16.kvcache.safetensors"[..],
            b"m@8@3@657aaba709c54b87@bfloat16.data",
            b"notes.pt",
        ] {
            assert!(!is_known_by_memory(found_by_others));
        }
    }

    #[test]
    fn pairs_of_gds() {
        let (data, metadata) = pair(b"k.kvcache.safetensors").unwrap();
        assert_eq!(
            (&data[..], &metadata[..]),
            (&b"k.kvcache.safetensors"[..], &b"k.kvcache.safetensors.metadata"[..])
        );
        assert_eq!(pair(&metadata), Some((data, metadata.clone())));
        assert_eq!(pair(b"k.metadata"), None);
    }

    /// A thread that has ended the round that was asked for.
    fn ends_a_round(retention: &Retention, worker: &Arc<pressure::Worker>) {
        let mut pressure = retention.pressure.lock();
        while !pressure.is_asked(worker) {
            retention.changed.wait(&mut pressure);
        }
        pressure.begin(worker);
        drop(pressure);
        retention.end_round(worker, None, false);
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn who_waits_is_let_go_when_nothing_can_be_evicted() {
        let retention = evicting(Evict::Orphans);
        let worker = retention.pressure.lock().enter(1);
        let evictor = retention.clone();
        let rounds = std::thread::spawn(move || ends_a_round(&evictor, &worker));
        assert!(!retention.wait_for_room(soon(), || false, || false));
        rounds.join().unwrap();
        let never = evicting(Evict::Never);
        assert!(never.wait_for_room(Instant::now(), || true, || false));
    }

    #[test]
    fn a_drive_that_hangs_is_not_waited_for() {
        let retention = evicting(Evict::Orphans);
        let hung = retention.pressure.lock().enter(1);
        retention.pressure.lock().begin(&hung);
        let worker = retention.pressure.lock().enter(2);
        let evictor = retention.clone();
        let rounds = std::thread::spawn(move || ends_a_round(&evictor, &worker));
        assert!(!retention.wait_for_room(soon(), || false, || false));
        rounds.join().unwrap();
        assert!(!retention.is_evicting());
        assert_eq!((retention.newly_stuck(), retention.newly_stuck()), (vec![1], vec![]), "it's told once");
        retention.end_round(&hung, None, false);
        assert!(retention.is_evicting(), "it has yet to begin the round that was asked for");
    }

    #[test]
    fn rounds_asked_for_by_many_are_one() {
        let retention = evicting(Evict::Orphans);
        let worker = retention.pressure.lock().enter(1);
        retention.kick();
        retention.kick();
        retention.order(vec![(Slot(0), 7)]);
        ends_a_round(&retention, &worker);
        let pressure = retention.pressure.lock();
        assert!(!pressure.is_asked(&worker) && pressure.has_ended(2) && !pressure.has_ended(3));
    }
}
