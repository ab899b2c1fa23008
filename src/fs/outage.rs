//! Drives that fail, and that come back.
//!
//! What always holds: what the index has on a drive that's out stays there, and is answered with EIO, at once and
//! without asking it. Nothing of a drive that failed or was unmounted stays open but what clients have open, so it
//! can be repaired. Before a drive that comes back is asked for anything, the index says what is on it now.

use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;
use rustix::io::Errno;

use super::locks::Locked;
use super::members::PATIENCE;
use super::open::Handle;
use super::torn::{Lives, Torn};
use super::{Changed, Error, Fs, NodeId, Result, source_at};
use crate::backing::{Backing, Condition, Health, State, is_fault};
use crate::index::{DirId, DirName, EntryId, FileRef, Joined, Node, Slot, Source, What, read_subtree};
use crate::placement::Reason;
use crate::supervise::Tag;

/// What has changed on a drive while it was out.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    /// Files on it now.
    pub(crate) files: u64,
    /// Names that appeared.
    pub(crate) appeared: u64,
    /// Names that are gone.
    pub(crate) gone: u64,
    /// Names that stand for another file.
    pub(crate) replaced: u64,
    /// What could not be read, and is left as it was known.
    pub(crate) unreadable: u64,
}

impl Fs {
    /// EIO for a backing whose drive is out.
    pub(super) fn reach(&self, slot: Slot) -> Result<()> {
        if self.is_slot_out(slot) {
            return Err(Error::on(slot)(Errno::IO));
        }
        super::at::at(slot);
        Ok(())
    }

    pub(super) fn is_slot_out(&self, slot: Slot) -> bool {
        self.backings.get(slot).is_some_and(|backing| backing.health.is_out())
    }

    /// Whether a node is a file of a drive that's out.
    pub fn is_out(&self, node: NodeId) -> bool {
        matches!(node.node(), Some(Node::File(slot, _)) if self.is_slot_out(slot))
    }

    /// An open file, unless its drive is out.
    pub(super) fn handle_of(&self, fh: u64) -> Result<Arc<Handle>> {
        let handle = self.open.handle(fh)?;
        self.reach(handle.node.slot)?;
        Ok(handle)
    }

    /// A request met this error of a backing: if it tells of a fault, the drive is looked at.
    pub fn noticed(&self, slot: Slot, errno: Errno) {
        if !is_fault(errno) {
            return;
        }
        self.metrics.fault(slot);
        let Some(backing) = self.backings.get(slot).filter(|b| !b.health.is_out()) else { return };
        // What a read-only file system refuses is known.
        if errno != Errno::ROFS || backing.health.takes_changes() {
            backing.health.has_erred();
            self.alarm.ring();
        }
    }

    /// The same of a file's backing.
    pub fn noticed_at(&self, node: NodeId, errno: Errno) {
        if let Some(Node::File(slot, _)) = node.node() {
            self.noticed(slot, errno);
        }
    }

    /// A request about a node takes long: its drive is looked at, or all of them if it's about a name. If it takes
    /// `very` long, thoroughly.
    pub fn takes_long(&self, node: NodeId, very: bool) {
        let is_it = |b: &&Arc<Backing>| match node.node() {
            Some(Node::File(slot, _)) => b.slot == slot,
            _ => true,
        };
        for backing in self.backings().iter().filter(is_it).filter(|b| !b.health.is_out()) {
            if very { backing.health.suspect_gravely() } else { backing.health.suspect() }
        }
        self.alarm.ring();
    }

    /// Whether a request about a node, so old, may be waiting for a drive that hangs, or did when it went out; `at` is
    /// the backing that its thread is at.
    pub fn hangs(&self, node: NodeId, at: Option<Slot>, age: Duration) -> bool {
        let hangs = |b: &Arc<Backing>| {
            let Condition { health, since, .. } = b.health.condition();
            health == Health::Hung || health.is_out() && since.elapsed().is_ok_and(|out| out < age)
        };
        match (node.node(), at) {
            (Some(Node::File(..)), _) => self.is_out(node),
            (_, Some(slot)) => self.backings().get(slot).is_some_and(hangs),
            // It waits for somebody else, who may wait for any.
            _ => self.backings().iter().any(hangs),
        }
    }

