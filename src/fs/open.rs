//! Open files: one record per inode, shared by all its opens, and one handle per open.
//!
//! What always holds: an inode is in one mode while it's open, passthrough with one backing id or data
//! through the daemon; the kernel answers EIO to any mix (fs/fuse/iomode.c). A record stays after the last
//! close as long as there's room for it (the next open then costs no system call). A file that was removed is
//! held until the kernel forgets its node: whoever had found it before can still open it, and its inode
//! number can't become another file's while the kernel knows it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;

use super::attr::stat_fd;
use super::gate::Gate;
use super::paging::{Way, Ways};
use super::rules::QuotaPromise;
use super::{Caller, DirFd, Error, Fs, NodeId, Result, proc_path};
use crate::backing::{Passthrough, Promise};
use crate::index::{FileRef, Kind, Node, Slot};
use crate::io::{IoFile, Registered};
use crate::shares::Share;
use crate::supervise::Tag;

/// An inode that is open, or was a short while ago.
pub(super) struct OpenNode {
    pub(super) node: NodeId,
    pub(super) slot: Slot,
    /// The file, with `O_PATH` or better.
    pub(super) fd: OwnedFd,
    /// The same, for what `O_PATH` can't do; `fd` itself where that was opened for writing.
    writable: OnceLock<OwnedFd>,
    pub(super) fd_is_writable: bool,
    /// The same with `O_DIRECT`, for the ioctl path; `None` in it where that's refused.
    pub(super) direct: OnceLock<Option<OwnedFd>>,
    /// Which time its drive is there, from [`OpenTable::epochs`].
    pub(super) epoch: u64,
    /// A number of its own, never used again.
    pub(super) serial: u64,
    /// Room that it's expected to need, on its backing and in quotas, until its creator has closed it.
    promise: Mutex<Option<(Promise, Vec<QuotaPromise>)>>,
    /// Keeps its truncations apart from transfers of the ioctl path.
    pub(super) gate: Arc<Gate>,
    /// How its handles use the kernel's pages.
    pub(super) ways: Mutex<Ways>,
    /// How its data moves, decided at the first open. The lock is held while the kernel is told.
    mode: Mutex<DataMode>,
    /// The keeper has the file, because it has no name.
    kept: AtomicBool,
    /// How often the kernel has forgotten the node while it was open.
    pub(super) forgotten: AtomicU64,
    /// What tells it from another that gets its inode number later; asked for once.
    birth: OnceLock<u64>,
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
    /// Requests come to the daemon; the kernel keeps pages, but none of before.
    Daemon,
    /// The same, and those of before are right.
    Kept,
    /// Requests come to the daemon straight from the client's memory.
    Around,
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
    /// Whether the kernel is to say when a descriptor of it is closed.
    pub flush: bool,
}

/// One open.
pub(super) struct Handle {
    pub(super) node: Arc<OpenNode>,
    /// `O_RDONLY`, `O_WRONLY` or `O_RDWR`: the kernel doesn't check it for an ioctl.
    pub(super) access: i32,
    /// Only where data comes to the daemon.
    pub(super) io: Option<Arc<IoFile>>,
    /// How it uses the kernel's pages, where those are in use.
    pub(super) way: Option<Way>,
    /// Whether `io` puts everything at the end of the file.
    pub(super) appends: bool,
    /// Its number.
    pub(super) fh: u64,
    /// Its user's part of all there may be.
    pub(super) share: Share,
}

impl OpenNode {
    /// A descriptor that is of more than the path, if there's one already.
    pub(super) fn real(&self) -> Option<&OwnedFd> {
        if self.fd_is_writable { Some(&self.fd) } else { self.writable.get() }
    }

