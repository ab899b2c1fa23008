//! Open files: one record per inode, shared by all its opens, and one handle per open.
//!
//! What always holds: an inode is in one mode while it's open, passthrough with one backing id or data
//! through the daemon; the kernel answers EIO to any mix (fs/fuse/iomode.c). A record stays after the last
//! close as long as there's room for it (the next open then costs no system call). A file that was removed is
//! held until the kernel forgets its node: whoever had found it before can still open it, and its inode
//! number can't become another file's while the kernel knows it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;
use slab::Slab;

use super::attr::stat_fd;
use super::gate::Gate;
use super::rules::QuotaPromise;
use super::{DirFd, Error, Fs, NodeId, Result, proc_path};
use crate::backing::{Passthrough, Promise};
use crate::index::{FileRef, Kind, MAX_BACKINGS, Node, Slot};
use crate::io::{IoFile, Registered};

/// Tables of open inodes, so that opens of different files don't wait for each other.
const SHARDS: usize = 32;

/// An inode that is open, or was a short while ago.
pub(super) struct OpenNode {
    pub(super) node: NodeId,
    pub(super) slot: Slot,
    /// The file, with `O_PATH` or better.
    pub(super) fd: OwnedFd,
    /// The same, for what `O_PATH` can't do; `fd` itself where that was opened for writing.
    writable: OnceLock<OwnedFd>,
    fd_is_writable: bool,
    /// The same with `O_DIRECT`, for the ioctl path; `None` in it where that's refused.
    pub(super) direct: OnceLock<Option<OwnedFd>>,
    /// Which time its drive is there, from [`OpenTable::epochs`].
    epoch: u64,
    /// A number of its own, never used again.
    pub(super) serial: u64,
    /// Room that it's expected to need, on its backing and in quotas, until its creator has closed it.
    promise: Mutex<Option<(Promise, Vec<QuotaPromise>)>>,
    /// Keeps its truncations apart from transfers of the ioctl path.
    pub(super) gate: Arc<Gate>,
    /// How its data moves, decided at the first open. The lock is held while the kernel is told.
    mode: Mutex<DataMode>,
}

enum DataMode {
    Undecided,
    Passthrough(Registered),
    Daemon,
}

/// How the data of an open moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// The kernel reads and writes the backing file with this id.
    Passthrough(u32),
    /// Requests come to the daemon.
    Daemon,
    /// All of them do, and the kernel keeps nothing: others write the file too.
    Uncached,
}

/// An open file as the kernel is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handle's number.
    pub fh: u64,
    /// How its data moves.
    pub data: Data,
}

/// One open.
pub(super) struct Handle {
    pub(super) node: Arc<OpenNode>,
    /// `O_RDONLY`, `O_WRONLY` or `O_RDWR`: the kernel doesn't check it for an ioctl.
    pub(super) access: i32,
    /// Only where data comes to the daemon.
    pub(super) io: Option<Arc<IoFile>>,
    /// Whether `io` puts everything at the end of the file.
    pub(super) appends: bool,
}

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
    handles: RwLock<Slab<Arc<Handle>>>,
    /// How often each backing has left, by slot: what was opened before is of no use afterwards.
    epochs: [AtomicU64; MAX_BACKINGS],
}

