//! The tables of open files: records by node, with their opens counted, and handles by number.
//!
//! What always holds: no number of a handle is given twice in a mount's life, over crashes too; what a daemon after
//! this one has to know of a handle is written down before anyone hears of the handle, and crossed out while its
//! place is still its own. There are never more handles than the process may have descriptors for, and no user has so
//! many that others get none. Nothing is closed under a lock of these tables.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use slab::Slab;

use super::open::{Handle, OpenNode};
use super::paging::{Trusted, Way};
use super::{Caller, NodeId, Result};
use crate::index::{MAX_BACKINGS, Node, Slot};
use crate::shares::{Share, Shares};
use crate::supervise::{self, HandleRecord, State};

/// Tables of open inodes, so that opens of different files don't wait for each other.
const SHARDS: usize = 32;

/// Open inodes, each with the number of its opens.
type Shard = HashMap<NodeId, (Arc<OpenNode>, usize)>;

/// All open files.
pub(super) struct OpenTable {
    shards: Vec<Mutex<Shard>>,
    idle: Mutex<LruCache<NodeId, Arc<OpenNode>>>,
    /// Removed files whose nodes the kernel hasn't forgotten yet.
    removed: Mutex<LruCache<NodeId, Arc<OpenNode>>>,
    /// The same of evicted ones, which are never opened again.
    pub(super) evicted: super::evict::Held,
    /// Inodes of files that were moved, whose nodes the kernel hasn't forgotten yet: they can't be opened any
    /// more, and their numbers can't become other files'.
    moved: Mutex<LruCache<NodeId, OwnedFd>>,
    pub(super) trusted: Trusted,
    handles: RwLock<Slab<Arc<Handle>>>,
    /// How many handles there may be, of which each costs a few descriptors.
    shares: Arc<Shares>,
    /// How often each backing has left, by slot: what was opened before is of no use afterwards.
    epochs: [AtomicU64; MAX_BACKINGS],
    serial: AtomicU64,
    state: Option<Arc<State>>,
    /// What a daemon before this one has left, if there was one.
    pub(super) left: super::recover::Left,
}

/// A handle's number: its place in the table, and above that how many there were before it, so that none is
/// given twice.
const PLACE: u32 = 24;

impl OpenTable {
    pub(super) fn new(idle: NonZeroUsize, handles: NonZeroUsize, state: Option<Arc<State>>) -> OpenTable {
        OpenTable {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            idle: Mutex::new(LruCache::new(idle)),
            removed: Mutex::new(LruCache::new(idle)),
            evicted: super::evict::Held::new(idle),
            moved: Mutex::new(LruCache::new(idle)),
            trusted: Trusted::default(),
            handles: RwLock::new(Slab::new()),
            // With its descriptors for writing and for direct I/O.
            shares: Shares::weighed("open files", handles.get(), 3),
            epochs: [const { AtomicU64::new(0) }; MAX_BACKINGS],
            serial: AtomicU64::new(1),
            state,
            left: super::recover::Left::default(),
        }
    }

    /// Room for one more handle. ENFILE where its user has as many as are left.
    pub(super) fn room(&self, caller: &Caller) -> Result<Share> {
        self.shares.take(caller.uid).ok_or_else(|| Errno::NFILE.into())
    }

    /// Of a handle that is there already.
    pub(super) fn taken(&self, user: u32) -> Share {
        self.shares.taken(user)
    }

    fn shard(&self, node: NodeId) -> &Mutex<Shard> {
        // Inode numbers of neighbours differ in the low bits.
        &self.shards[node.0 as usize % SHARDS]
    }

    /// The record of an inode that is open, or was lately.
    pub(super) fn find(&self, node: NodeId) -> Option<Arc<OpenNode>> {
        if let Some((open, _)) = self.shard(node).lock().get(&node) {
            return Some(open.clone());
        }
        let idle = self.idle.lock().get(&node).cloned();
        idle.or_else(|| self.removed.lock().get(&node).cloned())
    }

