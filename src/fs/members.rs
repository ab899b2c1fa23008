//! Backings that join the merged tree, and that leave it, while it's in use.
//!
//! What always holds: nobody is sent to a backing that hasn't joined as a whole, or that is about to leave; what
//! the index has on a backing can be reached as long as the backing is in the list. A backing leaves without
//! force only when nothing that a client can see goes with it. Names are taken out under their locks, like
//! every change of them; one whose lock a hung request keeps is left in the index, and reported.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::torn::{Lives, Torn};
use super::{Fs, Result, source_at};
use crate::backing::{Backing, State};
use crate::index::{
    AddError, DirId, DirName, EntryId, FileRef, Joined, Joining, Problem, Slot, SlotSet, Source, Subtree,
    What, read_subtree,
};
use crate::placement::Reason;

/// How long a name's lock is waited for, when a backing that may hang is taken out.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What a backing has brought.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    /// Files that are there now and weren't before.
    pub(crate) files: u64,
    /// Paths that other backings have too.
    pub(crate) duplicates: u64,
    /// Of these, newer copies that can't be the file yet, because the older one is open.
    pub(crate) in_use: u64,
    /// What is not shown.
    pub(crate) problems: Vec<Problem>,
    /// Unfinished copies.
    pub(crate) leftovers: Vec<(Slot, Vec<u8>)>,
}

/// What would go with a backing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Files that no other backing has a copy of.
    pub(crate) files: u64,
    /// What files there take, if that's counted.
    pub(crate) bytes: Option<u64>,
    /// Files of which an older copy appears.
    pub(crate) shadows: u64,
    /// Directories that no other backing has.
    pub(crate) dirs: u64,
    /// Files there that are open.
    pub(crate) open: u64,
}

/// What has left with a backing. Once all have heard of it, it's to be written down (`Fs::record_left`).
#[derive(Debug, Default)]
pub(crate) struct Parted {
    /// Files that are gone.
    pub(crate) files: u64,
    /// Names that requests which don't come back hold on to.
    pub(crate) stuck: u64,
    /// The backing: whatever of it is open is closed with the last of these.
    pub(crate) backing: Option<Arc<Backing>>,
}

impl Fs {
    /// Reads a backing, whose slot is from [`Fs::slot_for`], and makes it part of the tree. From then on it
    /// takes what its state says.
    pub(crate) fn join(&self, backing: Backing) -> Result<Brought> {
        let (slot, state) = (backing.slot, backing.state());
        let source_root = backing.root().try_clone_to_owned()?;
        let torn = Torn::on(&backing, Lives::None);
        let sieve = torn.as_ref().and_then(Torn::sieve);
        let root = std::os::fd::AsFd::as_fd(&source_root);
        let source = Source { sieve, ..source_at(slot, root, Reason::FoundAtScan) };
        let subtree = read_subtree(&source);
        self.record_joining(&backing);
        super::fault::first_point("join recorded", &self.state);
        // Until all its files are known, it gets no new ones.
        backing.set_state(State::NoCreate);
        if let Err(e) = self.dirs.enter(&backing) {
            self.record_left(slot);
            return Err(e.into());
        }
        self.index.write().admit(slot);
        let backing = self.backings.enter(backing);
        super::fault::first_point("join entered", &self.state);
        let before = self.index.read().files_on(slot);
        let joined = match self.enter_names(&source, subtree) {
            Ok(joined) => joined,
            Err(e) => {
                let _ = self.part(slot, true);
                self.record_left(slot);
                return Err(e.into());
            }
        };
        let mut brought = Brought {
            duplicates: joined.taken.len() as u64,
            problems: joined.report.problems,
            leftovers: joined.report.leftovers,
            ..Brought::default()
        };
        for (entry, copy) in joined.taken {
            brought.in_use += u64::from(!self.prefer_newest(entry, copy));
        }
        brought.files = self.index.read().files_on(slot).saturating_sub(before);
        super::fault::first_point("join merged", &self.state);
        self.tell_appeared(&joined.appeared);
        if let Some(torn) = torn
            && let Err(e) = torn.end(&backing, &self.index, &self.publish)
        {
            tracing::warn!("backing {}: no list of unclosed files: {e}", backing.path.display());
        }
        self.checkpoints.of(&backing);
        backing.set_state(state);
        Ok(brought)
    }

    /// Enters all that was read of a backing.
    pub(super) fn enter_names(
        &self,
        source: &Source<'_>,
        subtree: Subtree,
    ) -> std::result::Result<Joined, AddError> {
        let mut joining = Joining::new(DirId::ROOT, source, subtree);
        while joining.step(&mut self.index.write())? {}
        Ok(joining.finish())
    }

    /// The slot that a backing with this identity would have: perhaps that of one which is there.
    pub(crate) fn slot_for(&self, id: uuid::Uuid) -> Option<Slot> {
        self.backings.slot_for(id)
    }

