//! Backings that others change too: nothing that the index says of them lasts.
//!
//! What always holds:
//! - the kernel keeps what it was told of such files, and of every directory, for `--shared-ttl` alone, and of
//!   listings and misses nothing. A file on a backing of our own is told as ever: a name that others make
//!   elsewhere stands behind it;
//! - a name is compared with its backing when it's looked up: a file by its inode, a directory too, because an
//!   open directory follows a rename that somebody else has done, and would show the wrong place;
//! - a listing begins with reading the shared parts of the directory again. The index gets the new names and
//!   loses those that are gone; the others keep their numbers, so listings under way go on;
//! - only a backing that says so takes a name away: one that can't be asked does not.

use std::time::Duration;

use roaring::RoaringBitmap;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, StatxFlags, openat, statx};
use rustix::io::Errno;

use super::attr::{is_mount_root, stat_at};
use super::lookup::TRIES;
use super::{DirFd, Fs, Node, NodeId, OpenDir, Result, TTL, is_reserved};
use crate::index::{DirId, EntryId, FileRef, Kind, Slot, SlotSet, What, identify};
use crate::placement::Reason;

/// Names of a listing that are compared with the index at a time, and names that leave it at a time.
const BATCH: usize = 1024;
/// Room for about 400 names of 75 bytes in one getdents64 call.
const DENTS_BUFFER: usize = 64 << 10;

/// A name on a backing.
struct Listed {
    name: Vec<u8>,
    kind: Kind,
    ino: u64,
}

impl Fs {
    /// Whether others change a backing too.
    pub(super) fn is_shared(&self, slot: Slot) -> bool {
        self.backings.shared().has(slot)
    }

    /// Whether others change any backing too.
    pub fn others_change(&self) -> bool {
        !self.backings.shared().is_empty()
    }

    /// How long the kernel may keep a node's name: it asks each time for one that is hidden from somebody.
    pub fn name_ttl(&self, node: NodeId) -> Duration {
        if self.publish.is_hidden(node) { Duration::ZERO } else { self.ttl(node) }
    }

    /// How long the kernel may keep what it was told of a node.
    pub fn ttl(&self, node: NodeId) -> Duration {
        let shared = self.backings.shared();
        if shared.is_empty() {
            return TTL;
        }
        match node.node() {
            // Others can't take the name away, and what they put elsewhere under it is its shadow.
            Some(Node::File(slot, _)) if !shared.has(slot) => TTL,
            // A directory may get a part on a shared backing at any time.
            Some(_) => self.shared_ttl,
            None => TTL,
        }
    }

    /// Whether the kernel may keep in mind that a name isn't there.
    pub fn keeps_misses(&self) -> bool {
        self.exclusive && !self.others_change()
    }

    /// Opens a directory to be listed. `None` where that needn't be: the kernel then keeps each listing
    /// (fuse_file_open in fs/fuse/file.c).
    pub fn opendir(&self, node: NodeId) -> Result<Option<OpenDir>> {
        if self.others_change() {
            self.still_there(self.dir_of(node)?)?;
            return Ok(Some(OpenDir::Uncached));
        }
        Ok(self.publish.is_on().then(|| self.open_listing(node)))
    }

    /// ESTALE where a directory isn't under its name any more: the kernel then looks the path up again, and finds
    /// what is there now (`retry_estale` in include/linux/namei.h).
    pub(super) fn still_there(&self, dir: DirId) -> Result<()> {
        if !self.others_change() || self.verify_dir(dir) { Ok(()) } else { Err(Errno::STALE.into()) }
    }