    /// The record, with one more open of it.
    pub(super) fn take(&self, node: NodeId) -> Option<Arc<OpenNode>> {
        let mut shard = self.shard(node).lock();
        if let Some((open, count)) = shard.get_mut(&node) {
            *count += 1;
            return Some(open.clone());
        }
        let idle = self.idle.lock().pop(&node);
        let kept = idle.or_else(|| self.removed.lock().get(&node).cloned())?;
        shard.insert(node, (kept.clone(), 1));
        Some(kept)
    }

    /// Enters a record with its first open. If somebody was faster, theirs is taken.
    pub(super) fn enter(&self, mut new: OpenNode) -> Arc<OpenNode> {
        new.epoch = self.epochs[new.slot.index()].load(Relaxed);
        let mut shard = self.shard(new.node).lock();
        let (open, count) = shard.entry(new.node).or_insert_with(|| (Arc::new(new), 0));
        *count += 1;
        open.clone()
    }

    /// One open more of a record that had one when it was found.
    pub(super) fn hold(&self, open: &Arc<OpenNode>) -> Arc<OpenNode> {
        let mut shard = self.shard(open.node).lock();
        if let Some((there, count)) = shard.get_mut(&open.node) {
            *count += 1;
            return there.clone();
        }
        let idle = self.idle.lock().pop(&open.node);
        shard.insert(open.node, (open.clone(), 1));
        drop(shard);
        drop(idle);
        open.clone()
    }

    /// How many opens there are of a record.
    pub(super) fn count(&self, open: &OpenNode) -> usize {
        self.shard(open.node).lock().get(&open.node).map_or(0, |(_, count)| *count)
    }

    /// One open less.
    pub(super) fn give_back(&self, open: Arc<OpenNode>, keep: bool) {
        let mut shard = self.shard(open.node).lock();
        let Some((_, count)) = shard.get_mut(&open.node) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        shard.remove(&open.node);
        let keep = keep && self.is_here(&open);
        // Dropping a record closes files: not under the locks.
        let dropped =
            if keep { self.idle.lock().push(open.node, open).map(|(_, old)| old) } else { Some(open) };
        drop(shard);
        drop(dropped);
    }

    /// Whether its drive is there since it was opened.
    pub(super) fn is_here(&self, open: &OpenNode) -> bool {
        open.epoch == self.epochs[open.slot.index()].load(Relaxed)
    }

    /// The file was removed: nothing is kept of it for a next open.
    pub(super) fn forget_idle(&self, node: NodeId) {
        self.trusted.remove(node);
        let dropped = self.idle.lock().pop(&node);
        drop(dropped);
    }

    /// The file was removed: it's held until the kernel forgets its node.
    pub(super) fn hold_removed(&self, open: Arc<OpenNode>) {
        self.forget_idle(open.node);
        // Of one that was moved it's held already, and mustn't be opened.
        if self.was_moved(open.node) {
            return;
        }
        let dropped = self.removed.lock().push(open.node, open);
        drop(dropped);
    }

    /// The kernel has forgotten the node.
    pub(super) fn forget_removed(&self, node: NodeId) {
        let dropped = self.removed.lock().pop(&node);
        drop(dropped);
        self.evicted.forget(node);
    }

    /// Whether the inode is open.
    pub(super) fn is_open(&self, node: NodeId) -> bool {
        self.shard(node).lock().contains_key(&node)
    }

    /// The file was moved: its old inode is held until the kernel forgets its node. What there's no room for
    /// is returned, to be dropped under no lock.
    #[must_use]
    pub(super) fn hold_moved(&self, node: NodeId, old: OwnedFd) -> Option<OwnedFd> {
        self.moved.lock().push(node, old).map(|(_, old)| old)
    }

    /// The kernel has forgotten the node.
    pub(super) fn forget_moved(&self, node: NodeId) {
        let dropped = self.moved.lock().pop(&node);
        drop(dropped);
    }

    /// Whether the node was a file that has been moved.
    pub(super) fn was_moved(&self, node: NodeId) -> bool {
        self.moved.lock().contains(&node)
    }