impl OpenTable {
    pub(super) fn new(idle: NonZeroUsize) -> OpenTable {
        OpenTable {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            idle: Mutex::new(LruCache::new(idle)),
            removed: Mutex::new(LruCache::new(idle)),
            evicted: super::evict::Held::new(idle),
            moved: Mutex::new(LruCache::new(idle)),
            handles: RwLock::new(Slab::new()),
            epochs: [const { AtomicU64::new(0) }; MAX_BACKINGS],
        }
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
    fn take(&self, node: NodeId) -> Option<Arc<OpenNode>> {
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
    fn enter(&self, mut new: OpenNode) -> Arc<OpenNode> {
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
    fn give_back(&self, open: Arc<OpenNode>, keep: bool) {
        let mut shard = self.shard(open.node).lock();
        let Some((_, count)) = shard.get_mut(&open.node) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        shard.remove(&open.node);
        let keep = keep && open.epoch == self.epochs[open.slot.index()].load(Relaxed);
        // Dropping a record closes files: not under the locks.
        let dropped =
            if keep { self.idle.lock().push(open.node, open).map(|(_, old)| old) } else { Some(open) };
        drop(shard);
        drop(dropped);
    }

    /// The file was removed: nothing is kept of it for a next open.
    pub(super) fn forget_idle(&self, node: NodeId) {
        let dropped = self.idle.lock().pop(&node);
        drop(dropped);
    }

    /// The file was removed: it's held until the kernel forgets its node.
    fn hold_removed(&self, open: Arc<OpenNode>) {
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
        self.evicted.leave(slot);
    }

    /// How many opens there are of files on a backing, and how many of those may write.
    pub(super) fn opens_on(&self, slot: Slot) -> (usize, usize) {
        let handles = self.handles.read();
        let on = || handles.iter().map(|(_, handle)| handle).filter(|handle| handle.node.slot == slot);
        (on().count(), on().filter(|handle| handle.access != libc::O_RDONLY).count())
    }

    pub(super) fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        let handles = self.handles.read();
        usize::try_from(fh).ok().and_then(|fh| handles.get(fh)).cloned().ok_or_else(|| Errno::BADF.into())
    }

    fn add_handle(&self, handle: Handle) -> u64 {
        self.handles.write().insert(Arc::new(handle)) as u64
    }

    fn remove_handle(&self, fh: u64) -> Option<Arc<Handle>> {
        let fh = usize::try_from(fh).ok()?;
        self.handles.write().try_remove(fh)
    }

    /// Open handles now.
    pub(super) fn handles_open(&self) -> usize {
        self.handles.read().len()
    }
}

impl OpenNode {
    /// A descriptor that can be written, synced and seeked; read-only where the file can't be written.
    pub(super) fn writable(&self) -> Result<&OwnedFd> {
        if self.fd_is_writable {
            return Ok(&self.fd);
        }
        if let Some(fd) = self.writable.get() {
            return Ok(fd);
        }
        let path = proc_path(&self.fd);
        let open = |flags| rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty());
        let fd = open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).map_err(Error::on(self.slot))?;
        Ok(self.writable.get_or_init(|| fd))
    }
}

