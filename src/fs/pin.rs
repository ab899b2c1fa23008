//! An open file as the ioctl path holds it: for longer than the handle may live.
//!
//! What always holds: a pinned file is open in the table, whatever the kernel releases meanwhile; so there
//! is one record of the inode, and one gate between its transfers and its truncations.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;

use super::open::OpenNode;
use super::{Changed, Error, Fs, NodeId, Result, proc_path};
use crate::index::Slot;

pub(crate) use super::gate::Passage;

/// An open file, kept open.
pub(crate) struct Pinned {
    fs: Arc<Fs>,
    open: Option<Arc<OpenNode>>,
    access: i32,
}

impl Fs {
    /// Keeps the file of a handle open.
    pub(crate) fn pin(self: &Arc<Fs>, fh: u64) -> Result<Pinned> {
        let handle = self.handle_of(fh)?;
        let open = self.open.hold(&handle.node);
        Ok(Pinned { fs: self.clone(), open: Some(open), access: handle.access })
    }
}

impl Fs {
    /// The backing of an open file.
    pub(crate) fn slot_of(&self, fh: u64) -> Result<Slot> {
        Ok(self.open.handle(fh)?.node.slot)
    }

    /// The file's [`Pinned::serial`], if this handle is the only thing that keeps it open.
    pub(crate) fn last_open(&self, fh: u64) -> Option<u64> {
        let handle = self.open.handle(fh).ok()?;
        (self.open.count(&handle.node) == 1).then_some(handle.node.serial)
    }
}

impl Pinned {
    fn open(&self) -> &Arc<OpenNode> {
        // Only `drop` takes it.
        self.open.as_ref().unwrap_or_else(|| unreachable!())
    }

    /// The file.
    pub(crate) fn node(&self) -> NodeId {
        self.open().node
    }

    /// A number that no other file has had since the mount.
    pub(crate) fn serial(&self) -> u64 {
        self.open().serial
    }

    /// Its backing.
    pub(crate) fn slot(&self) -> Slot {
        self.open().slot
    }

    /// Whether the handle it was pinned by may be read.
    pub(crate) fn readable(&self) -> bool {
        matches!(self.access, libc::O_RDONLY | libc::O_RDWR)
    }

    /// Whether the handle it was pinned by may be written.
    pub(crate) fn writable(&self) -> bool {
        matches!(self.access, libc::O_WRONLY | libc::O_RDWR)
    }

    /// The alignment that [`Pinned::direct`] needs of offsets, lengths and memory.
    pub(crate) fn align(&self) -> u64 {
        // Where the kernel doesn't tell, or the backing was removed, 4096 fits every drive.
        let align = self.fs.backing(self.slot()).map_or(0, |backing| backing.dio_align);
        if align == 0 { 4096 } else { u64::from(align) }
    }

    /// A descriptor with `O_DIRECT`, to read and write where the file allows both. `None` where the backing
    /// refuses direct I/O.
    pub(crate) fn direct(&self) -> Result<Option<BorrowedFd<'_>>> {
        let open = self.open();
        if let Some(fd) = open.direct.get() {
            return Ok(fd.as_ref().map(AsFd::as_fd));
        }
        let path = proc_path(&open.fd);
        let flags = OFlags::DIRECT | OFlags::CLOEXEC;
        let again = |access| rustix::fs::open(&path, flags | access, Mode::empty());
        let fd: Option<OwnedFd> = match again(OFlags::RDWR).or_else(|_| again(OFlags::RDONLY)) {
            Ok(fd) => Some(fd),
            // Or it's the creator's alone, who has it by `buffered`.
            Err(Errno::INVAL | Errno::ACCESS) => None,
            Err(e) => return Err(Error::on(open.slot)(e)),
        };
        Ok(open.direct.get_or_init(|| fd).as_ref().map(AsFd::as_fd))
    }

    /// A descriptor through the page cache, to read and write where the file allows both.
    pub(crate) fn buffered(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.open().writable()?.as_fd())
    }

    /// Attributes of the backing's file.
    pub(crate) fn stat(&self) -> Result<Statx> {
        super::attr::stat_fd(&self.open().fd).map_err(Error::on(self.slot()))
    }

    /// The path of the backing's file as the kernel has it now.
    pub(crate) fn backing_path(&self) -> Result<Vec<u8>> {
        let path = rustix::fs::readlink(proc_path(&self.open().fd), Vec::new())?;
        Ok(path.into_bytes())
    }

    /// Tells the kernel that these bytes have changed without its doing.
    pub(crate) fn data_changed(&self, offset: u64, len: u64) {
        self.fs.open.doubt(self.node());
        if let Some(changed) = self.fs.data_changed.get() {
            // Of what the kernel passes through it keeps no pages, and asks for the size.
            let is_kept = !self.open().is_passthrough();
            let end = if is_kept { self.end(offset.saturating_add(len)) } else { None };
            changed(Changed { node: self.node(), pages: is_kept.then_some((offset, len)), end });
        }
        self.fs.count_size(self.open());
    }

    /// The last byte of the file and its offset, if a write that ended at `written` may have put it there.
    fn end(&self, written: u64) -> Option<(u64, u8)> {
        let size = self.stat().ok()?.stx_size;
        let at = size.checked_sub(1).filter(|_| size <= written)?;
        let mut byte = [0];
        let read = rustix::io::pread(self.buffered().ok()?, &mut byte, at).ok()?;
        (read == 1).then_some((at, byte[0]))
    }

    /// Leave for a transfer to run, if no truncation is under way.
    pub(crate) fn try_enter(&self) -> Option<Passage> {
        self.open().gate.try_enter()
    }

    /// Runs a transfer as soon as no truncation is under way.
    pub(crate) fn enter(&self, transfer: impl FnOnce(Passage) + Send + 'static) {
        self.open().gate.enter(transfer);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.fs.unpin(open);
        }
    }
}
