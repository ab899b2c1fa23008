//! Finding a name: in the index, else on the backings; and the attributes of what was found.
//!
//! What always holds: a name that is in the index and no longer on its backing is dropped from the index, and
//! looked for again; a miss is an answer only after every backing was asked (where the mount is exclusive, every
//! shared one).

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::attr::{Attr, is_mount_root, stat_at, stat_fd};
use super::open::OpenNode;
use super::{DirFd, Entry, Error, Fs, Result, check_name, is_reserved};
use crate::backing::open_dir_below;
use crate::index::{
    DirId, EntryId, FileRef, Kind, Node, NodeId, PackedIno, Slot, SlotSet, Subtree, What, merge_subtree,
    read_subtree,
};
use crate::placement::Reason;

/// How often a name may turn out to be something else before that's an error. Each time a change of it was
/// under way, and has ended.
pub(super) const TRIES: usize = 16;

impl Fs {
    /// Looks a name up for a thread, and makes the kernel know its node. What was evicted may be found as a
    /// ghost: the kernel must not keep anything of it, nor of its absence.
    pub fn lookup_for(&self, tid: u32, parent: NodeId, name: &[u8]) -> Result<Entry> {
        self.looked_up_in(parent);
        let found = self.lookup(parent, name).and_then(|found| self.shown_to(tid, found));
        match &found {
            Ok(_) => self.metrics.looked_up(true),
            Err(e) if e.errno() == Errno::NOENT => self.metrics.looked_up(false),
            Err(_) => {}
        }
        match (&found, parent.node()) {
            (Err(e), Some(Node::Dir(dir))) if e.errno() == Errno::NOENT => {
                self.ghosts.look_up(dir, name, tid).map_or(found, Ok)
            }
            _ => found,
        }
    }

    /// Whether the kernel may remember that a name is absent.
    pub fn is_final(&self, parent: NodeId, name: &[u8]) -> bool {
        let may_be_there = |dir| self.ghosts.has(dir, name) || self.is_hidden_name(dir, name);
        self.keeps_misses() && !matches!(parent.node(), Some(Node::Dir(dir)) if may_be_there(dir))
    }

    /// Whether a node is an evicted file's ghost, of which a thread wants more than to remove its name.
    pub fn is_ghost(&self, node: NodeId, tid: u32) -> bool {
        self.ghosts.is_absent(node, tid)
    }