    /// Lets a copy that came be the file if it's newer, as at a mount. False if it should be and can't,
    /// because the older one is open.
    pub(super) fn prefer_newest(&self, entry: EntryId, copy: FileRef) -> bool {
        let place = {
            let index = self.index.read();
            match index.live(entry) {
                Some(What::File(_)) => {
                    let (dir, name) = index.place(entry);
                    (dir, name.to_vec())
                }
                _ => return true,
            }
        };
        let (dir, name) = (place.0, &*place.1);
        let _lock = self.locks.lock(dir, name);
        let Some((entry, What::File(file))) = self.index.read().find(dir, name) else { return true };
        let ctime = |file: FileRef| self.stat_entry(dir, name, file).map(|(attr, _)| attr.ctime);
        let newer = match (ctime(file), ctime(copy)) {
            (Ok(old), Ok(new)) => new > old || (new == old && copy.slot < file.slot),
            _ => false,
        };
        if !newer || file.slot == copy.slot {
            return true;
        }
        let _still = self.still.still(file.node());
        if let Some(open) = self.open.find(file.node()).filter(|_| self.open.is_open(file.node())) {
            // A daemon after this one takes the newer one for the file.
            self.keep_open(&open);
            return false;
        }
        self.swap_entry(entry, file, copy);
        self.tell_changed(dir, name);
        true
    }

    /// Another copy is the file, and what was it is a shadow. The caller holds the name's lock.
    pub(super) fn swap_entry(&self, entry: EntryId, file: FileRef, copy: FileRef) {
        let mut index = self.index.write();
        if index.live(entry) != Some(What::File(file)) || !index.members().has(copy.slot) {
            return;
        }
        let shadows = index.shadows(entry);
        index.retarget(entry, copy);
        index.set_shadows(entry, shadows.without(copy.slot).with(file.slot));
        drop(index);
        self.open.forget_idle(file.node());
        self.decisions.lock().pop(&file.node());
    }

    /// Names are there that the kernel may know as absent, or may have listings without.
    pub(super) fn tell_appeared(&self, names: &[(DirId, Vec<u8>)]) {
        let dirs: std::collections::HashSet<DirId> = names.iter().map(|(dir, _)| *dir).collect();
        // It remembers absent names only where a miss is final.
        if self.exclusive {
            names.iter().for_each(|(dir, name)| self.tell_changed(*dir, name));
        }
        dirs.into_iter().for_each(|dir| self.tell_listing(dir));
    }

    /// What a client would miss without a backing.
    pub(crate) fn losses(&self, slot: Slot) -> Losses {
        let index = self.index.read();
        let shadows = index.with_shadows(slot).len() as u64;
        Losses {
            files: index.files_on(slot).saturating_sub(shadows),
            bytes: index.is_counting().then(|| index.bytes_on(slot)),
            shadows,
            dirs: index.dirs_only_on(slot).len() as u64,
            open: self.open.opens_on(slot).0 as u64,
        }
    }

    /// Names of files on a backing, and of files elsewhere that have a shadow there.
    pub(crate) fn left_on(&self, slot: Slot) -> (u64, u64) {
        let index = self.index.read();
        (index.files_on(slot), index.shadowed_on(slot).len() as u64)
    }

    /// How many opens there are of files on a backing, and how many of them may write.
    pub(crate) fn opens_on(&self, slot: Slot) -> (usize, usize) {
        self.open.opens_on(slot)
    }

    /// Names on a backing's drive that aren't directories or kvfs's own, known to the index or not.
    pub(crate) fn count_on_drive(&self, slot: Slot) -> Result<u64> {
        let backing = self.backing(slot)?;
        Ok(read_subtree(&source_at(slot, backing.root(), Reason::FoundAtScan)).files())
    }

    /// Takes a backing out of the tree. EBUSY, without `force`, when something that clients can see would go
    /// with it; then nothing has changed.
    pub(crate) fn part(&self, slot: Slot, force: bool) -> Result<Parted> {
        let backing = self.backing(slot)?;
        let state = backing.state();
        self.record_leaving(slot, force);
        super::fault::first_point("part recorded", &self.state);
        // From here on no new file is sent there.
        backing.set_state(State::Draining);
        if force {
            self.uncover_shadows(slot);
        }
        let dirs = {
            let mut index = self.index.write();
            if !force && (index.files_on(slot) > 0 || !index.dirs_only_on(slot).is_empty()) {
                backing.set_state(state);
                self.record_staying(slot);
                return Err(Errno::BUSY.into());
            }
            let dirs = index.dirs_on(slot);
            index.expel(slot);
            dirs
        };
        let mut parted = Parted { backing: self.backings.remove(slot), ..Parted::default() };
        let paths: Vec<Vec<u8>> = {
            let index = self.index.read();
            dirs.iter().map(|dir| index.path(dir.id)).collect()
        };
        super::fault::first_point("part expelled", &self.state);
        self.sweep_files(slot, &mut parted);
        {
            let mut index = self.index.write();
            for entry in index.shadowed_on(slot) {
                let left = index.shadows(entry).without(slot);
                index.set_shadows(entry, left);
            }
        }
        for dir in &dirs {
            self.sweep_dir(slot, dir, &mut parted);
        }
        self.tell_listing(DirId::ROOT);
        self.keep_open_of(slot);
        super::fault::first_point("part swept", &self.state);
        self.dirs.leave(slot);
        self.open.leave(slot);
        if !force && let Some(Err(e)) = backing.unclosed().map(|list| list.checkpoint(true)) {
            tracing::warn!("backing {}: no last checkpoint: {e}", backing.path.display());
        }
        if !force {
            // Nothing is in them that anybody could see: they must not come back if the backing does.
            remove_dirs(&backing, &paths);
        }
        Ok(parted)
    }