impl Fs {
    /// Opens a file that exists.
    pub fn open(&self, node: NodeId, flags: i32) -> Result<Opened> {
        let Some(Node::File(slot, ino)) = node.node() else { return Err(Errno::ISDIR.into()) };
        self.reach(slot)?;
        let using = self.still.using(node);
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            self.changeable(slot)?;
            self.moving.touch(node);
        }
        let open = match self.open.take(node) {
            Some(open) => open,
            None => {
                let (fd, stat) = self.open_path(slot, ino)?;
                if Kind::from_mode(u32::from(stat.stx_mode)) != Kind::File {
                    return Err(Errno::NXIO.into());
                }
                self.open.enter(OpenNode::new(node, slot, fd, false))
            }
        };
        drop(using);
        self.finish_open(open, flags)
    }

    /// The file that was just created is open, by its creator's descriptor.
    pub(super) fn enter_created(
        &self,
        file: FileRef,
        fd: OwnedFd,
        quotas: Vec<QuotaPromise>,
    ) -> Arc<OpenNode> {
        let new = OpenNode::new(file.node(), file.slot, fd, true);
        *new.promise.lock() = self.backing(file.slot).ok().map(|backing| (backing.space.promise(), quotas));
        self.open.enter(new)
    }

    /// Opens the file that was just created and entered.
    pub(super) fn finish_open_created(&self, open: Arc<OpenNode>, flags: i32) -> Result<Opened> {
        // A new file has nothing to cut off.
        self.finish_open(open, flags & !libc::O_TRUNC)
    }

    fn finish_open(&self, open: Arc<OpenNode>, flags: i32) -> Result<Opened> {
        let opened = self.prepare_open(&open, flags);
        match opened {
            Ok((data, io)) => {
                let appends = flags & libc::O_APPEND != 0 && data == Data::Uncached;
                let handle = Handle { node: open, access: flags & libc::O_ACCMODE, io, appends };
                Ok(Opened { fh: self.open.add_handle(handle), data })
            }
            Err(e) => {
                self.open.give_back(open, false);
                Err(e)
            }
        }
    }

    fn prepare_open(&self, open: &OpenNode, flags: i32) -> Result<(Data, Option<Arc<IoFile>>)> {
        if flags & libc::O_TRUNC != 0 {
            open.gate.truncating(|| truncate(&open.fd, 0)).map_err(Error::on(open.slot))?;
        }
        let data = self.data_of(open);
        let io = match data {
            Data::Passthrough(_) => None,
            Data::Daemon | Data::Uncached => Some(Arc::new(self.open_io(open, flags)?)),
        };
        Ok((data, io))
    }

    /// Passthrough if the kernel takes the file, by its one id; decided at the first open.
    fn data_of(&self, open: &OpenNode) -> Data {
        let mut mode = open.mode.lock();
        if let DataMode::Undecided = *mode {
            let backing = self.backing(open.slot).ok();
            *mode = match (self.registry.get(), backing.as_ref().map(|b| b.passthrough())) {
                (Some(registry), Some(Passthrough::On)) => match registry.register(open.fd.as_fd()) {
                    Ok(registered) => DataMode::Passthrough(registered),
                    Err(e) => {
                        tracing::warn!(
                            "backing {}: the kernel doesn't pass a file through ({e}); its data goes through the daemon",
                            open.slot.0
                        );
                        DataMode::Daemon
                    }
                },
                _ => DataMode::Daemon,
            };
        }
        match &*mode {
            DataMode::Passthrough(registered) => Data::Passthrough(registered.id()),
            _ if self.is_shared(open.slot) => Data::Uncached,
            _ => Data::Daemon,
        }
    }

    /// The descriptor of one open whose data comes to the daemon.
    fn open_io(&self, open: &OpenNode, flags: i32) -> Result<IoFile> {
        // Not O_APPEND: the kernel sends the offset. Where others write too it doesn't know the end. Writers may be asked to read too: a page that is
        // mapped and written in part is read first.
        let access = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => OFlags::RDONLY,
            _ => OFlags::RDWR,
        };
        let appends = flags & libc::O_APPEND != 0 && self.is_shared(open.slot);
        let kept = libc::O_SYNC
            | libc::O_DSYNC
            | libc::O_NOATIME
            | if appends { libc::O_APPEND } else { libc::O_DIRECT };
        if open.fd_is_writable && flags & kept == 0 {
            // The creator's own, which its mode (0444, say) doesn't keep from writing.
            return Ok(IoFile::new(open.fd.try_clone()?, None));
        }
        let wanted = access | OFlags::from_bits_retain((flags & kept) as u32) | OFlags::CLOEXEC;
        let path = proc_path(&open.fd);
        let opened = rustix::fs::open(&path, wanted, Mode::empty()).or_else(|e| match e {
            // As an ordinary user: of another's file, or of one that may only be written.
            Errno::PERM => rustix::fs::open(&path, wanted.difference(OFlags::NOATIME), Mode::empty()),
            Errno::ACCESS if access == OFlags::RDWR => {
                rustix::fs::open(&path, wanted.difference(OFlags::RDWR) | OFlags::WRONLY, Mode::empty())
            }
            e => Err(e),
        });
        let fd = opened.map_err(Error::on(open.slot))?;
        let direct = flags & kept & libc::O_DIRECT != 0;
        let align = if direct { Some(self.backing(open.slot)?.dio_align) } else { None };
        Ok(IoFile::new(fd, align))
    }

    /// The inode by one of its names, with `O_PATH`, after making sure it's the right one.
    pub(super) fn open_path(&self, slot: Slot, ino: crate::index::PackedIno) -> Result<(OwnedFd, Statx)> {
        self.by_name(slot, ino, |dir, name, file| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let parent = self.dir_fd(slot, dir)?;
            let fd = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(Error::on(slot))?;
            let stat = stat_fd(&fd).map_err(Error::on(slot))?;
            if !self.is_file(&stat, file) {
                return Err(Errno::STALE.into());
            }
            self.is_as_told(file.node(), &stat, &fd, b"")?;
            Ok((fd, stat))
        })
    }

    /// The file that is about to lose this name, to be held when it has. `None` if it isn't the file.
    pub(super) fn before_removal(&self, dir: &DirFd, name: &[u8], file: FileRef) -> Option<Arc<OpenNode>> {
        if let Some(open) = self.open.find(file.node()) {
            return Some(open);
        }
        // NFS renames a file that is open instead of removing it (nfs_sillyrename in fs/nfs/unlink.c), and others
        // may remove it without our holding it.
        if self.is_shared(file.slot) {
            return None;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
        let stat = stat_fd(&fd).ok()?;
        self.is_file(&stat, file).then(|| Arc::new(OpenNode::new(file.node(), file.slot, fd, false)))
    }

    /// The file has lost a name.
    pub(super) fn after_removal(&self, file: FileRef, held: Option<Arc<OpenNode>>) {
        if let Some(open) = &held {
            self.count_by_other_name(open);
        }
        match held {
            Some(open) => self.open.hold_removed(open),
            None => self.open.forget_idle(file.node()),
        }
        self.decisions.lock().pop(&file.node());
    }

    /// A descriptor of a node, open or not, that attributes can be set through.
    pub(super) fn node_fd(&self, slot: Slot, ino: crate::index::PackedIno) -> Result<NodeFd> {
        self.reach(slot)?;
        match self.open.find(NodeId::file(slot, ino)) {
            Some(open) => Ok(NodeFd::Open(open)),
            None => Ok(NodeFd::Path(self.open_path(slot, ino)?.0)),
        }
    }

    /// The kernel is done with a handle. One that isn't known does no harm.
    pub fn release(&self, fh: u64) {
        let Some(handle) = self.open.remove_handle(fh) else { return };
        let node = handle.node.clone();
        let written = handle.access != libc::O_RDONLY;
        drop(handle);
        self.was_used(&node);
        self.written(&node, written);
        self.unpin(node);
    }

    /// A handle is done with; its file may have been written by it.
    fn written(&self, open: &OpenNode, written: bool) {
        let promise = open.promise.lock().take();
        // Who asks for room sees the promise or the file, and not both.
        let settling =
            promise.as_ref().filter(|(_, quotas)| !quotas.is_empty()).map(|_| self.rules.settling());
        if written {
            self.count_size(open);
        }
        if let Some((promise, quotas)) = promise {
            self.keep_promise(open, promise, quotas);
        }
        drop(settling);
    }

    /// The creator of a file is done writing it.
    fn keep_promise(&self, open: &OpenNode, promise: Promise, quotas: Vec<QuotaPromise>) {
        let size = stat_fd(&open.fd).ok().map(|stat| stat.stx_size);
        if let Ok(backing) = self.backing(open.slot) {
            backing.space.written(promise, size);
            // Whether the next file finds room is found out while it's not waited for.
            if !backing.has_room() {
                self.retention.kick();
            }
        }
        quotas.into_iter().for_each(|(space, promise)| space.written(promise, size));
    }

    /// One open less of a file.
    pub(super) fn unpin(&self, node: Arc<OpenNode>) {
        // A file without a name is not kept.
        // Nor one that somebody else may remove: it would take its room until we close it.
        let keep = !self.is_shared(node.slot) && self.has_name(node.node);
        let id = node.node;
        self.open.give_back(node, keep);
        // It may have been removed since it was looked for: then either this or the removal finds it.
        if keep && !self.has_name(id) {
            self.open.forget_idle(id);
        }
    }

    /// Whether the index has a name of the file that the kernel knows.
    fn has_name(&self, node: NodeId) -> bool {
        match node.node() {
            Some(Node::File(slot, ino)) => self.index.read().find_known(slot, ino),
            _ => false,
        }
    }

    /// A handle of the file was closed: that's a use of it.
    fn was_used(&self, open: &OpenNode) {
        if let Some(Node::File(slot, ino)) = open.node.node() {
            self.index.read().touch(slot, ino, self.retention.now());
        }
    }

    /// Handles open now.
    pub fn handles_open(&self) -> usize {
        self.open.handles_open()
    }
}