    /// Looks a name up, and makes the kernel know its node.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let dir = self.dir_of(parent)?;
        check_name(name)?;
        if is_reserved(name) {
            #[cfg(feature = "fault-points")]
            assert!(name != b".kvfs-fault-panic", "the fault point was looked up");
            #[cfg(feature = "fault-points")]
            if name == b".kvfs-fault-sandbox" {
                let open = crate::sandbox::not_refused();
                tracing::info!("system calls that aren't refused: {open:?}");
                return Err(if open.is_empty() { Errno::PERM } else { Errno::NOTCONN }.into());
            }
            return self.find_socket(parent, name).ok_or_else(|| Errno::NOENT.into());
        }
        for _ in 0..TRIES {
            let found = self.index.read().find(dir, name);
            match found {
                Some((entry, What::File(file))) => match self.stat_to_remember(entry, dir, name, file) {
                    Ok(attr) => return Ok(attr),
                    Err(e) if e.errno() == Errno::STALE => self.drop_stale(dir, name, file),
                    Err(e) => return Err(e),
                },
                // Else it's gone, and the name may be something else's.
                Some((_, What::Dir(id))) => {
                    if !self.others_change() || self.verify_dir(id) {
                        return self.stat_dir(id);
                    }
                }
                None if self.others_change() && self.index.read().slots(dir).is_none() => {
                    return Err(Errno::STALE.into());
                }
                None if self.keeps_misses() => return Err(Errno::NOENT.into()),
                None => {
                    self.probe(dir, name)?;
                    // The kernel may have a listing of the directory without the name.
                    if !self.others_change()
                        && let Some(invalidate) = self.invalidate.get()
                    {
                        invalidate(parent);
                    }
                }
            }
        }
        Err(Errno::STALE.into())
    }

    /// The kernel has dropped the node, of which it was told so many times.
    pub fn forget(&self, node: NodeId, times: u64) {
        if let Some(Node::File(slot, ino)) = node.node() {
            if !self.forgets_later(node, times) {
                self.index.write().forget(slot, ino, times);
            }
            self.open.forget_removed(node);
            self.open.forget_moved(node);
            self.untell(node);
        }
    }

    /// The kernel forgets a node, of which it was told so many times. Whether the index goes on finding its file by
    /// it, because it's open: FORGET overtakes RELEASE, which has things to count.
    fn forgets_later(&self, node: NodeId, times: u64) -> bool {
        let Some(open) = self.open.find(node) else { return false };
        open.forgotten.fetch_add(times, Relaxed);
        self.open.count(&open) > 0 || open.forgotten.swap(0, Relaxed) == 0
    }

    /// The same at the last close of an open file.
    pub(super) fn forget_at_last(&self, open: &OpenNode) {
        let times = open.forgotten.swap(0, Relaxed);
        if let (1.., Some(Node::File(slot, ino))) = (times, open.node.node()) {
            self.index.write().forget(slot, ino, times);
        }
    }

    /// Attributes of a node.
    pub fn getattr(&self, node: NodeId) -> Result<Attr> {
        match node.node() {
            Some(Node::Dir(dir)) => self.stat_dir(dir),
            Some(Node::File(slot, ino)) => {
                self.reach(slot)?;
                if let Some(open) = self.open.find(node) {
                    let stat = stat_fd(&open.fd).map_err(Error::on(slot))?;
                    return Ok(Attr::new(node, &stat));
                }
                self.by_name(slot, ino, |dir, name, file| {
                    let (stat, fd) = self.statx_entry(dir, name, file)?;
                    self.is_as_told(node, &stat, &fd, name)?;
                    Ok(Attr::new(node, &stat))
                })
            }
            None => self.socket_attr(node).ok_or_else(|| Errno::STALE.into()),
        }
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let Some(Node::File(slot, ino)) = node.node() else { return Err(Errno::INVAL.into()) };
        self.by_name(slot, ino, |dir, name, _| {
            let fd = self.dir_fd(slot, dir)?;
            let target = rustix::fs::readlinkat(&fd, name, Vec::new()).map_err(Error::on(slot))?;
            Ok(target.into_bytes())
        })
    }

    /// Does something with an inode by one of its names; again if it was renamed meanwhile. ESTALE when it has
    /// no name (left).
    pub(super) fn by_name<T>(
        &self,
        slot: Slot,
        ino: PackedIno,
        act: impl Fn(DirId, &[u8], FileRef) -> Result<T>,
    ) -> Result<T> {
        for _ in 0..TRIES {
            let (dir, name, file) = self.place_of(slot, ino)?;
            match act(dir, &name, file) {
                // Renamed meanwhile, or changed behind the mount's back.
                Err(e) if matches!(e.errno(), Errno::STALE | Errno::NOENT) => {
                    self.drop_stale(dir, &name, file)
                }
                result => return result,
            }
        }
        Err(Errno::STALE.into())
    }

    /// A name of an inode. ESTALE when it has none (left).
    pub(super) fn place_of(&self, slot: Slot, ino: PackedIno) -> Result<(DirId, Vec<u8>, FileRef)> {
        if self.open.evicted.has(NodeId::file(slot, ino)) {
            return Err(Errno::STALE.into());
        }
        let index = self.index.read();
        if !index.find_known(slot, ino) && self.open.was_moved(NodeId::file(slot, ino)) {
            // Without a pass over the whole index: it's asked for until the kernel has heard.
            return Err(Errno::STALE.into());
        }
        let entry = index.find_node(slot, ino).ok_or(Errno::STALE)?;
        let (dir, name) = index.place(entry);
        match index.what(entry) {
            What::File(file) => Ok((dir, name.to_vec(), file)),
            What::Dir(_) => Err(Errno::STALE.into()),
        }
    }

    /// Attributes of the file that the index has under this name. ESTALE when the backing has none, or
    /// another one.
    pub(super) fn stat_entry(&self, dir: DirId, name: &[u8], file: FileRef) -> Result<(Attr, DirFd)> {
        let (stat, fd) = self.statx_entry(dir, name, file)?;
        Ok((Attr::new(file.node(), &stat), fd))
    }

    /// The same as the backing tells it.
    pub(super) fn statx_entry(&self, dir: DirId, name: &[u8], file: FileRef) -> Result<(Statx, DirFd)> {
        let gone = |e: Errno| if e == Errno::NOENT { Errno::STALE } else { e };
        let fd = self.dir_fd(file.slot, dir).map_err(|e| Error::on(file.slot)(gone(e.errno())))?;
        let stat = stat_at(&fd, name).map_err(|e| Error::on(file.slot)(gone(e)))?;
        if !self.is_file(&stat, file) {
            return Err(Errno::STALE.into());
        }
        Ok((stat, fd))
    }

    /// Whether the backing's file is the one that the index means.
    pub(super) fn is_file(&self, stat: &Statx, file: FileRef) -> bool {
        let ino = if PackedIno::plain(stat.stx_ino) == Some(file.ino) {
            stat.stx_ino
        } else {
            self.index.read().ino(file.ino)
        };
        stat.stx_ino == ino && Kind::from_mode(u32::from(stat.stx_mode)) == file.kind
    }

    /// Attributes of a merged directory: mode and owner of its first backing, the newest of the times.
    pub(super) fn stat_dir(&self, dir: DirId) -> Result<Attr> {
        let (slots, subdirs) = {
            let index = self.index.read();
            (index.slots(dir), index.subdirs(dir))
        };
        let Some(slots) = slots else {
            return self.removed_dirs.lock().get(&dir).copied().ok_or_else(|| Errno::STALE.into());
        };
        let mut merged: Option<Attr> = None;
        let mut failed = Error::from(Errno::STALE);
        for slot in slots.iter() {
            let stat = self.dir_fd(slot, dir).and_then(|fd| stat_fd(&fd).map_err(Error::on(slot)));
            match (stat, &mut merged) {
                (Ok(stat), None) => merged = Some(Attr::new(NodeId::dir(dir), &stat)),
                (Ok(stat), Some(merged)) => {
                    let other = Attr::new(NodeId::dir(dir), &stat);
                    merged.atime = merged.atime.max(other.atime);
                    merged.mtime = merged.mtime.max(other.mtime);
                    merged.ctime = merged.ctime.max(other.ctime);
                }
                // A backing that can't tell takes only itself out.
                (Err(e), _) => failed = e,
            }
        }
        // Directory ids are never used twice: no generation is needed, and the root's must be 0.
        let merged = merged.map(|attr| Attr { nlink: 2 + subdirs, generation: 0, ..attr });
        match merged {
            Some(attr) if slots.len() == 1 => drop(self.lone_dirs.lock().put(dir, attr)),
            // Those who know it can go on with the files that others have, and make new ones.
            None if slots.iter().all(|slot| self.is_slot_out(slot)) => {
                return self.lone_dirs.lock().get(&dir).copied().ok_or(failed);
            }
            _ => {}
        }
        merged.ok_or(failed)
    }

    /// Attributes of a file that the kernel is about to know. ESTALE where it isn't the name's file any more.
    /// Whoever takes it away from under its name does it before, or knows that the kernel knows it.
    pub(super) fn stat_to_remember(
        &self,
        entry: EntryId,
        dir: DirId,
        name: &[u8],
        file: FileRef,
    ) -> Result<Attr> {
        self.reach(file.slot)?;
        let using = self.still.using(file.node());
        self.stat_and_remember(entry, dir, name, file, &using)
    }

    /// The same, `using` the node already.
    pub(super) fn stat_and_remember(
        &self,
        entry: EntryId,
        dir: DirId,
        name: &[u8],
        file: FileRef,
        _using: &super::still::Using<'_>,
    ) -> Result<Attr> {
        let (stat, fd) = self.statx_entry(dir, name, file)?;
        if !self.remember(entry, file) {
            return Err(Errno::STALE.into());
        }
        self.count_found(entry, file, &stat);
        Ok(self.identified(Attr::new(file.node(), &stat), &fd, name))
    }

    /// Lets the index find the entry's node quickly from now on. False if it isn't this file's any more: then
    /// the kernel must not be told of it, for it would never hear that it has gone.
    pub(super) fn remember(&self, entry: EntryId, file: FileRef) -> bool {
        {
            let index = self.index.read();
            // It may have gone meanwhile, and its number be another's.
            if index.live(entry) != Some(What::File(file)) {
                return false;
            }
            if index.remember_again(entry) {
                return true;
            }
        }
        let mut index = self.index.write();
        let is_there = index.live(entry) == Some(What::File(file));
        if is_there {
            index.remember(entry);
        }
        is_there
    }

    /// Takes a name out of the index that its backing doesn't have any more.
    pub(super) fn drop_stale(&self, dir: DirId, name: &[u8], file: FileRef) {
        let _lock = self.locks.lock(dir, name);
        // Under the lock no operation of ours is half done: what is missing now is really gone.
        if self.stat_entry(dir, name, file).is_err_and(|e| e.errno() == Errno::STALE) {
            // Somebody else may have put another in its place: in listings that's the same entry.
            let now = self.successor(dir, name, file);
            let mut index = self.index.write();
            if let Some((entry, What::File(there))) = index.find(dir, name)
                && there == file
            {
                match now {
                    Some(now) => {
                        let shadows = index.shadows(entry);
                        index.retarget(entry, now);
                        index.set_shadows(entry, shadows.without(now.slot));
                    }
                    None => index.remove(entry),
                }
                drop(index);
                self.open.forget_idle(file.node());
            }
        }
    }

    /// What a name stands for: from the index, else from the backings. ENOENT when there is nothing.
    pub(super) fn find_or_probe(&self, dir: DirId, name: &[u8]) -> Result<What> {
        if is_reserved(name) {
            return Err(Errno::NOENT.into());
        }
        self.refresh(dir, name)?;
        for _ in 0..TRIES {
            if let Some((_, what)) = self.index.read().find(dir, name) {
                return Ok(what);
            }
            if self.keeps_misses() {
                return Err(Errno::NOENT.into());
            }
            self.probe(dir, name)?;
        }
        Err(Errno::STALE.into())
    }

    /// Asks every backing for a name that the index doesn't have, and takes what is found into the index.
    /// ENOENT when there is nothing.
    pub(super) fn probe(&self, dir: DirId, name: &[u8]) -> Result<()> {
        let _lock = self.locks.lock(dir, name);
        if self.index.read().find(dir, name).is_some() {
            return Ok(());
        }
        let found: Vec<(Slot, DirFd, Statx)> = self
            .backings()
            .iter()
            .filter(|backing| backing.shared || !self.exclusive)
            .filter_map(|backing| {
                let fd = self.probe_dir(backing.slot, dir)?;
                let stat = stat_at(&fd, name).ok()?;
                (!is_mount_root(&stat)).then_some((backing.slot, fd, stat))
            })
            .collect();
        let is_dir = |stat: &Statx| Kind::from_mode(u32::from(stat.stx_mode)) == Kind::Dir;
        if found.iter().any(|(_, _, stat)| is_dir(stat)) {
            for (slot, fd, _) in found.iter().filter(|(_, _, stat)| is_dir(stat)) {
                self.adopt_dir(dir, name, *slot, fd)?;
            }
            return Ok(());
        }
        // The newest is the file; of equal ones the lowest slot's.
        let newest = found
            .iter()
            .max_by_key(|(slot, _, s)| (s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec, std::cmp::Reverse(*slot)));
        let Some((slot, _, stat)) = newest else { return Err(Errno::NOENT.into()) };
        let mut index = self.index.write();
        let file = FileRef {
            slot: *slot,
            ino: index.pack_ino(stat.stx_ino),
            kind: Kind::from_mode(u32::from(stat.stx_mode)),
            reason: Reason::Probed.code(),
        };
        if let Ok(entry) = index.add_file(dir, name, file)? {
            index.used_at(entry, self.retention.now());
            if index.is_counting() {
                index.count_found(entry, stat.stx_nlink, super::counting::taken(stat, self.is_shared(*slot)));
            }
            let others = found.iter().map(|(slot, ..)| *slot).collect::<SlotSet>();
            index.set_shadows(entry, others.without(*slot));
        }
        Ok(())
    }

    /// The directory on a backing, also where the index doesn't know yet that the backing has it.
    pub(super) fn probe_dir(&self, slot: Slot, dir: DirId) -> Option<DirFd> {
        let (known, path) = {
            let index = self.index.read();
            let known = index.slots(dir)?.has(slot);
            (known, if known { Vec::new() } else { index.path(dir) })
        };
        if known {
            return self.dir_fd(slot, dir).ok();
        }
        self.reach(slot).ok()?;
        self.backing(slot).ok()?.open_dir(&path).ok()?;
        self.join_dir(slot, dir)?;
        self.dir_fd(slot, dir).ok()
    }

    /// A backing turned out to have a known directory: from now on it's part of the merged one, as are those
    /// above it. `None` if it was moved meanwhile.
    fn join_dir(&self, slot: Slot, dir: DirId) -> Option<()> {
        let (parent, name) = {
            let index = self.index.read();
            if index.slots(dir)?.has(slot) {
                return Some(());
            }
            let (parent, name) = index.dir_place(dir)?;
            (parent, name.to_vec())
        };
        self.join_dir(slot, parent)?;
        let above = self.dir_fd(slot, parent).ok()?;
        // A rename or removal of the directory takes this lock too.
        let _lock = self.locks.lock(parent, &name);
        open_dir_below(above.as_fd(), &name).ok()?;
        let mut index = self.index.write();
        if index.dir_place(dir) != Some((parent, &name)) {
            return None;
        }
        let slots = index.slots(dir)?;
        index.set_slots(dir, slots.with(slot));
        Some(())
    }

    /// Takes a directory with all that is below it into the index; of a shared backing without: what is in it is
    /// read when it's listed, and asked for when it's looked up.
    pub(super) fn adopt_dir(&self, dir: DirId, name: &[u8], slot: Slot, parent: &DirFd) -> Result<()> {
        let Ok(root) = open_dir_below(parent.as_fd(), name) else { return Ok(()) };
        let source = super::source_at(slot, root.as_fd(), Reason::Probed);
        let subtree = if self.is_shared(slot) { Subtree::default() } else { read_subtree(&source) };
        let mut index = self.index.write();
        let id = match index.add_dir(dir, name, SlotSet::one(slot))? {
            Ok(new) => new,
            Err(taken) => match index.what(taken) {
                What::Dir(there) => {
                    let slots = index.slots(there).unwrap_or_default();
                    index.set_slots(there, slots.with(slot));
                    there
                }
                What::File(_) => return Ok(()),
            },
        };
        let joined = merge_subtree(&mut index, id, &source, subtree)?;
        drop(index);
        joined.taken.into_iter().for_each(|(entry, file)| self.prefer_newer(entry, file));
        Ok(())
    }

    /// Lets a copy that appeared be the file if it's newer, and no client knows the one that is.
    pub(super) fn prefer_newer(&self, entry: EntryId, copy: FileRef) {
        let place = {
            let index = self.index.read();
            match index.live(entry) {
                Some(What::File(file)) if !index.is_remembered(entry) => {
                    let (dir, name) = index.place(entry);
                    Some((dir, name.to_vec(), file))
                }
                _ => None,
            }
        };
        let Some((dir, name, file)) = place else { return };
        let ctime = |file: FileRef| self.stat_entry(dir, &name, file).map(|(attr, _)| attr.ctime);
        if let (Ok(old), Ok(new)) = (ctime(file), ctime(copy))
            && new > old
        {
            let mut index = self.index.write();
            if index.live(entry) == Some(What::File(file))
                && !index.is_remembered(entry)
                && index.members().has(copy.slot)
            {
                let shadows = index.shadows(entry);
                index.retarget(entry, copy);
                index.set_shadows(entry, shadows.without(copy.slot).with(file.slot));
            }
        }
    }
}
