//! The filesystem: what each operation means on the merged tree, in plain Rust types.
//!
//! What always holds:
//! - nothing here knows fuser; a test can drive it without a mount;
//! - an operation goes index -> placement -> backing, and the index's lock is never held across a disk call;
//! - the disk changes first, the index after it, both under the lock of the name (`locks`); so what the index
//!   says was true on disk at some moment of the operation, whatever failed in between.

mod asking;
mod at;
mod attr;
mod copy;
mod counting;
mod creds;
mod data;
mod dirs;
mod error;
mod evict;
mod fault;
mod gate;
mod ghost;
mod hiding;
mod identity;
mod lease;
mod link;
mod listings;
mod locks;
mod look;
mod lookup;
mod make;
mod members;
mod moving;
mod open;
mod open_io;
mod open_table;
mod outage;
mod paging;
mod pin;
mod prefix;
mod publish;
mod readdir;
mod recover;
mod relocate;
mod remove;
mod rename;
mod rules;
mod set;
mod setattr;
mod settle;
mod shared;
mod socket;
mod stats;
mod still;
mod tell;
mod torn;
mod xattr;

use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use crate::backing::{Alarm, Backing, Backings, List, is_reserved};
use crate::index::{self, DirId, Index, Node, NodeId, Progress, Report, Slot, SlotSet};
use crate::io::{BackingRegistry, Engine};
use crate::metrics::Metrics;
use crate::placement::{self, Candidate, Decision, Policies, Policy, Reason};
use crate::retention::{Retention, RetentionOptions};
use crate::supervise::{Keeper, Lifeline, State, Survival, Work};

pub use at::{Place, here, nowhere, place};
pub use attr::{Attr, Time};
pub(crate) use copy::Buffer;
pub(crate) use creds::may_open;
pub use creds::{Caller, prepare_process};
pub use data::Whence;
pub use error::{Error, Result};
pub(crate) use fault::{crash_point, point as fault_point};
pub use listings::OpenDir;
pub use look::{Seen, SeenKind};
pub use open::{Data, Opened};
pub(crate) use pin::{Passage, Pinned};
pub(crate) use prefix::Found;
pub use publish::PublishStatus;
pub use readdir::{DirEntry, DirEntryPlus};
pub use recover::Recovered;
pub(crate) use relocate::{Item, NotMoved, is_temporary};
pub use rename::RenameMode;
pub use rules::DirRule;
pub use setattr::{SetAttr, SetTime};
pub(crate) use socket::SOCKET_NAME;
pub use stats::{Counters, IndexCounts, Op, StatFs};
pub use tell::News;

use dirs::{DirFd, Dirs};
use ghost::Ghosts;
use listings::Listings;
use locks::NameLocks;
use moving::Moving;
use open_table::OpenTable;
use publish::Publishing;
use still::Stillness;
use tell::Teller;
use torn::{Checkpoints, Lives, Torn};

/// How a filesystem is to behave.
pub struct Options {
    /// Nobody else changes the backings: a name that the index doesn't have is absent.
    pub exclusive: bool,
    /// How long the kernel may keep what others may change.
    pub shared_ttl: Duration,
    /// Where new files go.
    pub policies: Policies,
    /// How much may stay.
    pub retention: RetentionOptions,
    /// How many directories may be kept open.
    pub open_dirs: NonZeroUsize,
    /// How many files may be kept ready for their next open.
    pub idle_files: NonZeroUsize,
    /// A file is hidden from other processes until it's closed.
    pub on_close: bool,
    /// How many descriptors there may be for handles.
    pub open_files: NonZeroUsize,
    /// What a daemon after this one will need.
    pub survival: Survival,
}

/// How long the kernel may keep what it was told of a backing that's the mount's alone: all changes go through it.
pub(crate) const TTL: Duration = Duration::from_secs(24 * 3600);

/// Placement decisions kept for `kvfs locate`.
const REMEMBERED_DECISIONS: usize = 16384;

/// What the kernel has to hear of a file that has changed without its doing; its attributes have in any case.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    /// The file.
    pub node: NodeId,
    /// The range, offset and length in bytes, if the kernel may have pages of it.
    pub pages: Option<(u64, u64)>,
    /// The last byte, with its offset, if the file may be longer than the kernel believes.
    pub end: Option<(u64, u8)>,
}

type DataChanged = Box<dyn Fn(Changed) + Send + Sync>;

/// A name and the attributes of what it stands for.
pub type Entry = Attr;