    /// Locks a name that's about to be made; EIO where a request on a drive that hangs seems to have it.
    pub(super) fn lock_to_make(&self, dir: DirId, name: &[u8]) -> Result<Locked<'_>> {
        if self.backings().iter().any(|b| b.health.get() == Health::Hung) {
            return self.locks.lock_for(dir, name, PATIENCE).ok_or_else(|| Errno::IO.into());
        }
        Ok(self.locks.lock(dir, name))
    }

    /// Has somebody stand in for a backing whose drive is out, and closes what is open of the drive: that may
    /// take as long as the drive likes.
    pub(crate) fn let_go(&self, slot: Slot) -> std::io::Result<()> {
        let Some(backing) = self.backings.get(slot) else { return Ok(()) };
        let before = self.backings.replace(backing.stand_in()?);
        drop(backing);
        self.dirs.leave(slot);
        self.open.leave(slot);
        drop(before);
        // Nor who keeps its lock for a daemon after this one.
        self.keeper.release(Tag::Lock(slot.0));
        self.keeper.sync();
        Ok(())
    }

    /// A backing is there again, opened anew: the index learns what is on it, and it's used from then on.
    pub(crate) fn come_back(&self, backing: Backing) -> Result<Returned> {
        let (slot, state) = (backing.slot, backing.state());
        let root = backing.root().try_clone_to_owned()?;
        let torn = Torn::on(&backing, Lives::These(self.hidden_on(slot)));
        let sieve = torn.as_ref().and_then(Torn::sieve);
        let source =
            Source { sieve, ..source_at(slot, std::os::fd::AsFd::as_fd(&root), Reason::FoundAtScan) };
        // Nobody is sent there, so nothing of it changes through the mount meanwhile.
        self.index.write().admit(slot);
        let (files, dirs, shadowed) = self.known_on(slot);
        let joined = self.enter_names(&source, read_subtree(&source))?;
        let mut returned = Returned {
            appeared: joined.appeared.len() as u64,
            unreadable: joined.report.unreadable(),
            ..Returned::default()
        };
        returned.replaced = self.retarget_here(slot, &joined);
        if returned.unreadable == 0 {
            let seen: RoaringBitmap = joined.taken.iter().map(|(entry, _)| entry.number()).collect();
            returned.gone = self.drop_unseen(slot, &(files - &seen));
            self.drop_unseen_dirs(slot, &dirs, &joined);
            let mut index = self.index.write();
            for entry in shadowed.into_iter().filter(|entry| !seen.contains(entry.number())) {
                let left = index.shadows(entry).without(slot);
                index.set_shadows(entry, left);
            }
        }
        if let Some(torn) = torn
            && let Err(e) = torn.end(&backing, &self.index, &self.publish)
        {
            tracing::warn!("backing {}: no list of unclosed files: {e}", backing.path.display());
        }
        backing.set_state(State::NoCreate);
        self.dirs.enter(&backing)?;
        let (backing, _) = self.backings.replace(backing).ok_or(Errno::STALE)?;
        self.record_return(&backing);
        for (entry, copy) in joined.taken.iter().filter(|(entry, _)| !self.is_here(*entry, slot)) {
            self.prefer_newest(*entry, *copy);
        }
        self.checkpoints.of(&backing);
        backing.set_state(state);
        self.tell_appeared(&joined.appeared);
        self.tell_returned(slot);
        returned.files = self.index.read().files_on(slot);
        Ok(returned)
    }

    /// What the index has on a backing: files, directories, and files elsewhere with a shadow there.
    fn known_on(&self, slot: Slot) -> (RoaringBitmap, Vec<DirName>, Vec<EntryId>) {
        let (mut files, mut from) = (RoaringBitmap::new(), Some(0));
        while let Some(at) = from {
            let (entries, next) = self.index.read().files_from(slot, at);
            files.extend(entries.iter().map(|entry| entry.number()));
            from = next;
        }
        let index = self.index.read();
        (files, index.dirs_on(slot), index.shadowed_on(slot))
    }

    fn is_here(&self, entry: EntryId, slot: Slot) -> bool {
        matches!(self.index.read().live(entry), Some(What::File(file)) if file.slot == slot)
    }

    /// Names that stand for another file of the same backing now: how many.
    fn retarget_here(&self, slot: Slot, joined: &Joined) -> u64 {
        let mut replaced = 0;
        for (entry, copy) in &joined.taken {
            let is_other =
                |file: FileRef| file.slot == slot && (file.ino, file.kind) != (copy.ino, copy.kind);
            let place = {
                let index = self.index.read();
                match index.live(*entry) {
                    Some(What::File(file)) if is_other(file) => {
                        let (dir, name) = index.place(*entry);
                        (dir, name.to_vec())
                    }
                    _ => continue,
                }
            };
            let Some(_lock) = self.locks.lock_for(place.0, &place.1, PATIENCE) else { continue };
            let mut index = self.index.write();
            let Some(What::File(file)) =
                index.live(*entry).filter(|_| index.place(*entry) == (place.0, &place.1))
            else {
                continue;
            };
            if !is_other(file) {
                continue;
            }
            let shadows = index.shadows(*entry);
            index.retarget(*entry, *copy);
            index.set_shadows(*entry, shadows);
            drop(index);
            self.open.forget_idle(file.node());
            self.decisions.lock().pop(&file.node());
            self.tell_changed(place.0, &place.1);
            replaced += 1;
        }
        replaced
    }

    /// Takes names out of the index that aren't on the drive any more: how many.
    fn drop_unseen(&self, slot: Slot, unseen: &RoaringBitmap) -> u64 {
        let mut gone = 0;
        for entry in unseen.iter().map(EntryId::numbered) {
            let place = {
                let index = self.index.read();
                match index.live(entry) {
                    Some(What::File(file)) if file.slot == slot => {
                        let (dir, name) = index.place(entry);
                        (dir, name.to_vec(), file)
                    }
                    _ => continue,
                }
            };
            let (dir, name, file) = place;
            let Some(_lock) = self.locks.lock_for(dir, &name, PATIENCE) else { continue };
            if let Some(copy) = self.newest_of(dir, &name, self.index.read().shadows(entry)) {
                self.swap_entry(entry, file, copy);
                let mut index = self.index.write();
                let left = index.shadows(entry).without(slot);
                index.set_shadows(entry, left);
            } else if self.index.read().live(entry) == Some(What::File(file)) {
                self.index.write().remove(entry);
                gone += 1;
            }
            self.open.forget_idle(file.node());
            self.tell_changed(dir, &name);
        }
        gone
    }

    /// Directories that aren't on the drive any more; one that was on no other is gone.
    fn drop_unseen_dirs(&self, slot: Slot, dirs: &[DirName], joined: &Joined) {
        let seen: std::collections::HashSet<_> = joined.dirs.iter().collect();
        for dir in dirs.iter().filter(|dir| !seen.contains(&dir.id)) {
            self.sweep_dir(slot, dir, &mut super::members::Parted::default());
        }
    }

    /// The kernel asks again for what it knows of the drive: it may be another file by now, or have other bytes.
    fn tell_returned(&self, slot: Slot) {
        let mut from = Some(0);
        while let Some(at) = from {
            let (known, next) = {
                let index = self.index.read();
                let (entries, next) = index.files_from(slot, at);
                let place = |entry: &EntryId| {
                    let Some(What::File(file)) = index.live(*entry) else { return None };
                    let (dir, name) = index.place(*entry);
                    index.is_remembered(*entry).then(|| (dir, name.to_vec(), file.node()))
                };
                (entries.iter().filter_map(place).collect::<Vec<_>>(), next)
            };
            from = next;
            for (dir, name, node) in known {
                if let Some(changed) = self.data_changed.get() {
                    changed(Changed { node, pages: Some((0, 0)), end: None });
                }
                self.tell_changed(dir, &name);
            }
        }
        let dirs = self.index.read().dirs_on(slot);
        dirs.iter().for_each(|dir| self.tell_listing(dir.id));
        self.tell_listing(DirId::ROOT);
    }
}