    /// Has the index say what a name stands for now, where others may have changed that. ESTALE where the directory
    /// itself has gone.
    pub(super) fn refresh(&self, dir: DirId, name: &[u8]) -> Result<()> {
        if !self.others_change() || is_reserved(name) {
            return Ok(());
        }
        if self.index.read().slots(dir).is_none() {
            return Err(Errno::STALE.into());
        }
        for _ in 0..TRIES {
            let found = self.index.read().find(dir, name);
            match found {
                Some((_, What::File(file))) if self.is_shared(file.slot) => {
                    match self.stat_entry(dir, name, file) {
                        Err(e) if e.errno() == Errno::STALE => self.drop_stale(dir, name, file),
                        _ => return Ok(()),
                    }
                }
                Some((_, What::File(_))) => return Ok(()),
                Some((_, What::Dir(id))) => {
                    if self.verify_dir(id) {
                        return Ok(());
                    }
                }
                None => {
                    let _ = self.probe(dir, name);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Has the index know what others have put into the directory of this name, if it's one.
    pub(super) fn refresh_below(&self, dir: DirId, name: &[u8]) {
        if !self.others_change() {
            return;
        }
        let found = self.index.read().find(dir, name);
        if let Some((_, What::Dir(id))) = found {
            self.reconcile(id);
        }
    }

    /// The file that others have put under a name in the place of `file`.
    pub(super) fn successor(&self, dir: DirId, name: &[u8], file: FileRef) -> Option<FileRef> {
        if !self.is_shared(file.slot) {
            return None;
        }
        let slots = self.others_copies(dir, file.slot).with(file.slot);
        let found = slots.iter().filter_map(|slot| {
            let stat = stat_at(self.dir_fd(slot, dir).ok()?, name).ok()?;
            Some((slot, stat))
        });
        // The newest is the file.
        let newest = found.max_by_key(|(_, stat)| (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec))?;
        let (slot, stat) = newest;
        let kind = Kind::from_mode(u32::from(stat.stx_mode));
        if kind == Kind::Dir || is_mount_root(&stat) {
            return None;
        }
        let ino = self.index.write().pack_ino(stat.stx_ino);
        Some(FileRef { slot, ino, kind, reason: Reason::Probed.code() })
    }

    // ---- directories ----

    /// Whether a directory is still there. A shared backing where it isn't under its name any more is no part
    /// of it from now on; with the last one it goes from the index, with all below it.
    ///
    /// Not to be called while holding the lock of a name.
    pub(super) fn verify_dir(&self, dir: DirId) -> bool {
        let Some((slots, parent, name)) = self.place_of_dir(dir) else { return dir == DirId::ROOT };
        if !slots.is_empty() && self.lost_of(slots, dir, parent, &name).is_empty() {
            return true;
        }
        {
            // Under the lock no operation of ours is half done: what isn't there now is really gone.
            let _lock = self.locks.lock(parent, &name);
            let Some((slots, parent_now, name_now)) = self.place_of_dir(dir) else { return false };
            if (parent_now, &name_now) != (parent, &name) {
                return true;
            }
            let lost = self.lost_of(slots, dir, parent, &name);
            self.dirs.forget(dir, lost);
            let mut index = self.index.write();
            let left = lost.iter().fold(index.slots(dir).unwrap_or_default(), SlotSet::without);
            index.set_slots(dir, left);
            if !left.is_empty() {
                return true;
            }
        }
        self.drop_tree(dir);
        false
    }

    /// The backings of a directory, and its place. `None` for the root, and when it was removed.
    fn place_of_dir(&self, dir: DirId) -> Option<(SlotSet, DirId, Vec<u8>)> {
        let index = self.index.read();
        let (parent, name) = index.dir_place(dir)?;
        Some((index.slots(dir)?, parent, name.to_vec()))
    }

    /// Those shared ones of its backings that a directory isn't on any more.
    fn lost_of(&self, slots: SlotSet, dir: DirId, parent: DirId, name: &[u8]) -> SlotSet {
        let shared = self.backings.shared();
        slots.iter().filter(|slot| shared.has(*slot) && self.is_lost(*slot, dir, parent, name)).collect()
    }

    /// Whether a backing has no directory under the name any more, or another one than we have open.
    fn is_lost(&self, slot: Slot, dir: DirId, parent: DirId, name: &[u8]) -> bool {
        let gone = |errno| matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::STALE);
        let above = match self.dir_fd(slot, parent) {
            Ok(fd) => fd,
            Err(e) => return gone(e.errno()),
        };
        match stat_at(&above, name) {
            Ok(stat) if Kind::from_mode(u32::from(stat.stx_mode)) != Kind::Dir => true,
            Ok(stat) => self.dirs.peek(slot, dir).is_some_and(|fd| {
                // An inode's number needs no asking.
                let flags = AtFlags::EMPTY_PATH | AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC as u32);
                statx(&fd, c"", flags, StatxFlags::INO).is_ok_and(|open| open.stx_ino != stat.stx_ino)
            }),
            Err(e) => gone(e),
        }
    }

    /// Takes a directory that no backing has out of the index, with all below it, from below and name by name:
    /// each under its lock, like every change of a name. What comes back meanwhile stays.
    fn drop_tree(&self, top: DirId) {
        let mut todo = vec![top];
        let mut kept = Vec::new();
        while let Some(&dir) = todo.last() {
            let batch: Vec<(EntryId, What, Vec<u8>)> = {
                let index = self.index.read();
                let child = |entry| (entry, index.what(entry), index.place(entry).1.to_vec());
                index.children(dir, 0).take(BATCH).map(child).collect()
            };
            let below = batch.iter().find_map(|(_, what, _)| match what {
                What::Dir(below) if !kept.contains(below) => Some(*below),
                _ => None,
            });
            if let Some(below) = below {
                // It has what the directory above it has: nothing.
                self.index.write().set_slots(below, SlotSet::EMPTY);
                todo.push(below);
                continue;
            }
            todo.pop();
            let mut left = false;
            for (entry, what, name) in &batch {
                let What::File(file) = what else {
                    left = true;
                    continue;
                };
                let _lock = self.locks.lock(dir, name);
                let mut index = self.index.write();
                if index.find(dir, name) == Some((*entry, What::File(*file))) {
                    index.remove(*entry);
                    drop(index);
                    self.open.forget_idle(file.node());
                }
            }
            if !left && batch.len() == BATCH {
                todo.push(dir);
            } else if left || !self.drop_empty(dir) {
                kept.push(dir);
            }
        }
    }

    /// Takes a directory that no backing has, and that has nothing in it, out of the index. False if it's in use
    /// again.
    fn drop_empty(&self, dir: DirId) -> bool {
        let Some((_, parent, name)) = self.place_of_dir(dir) else { return true };
        let _lock = self.locks.lock(parent, &name);
        let mut index = self.index.write();
        match index.find(parent, &name) {
            Some((entry, What::Dir(there))) if there == dir => {
                if !index.is_empty(dir) || !index.slots(dir).unwrap_or_default().is_empty() {
                    return false;
                }
                index.remove(entry);
            }
            _ => return true,
        }
        drop(index);
        self.dir_is_gone(dir, self.backings.shared(), None);
        true
    }

    /// Has the index know on which backings a directory is now: others may have made it on more.
    pub(super) fn complete(&self, dir: DirId) {
        for slot in self.backings.shared().iter() {
            // It joins if it's there.
            let _ = self.probe_dir(slot, dir);
        }
    }

    /// The same for the directory of a name, if it's one.
    pub(super) fn complete_at(&self, dir: DirId, name: &[u8]) {
        if !self.others_change() {
            return;
        }
        let found = self.index.read().find(dir, name);
        if let Some((_, What::Dir(id))) = found {
            self.complete(id);
        }
    }

    // ---- listings ----

    /// Has the index know what is in a directory on shared backings now.
    pub(super) fn reconcile(&self, dir: DirId) {
        if !self.verify_dir(dir) {
            return;
        }
        for slot in self.backings.shared().iter() {
            // It may have come to be there. Where it isn't, neither is anything that was in it.
            let Some(fd) = self.probe_dir(slot, dir) else {
                self.lose_unseen(slot, dir, &RoaringBitmap::new());
                continue;
            };
            if let Err(e) = self.reconcile_on(slot, dir, &fd) {
                tracing::debug!("backing {}: a directory can't be read: {e}", slot.0);
            }
        }
    }

    fn reconcile_on(&self, slot: Slot, dir: DirId, fd: &DirFd) -> std::result::Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = openat(fd, c".", flags, Mode::empty())?;
        let mut seen = RoaringBitmap::new();
        let mut buffer = Vec::with_capacity(DENTS_BUFFER);
        let mut dents = RawDir::new(&open, buffer.spare_capacity_mut());
        let mut batch = Vec::new();
        while let Some(entry) = dents.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || is_reserved(name) {
                continue;
            }
            let Some((kind, ino)) = identify(&open, name, entry.file_type(), entry.ino()) else { continue };
            batch.push(Listed { name: name.to_vec(), kind, ino });
            if batch.len() == BATCH {
                self.compare(slot, dir, fd, &batch, &mut seen);
                batch.clear();
            }
        }
        self.compare(slot, dir, fd, &batch, &mut seen);
        self.lose_unseen(slot, dir, &seen);
        Ok(())
    }