/// A node's descriptor.
pub(super) enum NodeFd {
    Open(Arc<OpenNode>),
    Path(OwnedFd),
}

impl NodeFd {
    pub(super) fn fd(&self) -> &OwnedFd {
        match self {
            NodeFd::Open(open) => &open.fd,
            NodeFd::Path(fd) => fd,
        }
    }
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

impl OpenNode {
    /// Whether the kernel moves its data.
    pub(super) fn is_passthrough(&self) -> bool {
        matches!(*self.mode.lock(), DataMode::Passthrough(_))
    }

    fn new(node: NodeId, slot: Slot, fd: OwnedFd, fd_is_writable: bool) -> OpenNode {
        OpenNode {
            node,
            slot,
            fd,
            writable: OnceLock::new(),
            fd_is_writable,
            epoch: 0,
            direct: OnceLock::new(),
            serial: SERIAL.fetch_add(1, Relaxed),
            promise: Mutex::new(None),
            gate: Arc::default(),
            mode: Mutex::new(DataMode::Undecided),
        }
    }
}

/// Cuts a file off, or makes it longer, whatever way it's open.
pub(super) fn truncate(fd: &OwnedFd, size: u64) -> std::result::Result<(), Errno> {
    let size = i64::try_from(size).map_err(|_| Errno::FBIG)?;
    nix::unistd::truncate(proc_path(fd).as_str(), size).map_err(|e| Errno::from_raw_os_error(e as i32))
}