    /// A backing goes: nothing of it is kept that isn't open.
    pub(super) fn leave(&self, slot: Slot) {
        fn take<T>(table: &Mutex<LruCache<NodeId, T>>, slot: Slot) -> Vec<T> {
            let mut table = table.lock();
            let on = |node: &NodeId| matches!(node.node(), Some(Node::File(at, _)) if at == slot);
            let gone: Vec<NodeId> = table.iter().map(|(node, _)| *node).filter(on).collect();
            gone.iter().filter_map(|node| table.pop(node)).collect()
        }
        self.epochs[slot.index()].fetch_add(1, Relaxed);
        // Dropped when no lock is held.
        drop((take(&self.idle, slot), take(&self.removed, slot), take(&self.moved, slot)));
        self.trusted.leave(slot);
        self.evicted.leave(slot);
    }

    /// Records of files on a backing that are open.
    pub(super) fn open_on(&self, slot: Slot) -> Vec<Arc<OpenNode>> {
        let on = |shard: &Mutex<Shard>| -> Vec<Arc<OpenNode>> {
            let shard = shard.lock();
            shard.values().map(|(open, _)| open).filter(|open| open.slot == slot).cloned().collect()
        };
        self.shards.iter().flat_map(on).collect()
    }

    /// How many opens there are of files on a backing, and how many of those may write.
    pub(super) fn opens_on(&self, slot: Slot) -> (usize, usize) {
        let handles = self.handles.read();
        let on = || handles.iter().map(|(_, handle)| handle).filter(|handle| handle.node.slot == slot);
        (on().count(), on().filter(|handle| handle.access != libc::O_RDONLY).count())
    }

    pub(super) fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        let found = self.handles.read().get(place(fh)).filter(|handle| handle.fh == fh).cloned();
        found.ok_or_else(|| if self.left.is_lost(fh) { Errno::STALE } else { Errno::BADF }.into())
    }

    /// Enters a handle, and writes it down before anyone is told of it. ENFILE when there's no place left.
    pub(super) fn add_handle(&self, mut handle: Handle, flags: i32) -> Result<u64> {
        let (node, birth) = (handle.node.node, self.state.as_ref().map_or(0, |_| handle.node.birth()));
        let serial = match &self.state {
            Some(state) => state.next_serial(),
            None => self.serial.fetch_add(1, Relaxed),
        };
        let mut handles = self.handles.write();
        let at = handles.vacant_key();
        if at >> PLACE != 0 {
            drop(handles);
            self.give_back(handle.node, false);
            return Err(Errno::NFILE.into());
        }
        handle.fh = serial << PLACE | at as u64;
        let (fh, user) = (handle.fh, handle.share.user());
        let flags = flags as u32 | handle.way.as_ref().map_or(0, Way::recorded);
        handles.insert(Arc::new(handle));
        if let Some(state) = &self.state {
            let (node, unique) = (node.0, supervise::unique());
            state.keep_handle(at, HandleRecord { fh, node, birth, unique, flags, user });
        }
        Ok(fh)
    }

    /// A descriptor of a handle is closed, perhaps the last one: written down beside the flags of open(2).
    pub(super) fn note_closed(&self, fh: u64) {
        let handles = self.handles.read();
        if let (Some(state), true) = (&self.state, handles.get(place(fh)).is_some_and(|h| h.fh == fh)) {
            state.flag_handle(place(fh), CLOSED);
        }
    }

    /// Enters the handles that a daemon before had.
    pub(super) fn restore(&self, handles: impl Iterator<Item = (u64, Handle)>) {
        let entry = |(fh, handle)| (place(fh), Arc::new(Handle { fh, ..handle }));
        *self.handles.write() = handles.map(entry).collect();
    }

    pub(super) fn remove_handle(&self, fh: u64) -> Option<Arc<Handle>> {
        let mut handles = self.handles.write();
        handles.get(place(fh)).filter(|handle| handle.fh == fh)?;
        // While the place is still its own.
        if let Some(state) = &self.state {
            state.drop_handle(place(fh));
        }
        handles.try_remove(place(fh))
    }

    /// Open handles now.
    pub(super) fn handles_open(&self) -> usize {
        self.handles.read().len()
    }
}

/// In the record of a handle: a descriptor of it was closed. No flag of open(2) is that high.
pub(super) const CLOSED: u32 = 1 << 29;

/// Where in the table a handle with this number is, or was.
pub(super) fn place(fh: u64) -> usize {
    (fh & ((1 << PLACE) - 1)) as usize
}