    /// Where a backing that goes has a file's newest copy, the newest of the others is the file.
    fn uncover_shadows(&self, slot: Slot) {
        let names: Vec<(DirId, Vec<u8>)> = {
            let index = self.index.read();
            let place = |entry: &EntryId| {
                let (dir, name) = index.place(*entry);
                (dir, name.to_vec())
            };
            index.with_shadows(slot).iter().map(place).collect()
        };
        for (dir, name) in names {
            let Some(_lock) = self.locks.lock_for(dir, &name, PATIENCE) else { continue };
            let (entry, file, shadows) = {
                let index = self.index.read();
                match index.find(dir, &name) {
                    Some((entry, What::File(file))) if file.slot == slot => {
                        (entry, file, index.shadows(entry))
                    }
                    _ => continue,
                }
            };
            if let Some(copy) = self.newest_of(dir, &name, shadows) {
                let _still = self.still.still(file.node());
                self.swap_entry(entry, file, copy);
                self.tell_changed(dir, &name);
            }
        }
    }

    /// The newest of a name's copies on these backings.
    pub(super) fn newest_of(&self, dir: DirId, name: &[u8], slots: SlotSet) -> Option<FileRef> {
        let found = slots.iter().filter_map(|slot| {
            let fd = self.dir_fd(slot, dir).ok()?;
            Some((slot, super::attr::stat_at(&fd, name).ok()?))
        });
        let (slot, stat) = found
            .max_by_key(|(slot, s)| (s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec, std::cmp::Reverse(*slot)))?;
        Some(FileRef {
            slot,
            ino: self.index.write().pack_ino(stat.stx_ino),
            kind: crate::index::Kind::from_mode(u32::from(stat.stx_mode)),
            reason: Reason::FoundAtScan.code(),
        })
    }

    /// Takes the names of a backing's files out of the index.
    fn sweep_files(&self, slot: Slot, parted: &mut Parted) {
        let mut from = Some(0);
        while let Some(at) = from {
            let (items, next) = self.items_on(slot, at);
            from = next;
            for item in items {
                let Some(_lock) = self.locks.lock_for(item.dir, &item.name, PATIENCE) else {
                    parted.stuck += 1;
                    continue;
                };
                let mut index = self.index.write();
                let Some((entry, What::File(file))) = index.find(item.dir, &item.name) else { continue };
                if file.slot != slot {
                    continue;
                }
                let is_known = index.is_remembered(entry);
                index.remove(entry);
                drop(index);
                parted.files += 1;
                self.open.forget_idle(file.node());
                // Not that the file has gone: whoever has it open goes on, and may be in the midst of a call.
                if is_known {
                    self.tell_changed(item.dir, &item.name);
                }
            }
        }
    }

    /// A directory isn't on this backing any more, and gone if it was on no other.
    pub(super) fn sweep_dir(&self, slot: Slot, dir: &DirName, parted: &mut Parted) {
        let Some(_lock) = self.locks.lock_for(dir.parent, &dir.name, PATIENCE) else {
            parted.stuck += 1;
            return;
        };
        let mut index = self.index.write();
        let Some(left) = index.slots(dir.id).map(|slots| slots.without(slot)) else { return };
        if !left.is_empty() {
            index.set_slots(dir.id, left);
            drop(index);
            self.dirs.forget(dir.id, SlotSet::one(slot));
            self.tell_listing(dir.id);
            return;
        }
        let place = index.dir_place(dir.id).map(|(parent, name)| (parent, name.to_vec()));
        let Some((parent, name)) = place.filter(|_| index.is_empty(dir.id)) else { return };
        if let Some((entry, _)) = index.find(parent, &name) {
            index.remove(entry);
        }
        drop(index);
        // Its attributes aren't asked for: the drive may hang.
        self.dir_is_gone(dir.id, SlotSet::one(slot), None);
        self.tell_changed(parent, &name);
    }
}

/// Removes directories that are empty, the deepest of which come first.
fn remove_dirs(backing: &Backing, paths: &[Vec<u8>]) {
    for path in paths {
        let (above, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], &path[..]),
        };
        if let Ok(above) = backing.open_dir(above) {
            let _ = rustix::fs::unlinkat(&above, name, AtFlags::REMOVEDIR);
        }
    }
}
