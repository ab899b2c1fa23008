//! Removing names.
//!
//! What always holds: with a name go all its copies, the shadows first: none of them comes back as the file
//! at a later mount.

use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::attr::stat_fd;
use super::fault::crash_point;
use super::{Attr, DirFd, Error, Fs, NodeId, Result, check_name};
use crate::backing::is_reserved;
use crate::index::{DirId, EntryId, FileRef, Node, Slot, SlotSet, What};
use crate::supervise::{Intent, is_done};

/// Removes a directory that is empty but for kvfs's own files, which no client sees.
fn remove_dir(parent: &DirFd, name: &[u8]) -> std::result::Result<(), Errno> {
    let remove = || rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
    match remove() {
        // XFS says EEXIST.
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        result => return result,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut ours = Vec::new();
    let mut buffer = Vec::with_capacity(8192);
    let mut dents = RawDir::new(&dir, buffer.spare_capacity_mut());
    while let Some(entry) = dents.next() {
        match entry?.file_name().to_bytes() {
            b"." | b".." => {}
            name if is_reserved(name) => ours.push(name.to_vec()),
            _ => return Err(Errno::NOTEMPTY),
        }
    }
    for name in ours {
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
    }
    remove()
}

impl Fs {
    /// Removes a file's name.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let dir = self.dir_of(parent)?;
        check_name(name)?;
        if is_done() {
            return Ok(());
        }
        self.refresh(dir, name)?;
        let _lock = self.locks.lock(dir, name);
        let (found, shadows) = {
            let index = self.index.read();
            let Some(found) = index.find(dir, name) else {
                return if self.ghosts.take(dir, name) { Ok(()) } else { Err(Errno::NOENT.into()) };
            };
            (found, index.shadows(found.0))
        };
        let (entry, What::File(file)) = found else { return Err(Errno::ISDIR.into()) };
        self.unlink_locked(dir, name, (entry, file, shadows))
    }

    /// Removes a file with all its names. One of them, for people.
    pub(super) fn remove_file(&self, node: NodeId) -> Result<String> {
        let Some(Node::File(slot, ino)) = node.node() else { return Err(Errno::ISDIR.into()) };
        let mut path = Vec::new();
        loop {
            let place = {
                let index = self.index.read();
                index.find_node(slot, ino).map(|entry| index.place(entry)).map(|(dir, n)| (dir, n.to_vec()))
            };
            let Some((dir, name)) = place else { return Ok(String::from_utf8_lossy(&path).into_owned()) };
            let _lock = self.locks.lock(dir, &name);
            let index = self.index.read();
            let Some((entry, What::File(file))) = index.find(dir, &name) else { continue };
            if file.node() != node {
                continue;
            }
            path = index.path_of(dir, &name);
            let shadows = index.shadows(entry);
            drop(index);
            match self.unlink_locked(dir, &name, (entry, file, shadows)) {
                Err(e) if e.errno() == Errno::NOENT => {}
                result => result?,
            }
        }
    }

    fn unlink_locked(
        &self,
        dir: DirId,
        name: &[u8],
        (entry, file, shadows): (EntryId, FileRef, SlotSet),
    ) -> Result<()> {
        self.all_changeable(shadows.with(file.slot))?;
        self.work.intend(|| Intent::Remove(self.index.read().path_of(dir, name)));
        crash_point("unlink before", name);
        self.remove_copies(dir, name, shadows.union(self.others_copies(dir, file.slot)))?;
        let fd = self.dir_fd(file.slot, dir)?;
        let held = self.before_removal(&fd, name, file);
        crash_point("unlink between", name);
        match rustix::fs::unlinkat(&fd, name, AtFlags::empty()) {
            Ok(()) => crash_point("unlink after", name),
            // Removed behind the mount's back: the index learns of it, the client gets what a disk says.
            Err(Errno::NOENT) => {
                self.index.write().remove(entry);
                self.open.forget_idle(file.node());
                return Err(Errno::NOENT.into());
            }
            Err(e) => return Err(Error::on(file.slot)(e)),
        }
        self.index.write().remove(entry);
        self.after_removal(file, held);
        Ok(())
    }

    /// Removes an empty directory from all backings.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let dir = self.dir_of(parent)?;
        check_name(name)?;
        if is_reserved(name) {
            return Err(Errno::NOENT.into());
        }
        if is_done() {
            return Ok(());
        }
        self.refresh(dir, name)?;
        self.refresh_below(dir, name);
        let _lock = self.locks.lock(dir, name);
        let (entry, id, slots) = {
            let index = self.index.read();
            let (entry, What::Dir(id)) = index.find(dir, name).ok_or(Errno::NOENT)? else {
                return Err(Errno::NOTDIR.into());
            };
            if !index.is_empty(id) {
                return Err(Errno::NOTEMPTY.into());
            }
            (entry, id, index.slots(id).unwrap_or_default())
        };
        self.all_changeable(slots)?;
        let last = self.stat_dir(id).ok();
        self.work.intend(|| Intent::Remove(self.index.read().path_of(dir, name)));
        crash_point("rmdir before", name);
        let removed = self.remove_dir_on(dir, name, id, slots)?;
        crash_point("rmdir after", name);
        self.index.write().remove(entry);
        self.dir_is_gone(id, slots, last);
        // Somebody else was faster, on every backing.
        if removed { Ok(()) } else { Err(Errno::NOENT.into()) }
    }

    /// Removes the directory on these backings; what succeeded before an error is no longer part of the
    /// merged directory. Whether any backing had it.
    pub(super) fn remove_dir_on(
        &self,
        parent: DirId,
        name: &[u8],
        id: DirId,
        slots: SlotSet,
    ) -> Result<bool> {
        let mut any = false;
        for slot in slots.iter() {
            let removed =
                self.dir_fd(slot, parent).and_then(|fd| remove_dir(&fd, name).map_err(Error::on(slot)));
            match removed {
                Ok(()) => any = true,
                Err(e) if e.errno() == Errno::NOENT => {}
                Err(e) => return Err(e),
            }
            let mut index = self.index.write();
            let left = index.slots(id).unwrap_or_default().without(slot);
            if !left.is_empty() {
                index.set_slots(id, left);
            }
            drop(index);
            self.dirs.forget(id, SlotSet::one(slot));
        }
        Ok(any)
    }

    /// Whoever is still in the directory, or has it open, can ask for its attributes.
    pub(super) fn dir_is_gone(&self, id: DirId, slots: SlotSet, last: Option<Attr>) {
        self.dirs.forget(id, slots);
        self.forget_rules(id);
        if let Some(last) = last {
            self.removed_dirs.lock().put(id, last.unlinked());
        }
    }

    /// Removes the copies of a name on these backings.
    pub(super) fn remove_copies(&self, dir: DirId, name: &[u8], slots: SlotSet) -> Result<()> {
        for slot in slots.iter() {
            self.remove_copy(dir, name, slot)?;
        }
        Ok(())
    }

    /// Removes one copy. One that isn't there is removed.
    pub(super) fn remove_copy(&self, dir: DirId, name: &[u8], slot: Slot) -> Result<()> {
        let removed = self
            .dir_fd(slot, dir)
            .and_then(|fd| rustix::fs::unlinkat(&fd, name, AtFlags::empty()).map_err(Error::on(slot)));
        match removed {
            // A directory there is no copy, but somebody else's.
            Err(e) if !matches!(e.errno(), Errno::NOENT | Errno::ISDIR) => Err(e),
            _ => Ok(()),
        }
    }

    /// The attributes of a directory on one backing.
    pub(super) fn stat_dir_on(&self, slot: Slot, dir: DirId) -> Result<Attr> {
        let fd = self.dir_fd(slot, dir)?;
        Ok(Attr::new(NodeId::dir(dir), &stat_fd(&fd).map_err(Error::on(slot))?))
    }
}