    /// A descriptor that can be written, synced and seeked; read-only where the file can't be written.
    pub(super) fn writable(&self) -> Result<&OwnedFd> {
        if let Some(fd) = self.real() {
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
    pub fn open(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<Opened> {
        let Some(Node::File(slot, ino)) = node.node() else { return Err(Errno::ISDIR.into()) };
        if let Some(opened) = self.opened_before(node) {
            return Ok(opened);
        }
        self.reach(slot)?;
        self.is_meant(node)?;
        let room = self.open.room(caller)?;
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
        self.finish_open(open, flags, room, false)
    }

    /// The file that was just created is open, by its creator's descriptor.
    pub(super) fn enter_created(
        &self,
        file: FileRef,
        fd: OwnedFd,
        stat: &Statx,
        quotas: Vec<QuotaPromise>,
    ) -> Arc<OpenNode> {
        let new = OpenNode::new(file.node(), file.slot, fd, true);
        let _ = new.birth.set(birth_from(stat));
        *new.promise.lock() = self.backing(file.slot).ok().map(|backing| (backing.space.promise(), quotas));
        self.open.enter(new)
    }

    /// Room for the handle of a file that is about to be created.
    pub(super) fn room_to_open(&self, caller: &Caller) -> Result<Share> {
        self.open.room(caller)
    }

    /// Opens the file that was just created and entered.
    pub(super) fn finish_open_created(&self, open: Arc<OpenNode>, flags: i32, room: Share) -> Result<Opened> {
        // A new file has nothing to cut off.
        self.finish_open(open, flags & !libc::O_TRUNC, room, true)
    }

    fn finish_open(&self, open: Arc<OpenNode>, flags: i32, room: Share, new: bool) -> Result<Opened> {
        let opened = self.prepare_open(&open, flags);
        match opened {
            Ok((data, io)) => {
                let (way, data) = match data {
                    Data::Daemon => {
                        let around = self.maps_around.load(Relaxed);
                        let (way, data) = self.open.choose_way(&open, flags, new, around);
                        (Some(way), data)
                    }
                    data => {
                        // The kernel's writes to the backing don't touch what pages there are.
                        self.open.trusted.remove(open.node);
                        (None, data)
                    }
                };
                let handle = Handle::new(open, flags, io, way, room);
                self.keep_nameless(&handle.node);
                let flush = self.says_closed(handle.node.slot, handle.access);
                Ok(Opened { fh: self.open.add_handle(handle, flags)?, data, flush })
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
            _ => Some(Arc::new(self.open_io(open, flags)?)),
        };
        Ok((data, io))
    }

    /// Passthrough if the kernel takes the file, by its one id; decided at the first open.
    pub(super) fn data_of(&self, open: &OpenNode) -> Data {
        let mut mode = open.mode.lock();
        if let DataMode::Undecided = *mode {
            let backing = self.backing(open.slot).ok();
            *mode = match (self.registry.get(), backing.as_ref().map(|b| b.passthrough())) {
                (Some(registry), Some(Passthrough::On)) => {
                    match registry.register_node(open.fd.as_fd(), open.node.0) {
                        Ok(registered) => DataMode::Passthrough(registered),
                        Err(e) => {
                            tracing::warn!(
                                "backing {}: the kernel doesn't pass a file through ({e}); its data goes through the daemon",
                                open.slot.0
                            );
                            DataMode::Daemon
                        }
                    }
                }
                _ => DataMode::Daemon,
            };
        }
        match &*mode {
            DataMode::Passthrough(registered) => Data::Passthrough(registered.id()),
            _ if self.is_shared(open.slot) => Data::Uncached,
            _ => Data::Daemon,
        }
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
            if self.open.is_open(open.node) {
                self.keep_nameless(open);
            }
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
        // First: a daemon after this one finds the handle, or the file published.
        self.publish_released(fh);
        let Some(handle) = self.open.remove_handle(fh) else {
            self.release_lost(fh);
            return;
        };
        let node = handle.node.clone();
        let written = handle.access != libc::O_RDONLY;
        if let Some(way) = &handle.way {
            self.open.leave_pages(way);
        }
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
        // Nor one that somebody else may remove: it would take its room until we close it. Nor its creator's own
        // descriptor, if data was written through it: XFS keeps room ready behind the end until it's closed.
        if self.open.count(&node) == 1 {
            self.forget_at_last(&node);
        }
        let keep = !self.is_shared(node.slot) && !node.is_written_through() && self.has_name(node.node);
        let (id, again) = (node.node, node.clone());
        if node.kept.load(Relaxed) && self.open.count(&node) == 1 {
            self.keeper.release(Tag::File(id.0));
            node.kept.store(false, Relaxed);
        }
        self.open.give_back(node, keep);
        if again.forgotten.load(Relaxed) > 0 && self.open.count(&again) == 0 {
            self.forget_at_last(&again);
        }
        // It may have been removed since it was looked for: then either this or the removal finds it.
        if keep && !self.has_name(id) {
            self.open.forget_idle(id);
        }
    }

    /// Has the file of an open node kept for a daemon after this one, if it has no name to be found by.
    pub(super) fn keep_nameless(&self, open: &OpenNode) {
        if !self.has_name(open.node) {
            self.keep_open(open);
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

    /// The keeper gets the file. False if it has it.
    pub(super) fn begin_keeping(&self) -> bool {
        !self.kept.swap(true, Relaxed)
    }

    /// Whether its own descriptor is what handles write through.
    fn is_written_through(&self) -> bool {
        self.fd_is_writable && !self.is_passthrough()
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
            ways: Mutex::default(),
            mode: Mutex::new(DataMode::Undecided),
            kept: AtomicBool::new(false),
            forgotten: AtomicU64::new(0),
            birth: OnceLock::new(),
        }
    }

    /// What tells the file from another that gets its inode number later.
    pub(super) fn birth(&self) -> u64 {
        *self.birth.get_or_init(|| birth_of(&self.fd))
    }

    /// One that a daemon before had open, with what it registered with the kernel.
    pub(super) fn restored(
        node: NodeId,
        slot: Slot,
        fd: OwnedFd,
        registered: Option<Registered>,
        kept: bool,
    ) -> OpenNode {
        let mode = registered.map_or(DataMode::Daemon, DataMode::Passthrough);
        let new = OpenNode::new(node, slot, fd, false);
        OpenNode { mode: Mutex::new(mode), kept: AtomicBool::new(kept), ..new }
    }
}

impl Handle {
    /// Its number is given when it's entered.
    pub(super) fn new(
        node: Arc<OpenNode>,
        flags: i32,
        io: Option<Arc<IoFile>>,
        way: Option<Way>,
        share: Share,
    ) -> Handle {
        let appends = flags & libc::O_APPEND != 0 && io.is_some() && way.is_none();
        Handle { node, access: flags & libc::O_ACCMODE, io, way, appends, fh: 0, share }
    }
}

/// What tells a file from another that gets its inode number later.
pub(super) fn birth_of(fd: &OwnedFd) -> u64 {
    stat_fd(fd).map_or(0, |stat| birth_from(&stat))
}

/// The same by what is known of it.
pub(super) fn birth_from(stat: &Statx) -> u64 {
    (stat.stx_btime.tv_sec as u64) << 30 ^ u64::from(stat.stx_btime.tv_nsec)
}

/// Cuts a file off, or makes it longer, whatever way it's open.
pub(super) fn truncate(fd: &OwnedFd, size: u64) -> std::result::Result<(), Errno> {
    let size = i64::try_from(size).map_err(|_| Errno::FBIG)?;
    nix::unistd::truncate(proc_path(fd).as_str(), size).map_err(|e| Errno::from_raw_os_error(e as i32))
}