/// The merged filesystem.
pub struct Fs {
    backings: Backings,
    index: RwLock<Index>,
    dirs: Dirs,
    locks: NameLocks,
    still: Stillness,
    open: OpenTable,
    policies: Policies,
    rules: rules::Rules,
    told: identity::Told,
    exclusive: bool,
    shared_ttl: Duration,
    engine: Arc<dyn Engine>,
    registry: OnceLock<Arc<BackingRegistry>>,
    decisions: Mutex<LruCache<NodeId, Decision>>,
    removed_dirs: Mutex<LruCache<DirId, Attr>>,
    /// Attributes of directories that one backing alone has: should its drive fail, others can have them.
    lone_dirs: Mutex<LruCache<DirId, Attr>>,
    scan: Report,
    invalidate: tell::Invalidate,
    tell: Teller,
    moving: Moving,
    /// Calls the watcher of the drives.
    pub(crate) alarm: Alarm,
    data_changed: OnceLock<DataChanged>,
    /// Whether the kernel maps files that are open around its pages (FUSE_DIRECT_IO_ALLOW_MMAP, Linux 6.6).
    maps_around: AtomicBool,
    socket: socket::Socket,
    /// How much may stay.
    pub retention: Arc<Retention>,
    ghosts: Ghosts,
    publish: Publishing,
    listings: Listings,
    checkpoints: Arc<Checkpoints>,
    /// Where what outlives this daemon is written down.
    state: Option<Arc<State>>,
    keeper: Arc<Keeper>,
    set: set::Set,
    /// The requests at work.
    pub work: Arc<Work>,
    /// Whether anything of daemons before is under way.
    pub lifeline: Arc<Lifeline>,
    /// What was done and how often.
    pub counters: Counters,
    /// How long requests took, and what they moved.
    pub metrics: Metrics,
}

impl Fs {
    /// Reads the backings and makes a filesystem of them.
    pub fn new(
        backings: Vec<Backing>,
        options: Options,
        engine: Arc<dyn Engine>,
        progress: impl FnMut(Progress),
    ) -> std::io::Result<Fs> {
        let Survival { state, keeper, work, lifeline } = options.survival;
        if let Some(state) = &state {
            settle::settle_all(&backings, state, &work);
        }
        let lives = match state.as_ref().is_some_and(|state| state.is_recovered()) {
            true => Lives::All,
            false => Lives::None,
        };
        let there = || backings.iter().filter(|b| !b.health.is_out());
        let torn: Vec<_> = there().map(|backing| Torn::on(backing, lives.clone())).collect();
        let sources: Vec<_> = there().zip(&torn).map(|(b, torn)| source(b, torn.as_ref())).collect();
        let (mut index, scan) =
            index::scan(&sources, state.clone(), progress).map_err(std::io::Error::other)?;
        drop(sources);
        backings.iter().filter(|b| b.health.is_out()).for_each(|b| index.expel(b.slot));
        if options.retention.total.is_some() || backings.iter().any(|b| b.space.capacity.is_some()) {
            index.start_counting();
        }
        let index = RwLock::new(index);
        let publish = Publishing::new(options.on_close);
        for (backing, torn) in backings.iter().filter(|b| !b.health.is_out()).zip(torn) {
            torn.map_or(Ok(()), |torn| torn.end(backing, &index, &publish)).map_err(|e| {
                std::io::Error::other(format!(
                    "backing {}: its list of unclosed files: {e}",
                    backing.path.display()
                ))
            })?;
        }
        let set = set::Set::new(state.clone(), &backings);
        let invalidate = tell::Invalidate::default();
        let keep = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        Ok(Fs {
            dirs: Dirs::new(&backings, options.open_dirs)?,
            backings: Backings::new(backings, set.ids()),
            index,
            locks: NameLocks::new(),
            still: Stillness::new(),
            open: OpenTable::new(options.idle_files, options.open_files, state.clone()),
            retention: Retention::new(options.retention, options.policies.processes().clone()),
            policies: options.policies,
            told: identity::Told::default(),
            rules: rules::Rules::new(),
            exclusive: options.exclusive,
            shared_ttl: options.shared_ttl,
            engine,
            registry: OnceLock::new(),
            decisions: Mutex::new(LruCache::new(keep(REMEMBERED_DECISIONS))),
            removed_dirs: Mutex::new(LruCache::new(keep(4096))),
            lone_dirs: Mutex::new(LruCache::new(keep(4096))),
            scan,
            tell: Teller::new(invalidate.clone()),
            invalidate,
            moving: Moving::default(),
            alarm: Alarm::new()?,
            data_changed: OnceLock::new(),
            maps_around: AtomicBool::new(false),
            socket: socket::Socket::default(),
            ghosts: Ghosts::new(),
            publish,
            // What a daemon before has told the kernel, and whom, isn't known.
            listings: Listings::new(options.on_close && matches!(lives, Lives::None)),
            checkpoints: Arc::default(),
            state,
            keeper,
            set,
            work,
            lifeline,
            counters: Counters::default(),
            metrics: Metrics::new(stats::OPS),
        })
    }

    /// The kernel passes file data through, by this registry, where a backing allows it.
    pub fn set_registry(&self, registry: Arc<BackingRegistry>) {
        let _ = self.registry.set(registry);
    }

    /// Who tells the kernel to ask again for what it knows of a node.
    pub fn set_invalidator(&self, invalidate: impl Fn(NodeId) + Send + Sync + 'static) {
        let _ = self.invalidate.set(Box::new(invalidate));
    }

