//! Hiding files until they're closed: what operations have to do for it (`publish` has the rules).
//!
//! What always holds: backings that others change too take no part, for nobody tells them. A new file has the
//! attribute [`UNSYNCED`] before its creator hears of it; it says so no more once the file is on the device
//! as a whole and a descriptor that it was fsynced by was closed. So after a power loss a file that was
//! acknowledged can be told from one that wasn't.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rustix::fs::{Statx, XattrFlags};
use rustix::io::Errno;

use super::attr::stat_fd;
use super::open::{Handle, OpenNode, birth_from};
use super::open_table::CLOSED;
use super::publish::{Last, PATIENCE, PublishStatus, Writer, is_killed};
use super::readdir::{DirEntry, DirEntryPlus};
use super::{Caller, DirFd, Entry, Error, Fs, NodeId, OpenDir, Opened, Result, proc_path};
use crate::backing::Backing;
use crate::backing::unclosed::{Content, Unclosed};
use crate::index::{Node, PackedIno, Slot, What};

/// Which boot and which file a file was made as, while it isn't known to be on the device; then [`SYNCED`].
pub(super) const UNSYNCED: &str = "user.kvfs.unsynced";
/// Its value from then on.
pub(super) const SYNCED: &[u8] = b"no";

/// What the attribute says of a file that may not be on the device.
pub(super) fn unsynced(boot: &str, birth: u64) -> String {
    format!("{boot} {birth}")
}

/// A file that is being made: written down, and crossed out again if it isn't made.
pub(super) struct Making {
    backing: Arc<Backing>,
    record: Option<u32>,
}

impl Making {
    fn list(&self) -> Option<&Unclosed> {
        self.backing.unclosed()
    }

    /// It was made. Its record.
    pub(super) fn made(mut self, fd: &OwnedFd, stat: &Statx) -> std::result::Result<u32, Errno> {
        let (Some(list), Some(record)) = (self.list(), self.record) else { return Err(Errno::IO) };
        let birth = birth_from(stat);
        // A backing without such attributes was reported at the start.
        let value = unsynced(list.boot(), birth);
        let _ = rustix::fs::fsetxattr(fd, UNSYNCED, value.as_bytes(), XattrFlags::empty());
        list.made(record, stat.stx_ino, birth).map_err(errno)?;
        self.record = None;
        Ok(record)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let record = self.record.take();
        if let (Some(list), Some(record)) = (self.list(), record) {
            let _ = list.forget(record);
        }
    }
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

fn syncs(flags: i32) -> bool {
    // O_SYNC has the bit of O_DSYNC.
    flags & libc::O_DSYNC != 0
}

impl Fs {
    /// The process that a thread belongs to.
    fn writer(&self, tid: u32) -> Writer {
        self.policies.processes().of(tid).map_or((0, 0), |process| (process.pid, process.start))
    }

    /// Whether files are hidden until they're closed.
    pub fn hides_until_closed(&self) -> bool {
        self.publish.is_on()
    }

    /// Whether files on a backing are hidden until they're closed.
    pub(super) fn hides_on(&self, slot: Slot) -> bool {
        self.publish.is_on() && self.backings.get(slot).is_some_and(|b| b.unclosed().is_some())
    }

    /// Whether a file can't be seen by a thread.
    pub(super) fn is_hidden_from(&self, node: NodeId, tid: u32) -> bool {
        self.publish.hides(node, || self.writer(tid))
    }

    /// What a lookup has found, as far as the thread may see it.
    pub(super) fn shown_to(&self, tid: u32, found: Entry) -> Result<Entry> {
        if !self.is_hidden_from(found.node, tid) {
            return Ok(found);
        }
        // The kernel isn't told of it after all.
        self.forget(found.node, 1);
        Err(Errno::NOENT.into())
    }

    /// Files that may just have been closed.
    pub fn closing(&self) -> Vec<NodeId> {
        self.publish.closing()
    }

    /// The file of this name, if it may just have been closed.
    pub fn closing_name(&self, parent: NodeId, name: &[u8]) -> Vec<NodeId> {
        let (true, Some(Node::Dir(dir))) = (self.publish.hides_any(), parent.node()) else {
            return Vec::new();
        };
        match self.index.read().find(dir, name) {
            Some((_, What::File(file))) if self.publish.is_closing(file.node()) => vec![file.node()],
            _ => Vec::new(),
        }
    }