    /// Takes names of a backing into the index that it doesn't have, and sets right what others have changed.
    fn compare(&self, slot: Slot, dir: DirId, fd: &DirFd, batch: &[Listed], seen: &mut RoaringBitmap) {
        enum Difference {
            New,
            Replaced(FileRef),
            Copy(EntryId),
        }
        let mut differences = Vec::new();
        {
            let index = self.index.read();
            for listed in batch {
                let Some((entry, what)) = index.find(dir, &listed.name) else {
                    differences.push((listed, Difference::New));
                    continue;
                };
                seen.insert(entry.number());
                let difference = match what {
                    // What is in it joins when it's listed itself.
                    What::Dir(_) => None,
                    What::File(file) if file.slot == slot => {
                        let same = file.kind == listed.kind && index.ino(file.ino) == listed.ino;
                        (!same).then_some(Difference::Replaced(file))
                    }
                    What::File(_) => {
                        let copy = listed.kind != Kind::Dir && !index.shadows(entry).has(slot);
                        copy.then_some(Difference::Copy(entry))
                    }
                };
                differences.extend(difference.map(|difference| (listed, difference)));
            }
        }
        for (listed, difference) in differences {
            match difference {
                Difference::New => {
                    if let Some(entry) = self.take_in(slot, dir, fd, listed) {
                        seen.insert(entry.number());
                    }
                }
                Difference::Replaced(file) => self.drop_stale(dir, &listed.name, file),
                Difference::Copy(entry) => self.take_in_copy(slot, dir, listed, entry),
            }
        }
    }