    /// Who tells the kernel that a file has changed without its doing.
    pub fn set_data_changed(&self, changed: impl Fn(Changed) + Send + Sync + 'static) {
        let _ = self.data_changed.set(Box::new(changed));
    }

    /// The kernel maps files that are open around its pages.
    pub fn set_maps_around(&self) {
        self.maps_around.store(true, Relaxed);
    }

    /// Where what outlives this daemon is written down, if anywhere, and who keeps descriptors.
    pub(crate) fn survival(&self) -> (Option<Arc<State>>, Arc<Keeper>) {
        (self.state.clone(), self.keeper.clone())
    }

    /// The backings, by slot.
    pub fn backings(&self) -> List {
        self.backings.list()
    }

    /// What the scan at the start found.
    pub fn scan_report(&self) -> &Report {
        &self.scan
    }

    /// Comes back if requests of names can be answered: nobody has the index for good.
    pub fn come_past(&self) {
        drop(self.index.read());
    }

    /// The engine for data that isn't passed through.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// EROFS where the operator, or its own file system, has made the backing read-only; EIO where it's out. Of
    /// one that was removed there's nothing to keep from changing: files that are open go on.
    fn changeable(&self, slot: Slot) -> Result<()> {
        let Some(backing) = self.backings.get(slot) else { return Ok(()) };
        if backing.state().takes_changes() && backing.health.takes_changes() {
            return Ok(());
        }
        self.reach(slot)?;
        Err(Errno::ROFS.into())
    }

    fn all_changeable(&self, slots: SlotSet) -> Result<()> {
        slots.iter().try_for_each(|slot| self.changeable(slot))
    }

    /// The placement policy.
    pub fn policy(&self) -> &dyn Policy {
        self.policies.mounts_own()
    }

    /// Whether a miss is final.
    pub fn exclusive(&self) -> bool {
        self.exclusive
    }

    /// A backing. ESTALE when it was removed: the kernel then looks the name up again.
    fn backing(&self, slot: Slot) -> Result<Arc<Backing>> {
        self.backings.get(slot).ok_or_else(|| Errno::STALE.into())
    }

    /// The directory that a node id stands for.
    fn dir_of(&self, node: NodeId) -> Result<DirId> {
        match node.node() {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(..)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::STALE.into()),
        }
    }

    fn dir_fd(&self, slot: Slot, dir: DirId) -> Result<DirFd> {
        self.reach(slot)?;
        self.dirs.get(&self.index, slot, dir)
    }

    /// All backings as placement sees them, with whether each takes new files now.
    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |b: &Arc<Backing>| {
            let free = b.spare();
            let usable = b.is_open_to_files() && free > b.space.typical();
            Candidate { slot: b.slot.0, id: b.id(), weight: b.weight, free, device: b.device, usable }
        };
        let mut candidates: Vec<Candidate> = self.backings.list().iter().map(candidate).collect();
        if self.is_total_used() {
            candidates.iter_mut().for_each(|c| c.usable = false);
        }
        candidates
    }

    /// Whether all files together take what they may.
    fn is_total_used(&self) -> bool {
        let Some(total) = self.retention.options.total else { return false };
        let index = self.index.read();
        let taken = |b: &Arc<Backing>| {
            index.bytes_on(b.slot).saturating_add(b.space.promised()).saturating_add(b.space.typical())
        };
        self.backings.list().iter().map(taken).fold(0, u64::saturating_add) > total
    }

    /// Why the file is where it is, for people.
    pub(crate) fn placement_of(&self, node: NodeId, reason: u8, dir: DirId, path: &[u8]) -> String {
        let policy = self.policy_in(dir);
        if let Some(decision) = self.decisions.lock().peek(&node) {
            return format!("{}: {}", policy.name(), decision.detail);
        }
        let rule = policy.explain(&placement::Target { path }, &self.candidates());
        match Reason::from_code(reason) {
            Some(reason) => format!("{reason} ({rule})"),
            None => rule,
        }
    }
}

fn source<'a>(backing: &'a Backing, torn: Option<&'a Torn>) -> index::Source<'a> {
    let sieve = torn.and_then(Torn::sieve);
    index::Source { sieve, ..source_at(backing.slot, backing.root(), Reason::FoundAtScan) }
}

/// A directory of a backing, to be read.
fn source_at(slot: Slot, root: BorrowedFd<'_>, reason: Reason) -> index::Source<'_> {
    let (is_leftover, reason) = (relocate::is_temporary, reason.code());
    index::Source { slot, root, is_reserved, is_leftover, reason, sieve: None }
}

/// A name that a client may look up: the kernel sends no others, but a test or a fault may.
fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(Errno::NAMETOOLONG.into());
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

/// A name that a client may make.
fn check_new_name(name: &[u8]) -> Result<()> {
    check_name(name)?;
    if is_reserved(name) { Err(Errno::PERM.into()) } else { Ok(()) }
}

/// The path by which a file that is open, in whatever way, can be opened again.
fn proc_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