    /// Waits a moment until these files are published, or it's clear that they aren't closed.
    pub fn wait_until_closed(&self, closing: &[NodeId]) {
        let deadline = Instant::now() + PATIENCE;
        closing.iter().for_each(|node| self.publish.wait(*node, deadline, || self.is_out(*node)));
    }

    /// Whether the name is there, and hidden from somebody: nobody may remember anything of it.
    pub(super) fn is_hidden_name(&self, dir: crate::index::DirId, name: &[u8]) -> bool {
        self.publish.hides_any()
            && matches!(self.index.read().find(dir, name),
                Some((_, What::File(file))) if self.publish.is_hidden(file.node()))
    }

    /// Lists a directory for a thread, by a handle with this code. Whether the kernel may take what it was told for
    /// the whole listing, should there be nothing more.
    pub fn readdir_for(
        &self,
        tid: u32,
        (node, handle): (NodeId, u64),
        offset: u64,
        add: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<bool> {
        let (who, mut hides) = (self.list_as(tid), false);
        let shown = |node| !self.is_hidden_in(node, who, &mut hides);
        self.readdir(node, offset, OpenDir::may_keep(handle), shown, add)?;
        Ok(self.may_be_whole(node, handle, hides))
    }

    /// The same with attributes.
    pub fn readdirplus_for(
        &self,
        tid: u32,
        (node, handle): (NodeId, u64),
        offset: u64,
        mut add: impl FnMut(&DirEntryPlus) -> bool,
    ) -> Result<bool> {
        let (who, mut hides) = (self.list_as(tid), false);
        let shown = |node| !self.is_hidden_in(node, who, &mut hides);
        self.readdirplus(node, offset, OpenDir::may_keep(handle), shown, |entry| {
            // Its name may stand for another file by now.
            let hidden = self.is_hidden_in(entry.attr.node, who, &mut false);
            if hidden {
                self.untold(entry);
            }
            !hidden && add(entry)
        })?;
        Ok(self.may_be_whole(node, handle, hides))
    }

    /// Who lists: found out before the index is locked.
    fn list_as(&self, tid: u32) -> Option<Writer> {
        self.publish.is_on().then(|| self.writer(tid))
    }

    /// Whether the file is hidden from who lists; `hides`: from anybody.
    fn is_hidden_in(&self, node: NodeId, who: Option<Writer>, hides: &mut bool) -> bool {
        let hidden = self.publish.is_hidden(node);
        *hides |= hidden;
        hidden && who.is_some_and(|who| self.publish.hides(node, || who))
    }

    /// A file is about to be made in this directory by somebody who writes it. `None` where it's not hidden.
    pub(super) fn making(
        &self,
        slot: Slot,
        dir: &DirFd,
        name: &[u8],
        writer: Option<Writer>,
    ) -> std::result::Result<Option<Making>, Errno> {
        let Some(writer) = writer else { return Ok(None) };
        let Some(backing) = self.backings.get(slot) else { return Ok(None) };
        let Some(list) = backing.unclosed() else { return Ok(None) };
        let parent = stat_fd(dir)?.stx_ino;
        let record = Some(list.make(parent, name, writer).map_err(errno)?);
        Ok(Some(Making { backing, record }))
    }

    /// Who would be the writer of a file that's made with these flags; `None` if it isn't hidden.
    pub(super) fn writer_of(&self, caller: &Caller, flags: i32) -> Option<Writer> {
        (self.publish.is_on() && writes(flags)).then(|| self.writer(caller.tid))
    }

    /// Opens a file for a thread. ESTALE where it's hidden from it: the kernel then looks the name up again. Who
    /// wants to write it becomes one of its writers.
    pub fn open_for(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<Opened> {
        if !writes(flags) && self.is_hidden_from(node, caller.tid) {
            return Err(Errno::STALE.into());
        }
        let opened = self.open(caller, node, flags)?;
        self.opened_by(caller.tid, node, flags);
        Ok(opened)
    }

    /// A file was opened by a thread.
    pub(super) fn opened_by(&self, tid: u32, node: NodeId, flags: i32) {
        let Some(Node::File(slot, ino)) = node.node() else { return };
        if !writes(flags) || !self.hides_on(slot) {
            return;
        }
        let writer = self.writer(tid);
        if self.publish.opened(node, Some(writer), syncs(flags)) {
            let record = self.note(slot, ino, node, writer);
            if record.is_some() && self.publish.with(node, |hidden| hidden.records.extend(record)).is_none() {
                self.forget_records(slot, record);
            }
        }
    }

    /// Writes down that a file is open.
    fn note(&self, slot: Slot, ino: PackedIno, node: NodeId, writer: Writer) -> Option<u32> {
        let (backing, open) = (self.backings.get(slot)?, self.open.find(node)?);
        let ino = self.index.read().ino(ino);
        backing.unclosed()?.opened(ino, open.birth(), writer).ok()
    }

    fn forget_records(&self, slot: Slot, records: impl IntoIterator<Item = u32>) {
        let Some(backing) = self.backings.get(slot) else { return };
        let Some(list) = backing.unclosed() else { return };
        if backing.health.is_out() {
            return list.forget_later(records);
        }
        for record in records {
            if let Err(e) = list.forget(record) {
                // A drive that fails is reported as such.
                tracing::info!(
                    "backing {}: a closed file can't be crossed out yet: {e}",
                    backing.path.display()
                );
                self.noticed(slot, errno(e));
                list.forget_later([record]);
            }
        }
    }

    /// The file that was just made is open, or can't be.
    pub(super) fn created_with(&self, node: NodeId, flags: i32, opened: &Result<Opened>) {
        match opened {
            Ok(_) if syncs(flags) => drop(self.publish.with(node, |hidden| hidden.synced = true)),
            Ok(_) => {}
            Err(_) => self.writer_is_gone(node),
        }
    }

    /// A descriptor of a handle is closed, perhaps the last one; or its process ends.
    pub fn flush(&self, fh: u64, tid: u32) -> Result<()> {
        let Ok(handle) = self.open.handle(fh) else { return Ok(()) };
        let open = &handle.node;
        if handle.access == libc::O_RDONLY || !self.publish.is_hidden(open.node) {
            return Ok(());
        }
        if is_killed(tid) {
            let records = self.publish.died(open.node);
            self.reach(open.slot)?;
            let backing = self.backing(open.slot)?;
            for record in records {
                let _ = backing.unclosed().map(|list| list.set_dead(record));
            }
            return Ok(());
        }
        let due = self.publish.with(open.node, |hidden| hidden.synced && !hidden.acknowledged);
        if due == Some(true) {
            self.reach(open.slot)?;
            self.acknowledge(open)?;
            self.publish.with(open.node, |hidden| hidden.acknowledged = true);
        }
        let records = self.publish.may_be_closed(open.node);
        // One that follows is told of the RELEASE.
        match self.keeper.is_there() {
            true => self.open.note_closed(fh),
            false => self.note_closing(open, &records),
        }
        Ok(())
    }

    /// Writes down that the only descriptor of a file may be closed: its RELEASE comes after close(2) has returned,
    /// and a daemon that is killed in between, with none that follows, mustn't lose what was closed. That waits for
    /// the drive, and so does execve(2), which closes descriptors, too.
    fn note_closing(&self, open: &OpenNode, records: &[u32]) {
        let Some(backing) = self.backings.get(open.slot).filter(|b| !b.health.is_out()) else { return };
        if let (Some(list), Ok(stat)) = (backing.unclosed(), stat_fd(&open.fd)) {
            // Where it can't be, the file counts as torn then.
            records.iter().for_each(|record| drop(list.closing(*record, Content::from(&stat))));
        }
    }

    /// Has the whole file on the device, and says so in it.
    fn acknowledge(&self, open: &OpenNode) -> Result<()> {
        let on = Error::on(open.slot);
        match rustix::fs::setxattr(proc_path(&open.fd), UNSYNCED, SYNCED, XattrFlags::empty()) {
            // Without such attributes nothing is dropped after a power loss.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(on(e)),
        }
        rustix::fs::fsync(open.writable()?).map_err(on)
    }

    /// A file is fsynced: whether more is on the device by this than was asked for. A file that is closed already
    /// is acknowledged by it.
    pub(super) fn acknowledged_by_sync(&self, open: &OpenNode) -> Result<bool> {
        if !self.hides_on(open.slot) || self.publish.is_hidden(open.node) {
            return Ok(false);
        }
        match super::xattr::get_path(&proc_path(&open.fd), UNSYNCED.as_bytes()) {
            Ok(value) if value == SYNCED => Ok(false),
            _ => self.acknowledge(open).map(|()| true),
        }
    }

    /// Whether the kernel is to say when descriptors of a handle are closed.
    pub(super) fn says_closed(&self, slot: Slot, access: i32) -> bool {
        access != libc::O_RDONLY && self.hides_on(slot)
    }

    /// A handle that a daemon before had goes on, by its record. By whom it was opened isn't known any more.
    pub(super) fn restored_writer(&self, handle: &Handle, recorded: u32) {
        if self.says_closed(handle.node.slot, handle.access) {
            self.publish.opened(handle.node.node, None, syncs(recorded as i32));
            if recorded & CLOSED != 0 {
                self.publish.may_have_been_closed(handle.node.node);
            }
        }
    }

    /// A handle is about to be closed for good.
    pub(super) fn publish_released(&self, fh: u64) {
        // Whether its drive is there or not.
        if let Some(handle) = self.open.handle(fh).ok().filter(|_| self.publish.is_on())
            && handle.access != libc::O_RDONLY
        {
            self.file_point("release begins", handle.node.node);
            self.writer_is_gone(handle.node.node);
        }
    }

    /// Inode numbers of the files on a backing that are hidden.
    pub(super) fn hidden_on(&self, slot: Slot) -> HashSet<u64> {
        let index = self.index.read();
        let of = |node: NodeId| match node.node() {
            Some(Node::File(at, ino)) if at == slot => Some(index.ino(ino)),
            _ => None,
        };
        self.publish.all_hidden().into_iter().filter_map(of).collect()
    }

    /// A handle that may write is about to be closed for good.
    pub(super) fn writer_is_gone(&self, node: NodeId) {
        let Some(Node::File(slot, _)) = node.node() else { return };
        match self.publish.released(node) {
            Last::Nothing => {}
            Last::Whole(records) => {
                self.file_point("release between", node);
                self.forget_records(slot, records);
                self.publish.show(node);
                self.changed_for_others(node);
            }
            Last::Torn => self.drop_torn(node, slot),
        }
    }

    /// Who wrote the file was killed: it goes, with all its names.
    fn drop_torn(&self, node: NodeId, slot: Slot) {
        match self.remove_file(node) {
            Ok(path) => {
                tracing::info!("{path}: removed, for who wrote it was killed before closing it");
                self.publish.dropped.fetch_add(1, Relaxed);
                let records = self.publish.with(node, |hidden| std::mem::take(&mut hidden.records));
                self.forget_records(slot, records.unwrap_or_default());
                self.publish.show(node);
            }
            // It stays hidden, and written down.
            Err(e) => tracing::warn!("a file whose writer was killed can't be removed: {e}"),
        }
    }

    /// A file is about to be cut off: if somebody writes it, it's hidden again.
    pub(super) fn hide_again(&self, slot: Slot, ino: PackedIno, node: NodeId) -> Result<()> {
        if !self.hides_on(slot) {
            return Ok(());
        }
        let Some(writers) = self.publish.writers(node) else { return Ok(()) };
        let (backing, open) = (self.backing(slot)?, self.open.find(node).ok_or(Errno::STALE)?);
        let Some(list) = backing.unclosed() else { return Ok(()) };
        let value = unsynced(list.boot(), open.birth());
        let _ = rustix::fs::setxattr(proc_path(&open.fd), UNSYNCED, value.as_bytes(), XattrFlags::empty());
        if self.publish.with(node, |h| (h.synced, h.acknowledged) = (false, false)).is_some() {
            return Ok(());
        }
        // On the device before the file is cut off: after a power loss its directory tells nothing of it.
        let record = self.note(slot, ino, node, writers.first().copied().unwrap_or_default());
        list.sync().map_err(|e| Error::on(slot)(errno(e)))?;
        self.publish.hide(node, 0, record, None);
        self.changed_anywhere();
        if let Ok((dir, name, _)) = self.place_of(slot, ino) {
            // The kernel may still know its name for a moment; opening it to read fails from now on.
            self.tell_changed(dir, &name);
        }
        Ok(())
    }

    /// What `status` says of it.
    pub fn publish_status(&self) -> PublishStatus {
        self.publish.status()
    }
}