    /// Takes a new name into the index. Whether it's still there is found when it's looked up.
    fn take_in(&self, slot: Slot, dir: DirId, fd: &DirFd, listed: &Listed) -> Option<EntryId> {
        // Whoever of us makes, renames or removes this name has done so in the index, too, or not begun.
        let _lock = self.locks.lock(dir, &listed.name);
        if let Some((entry, _)) = self.index.read().find(dir, &listed.name) {
            return Some(entry);
        }
        if listed.kind == Kind::Dir {
            self.adopt_dir(dir, &listed.name, slot, fd).ok()?;
            return self.index.read().find(dir, &listed.name).map(|(entry, _)| entry);
        }
        let mut index = self.index.write();
        let ino = index.pack_ino(listed.ino);
        let file = FileRef { slot, ino, kind: listed.kind, reason: Reason::Probed.code() };
        index.add_file(dir, &listed.name, file).ok()?.ok()
    }

    /// A second copy has come: the file is the newer one.
    fn take_in_copy(&self, slot: Slot, dir: DirId, listed: &Listed, entry: EntryId) {
        let _lock = self.locks.lock(dir, &listed.name);
        let copy = {
            let mut index = self.index.write();
            match index.find(dir, &listed.name) {
                Some((there, What::File(file))) if there == entry && file.slot != slot => {}
                _ => return,
            }
            let shadows = index.shadows(entry);
            index.set_shadows(entry, shadows.with(slot));
            let ino = index.pack_ino(listed.ino);
            FileRef { slot, ino, kind: listed.kind, reason: Reason::Probed.code() }
        };
        self.prefer_newer(entry, copy);
    }

    /// Sets right what the index has of a directory on a backing and a listing of it didn't show.
    fn lose_unseen(&self, slot: Slot, dir: DirId, seen: &RoaringBitmap) {
        let mut from = 0;
        loop {
            let (mut last, mut unseen) = (None, Vec::new());
            {
                let index = self.index.read();
                for entry in index.children(dir, from).take(BATCH) {
                    last = Some(entry);
                    if !seen.contains(entry.number()) {
                        let (what, shadows) = (index.what(entry), index.shadows(entry));
                        unseen.push((entry, what, shadows.has(slot), index.place(entry).1.to_vec()));
                    }
                }
            }
            let Some(last) = last else { return };
            from = last.number().saturating_add(1);
            for (entry, what, is_shadow, name) in unseen {
                match what {
                    What::File(file) if file.slot == slot => self.drop_stale(dir, &name, file),
                    What::Dir(id) if self.index.read().slots(id).is_some_and(|s| s.has(slot)) => {
                        self.verify_dir(id);
                    }
                    What::File(file) if is_shadow => {
                        let mut index = self.index.write();
                        if index.find(dir, &name) == Some((entry, What::File(file))) {
                            let shadows = index.shadows(entry);
                            index.set_shadows(entry, shadows.without(slot));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// The backings where others may have put a copy of a name in this directory beside `file`.
    pub(super) fn others_copies(&self, dir: DirId, file: Slot) -> SlotSet {
        let shared = self.backings.shared();
        if shared.is_empty() {
            return shared;
        }
        let slots = self.index.read().slots(dir).unwrap_or_default();
        slots.iter().filter(|slot| *slot != file && shared.has(*slot)).collect()
    }
}
