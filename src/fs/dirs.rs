//! Directories of the backings, kept open: every access to a file goes through its directory's descriptor.
//!
//! What always holds: a descriptor is the directory itself, whatever it's called meanwhile. It's found from
//! the backing's root one component at a time, through no symbolic link and into no other mount, so nothing
//! that a client does to names leads outside the backing. Names in the index decide; a directory that isn't
//! where the index says it is counts as missing from that backing.
//!
//! Between a directory's renaming on a backing and the index's learning of it, names lead elsewhere than the
//! index says. So whoever renames directories holds `changing` on their backings from the first step on disk
//! to the last in the index, and no directory is found by name on those backings meanwhile.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rustix::io::Errno;

use super::error::{Error, Result};
use crate::backing::{Backing, open_dir_below};
use crate::index::{DirId, Index, MAX_BACKINGS, Slot, SlotSet};

/// A directory on a backing, open with `O_PATH`.
pub(super) type DirFd = Arc<OwnedFd>;

/// A backing's directories.
#[derive(Default)]
struct Tree {
    /// `None` where there is no backing (any more).
    root: RwLock<Option<DirFd>>,
    /// Held to find a directory by name; held alone to change names of directories.
    names: RwLock<()>,
}

/// The open directories.
pub(super) struct Dirs {
    trees: Vec<Tree>,
    open: Mutex<LruCache<(Slot, DirId), DirFd>>,
}

/// Nobody finds a directory by name on some backings while this is there.
pub(super) struct Changing<'a> {
    _trees: Vec<RwLockWriteGuard<'a, ()>>,
}

impl Dirs {
    /// For these backings; keeps at most `capacity` directories open besides the roots.
    pub(super) fn new(backings: &[Backing], capacity: NonZeroUsize) -> std::io::Result<Dirs> {
        let trees = (0..MAX_BACKINGS).map(|_| Tree::default()).collect();
        let dirs = Dirs { trees, open: Mutex::new(LruCache::new(capacity)) };
        backings.iter().try_for_each(|backing| dirs.enter(backing))?;
        Ok(dirs)
    }

    /// A backing has come.
    pub(super) fn enter(&self, backing: &Backing) -> std::io::Result<()> {
        if backing.health.is_out() {
            return Ok(());
        }
        let root = Arc::new(backing.root().try_clone_to_owned()?);
        *self.trees[backing.slot.index()].root.write() = Some(root);
        Ok(())
    }

    /// A backing goes: none of its directories stays open here. They're closed under no lock: the last one that
    /// is open of an unmounted file system may wait for its drive.
    pub(super) fn leave(&self, slot: Slot) {
        let root = self.trees[slot.index()].root.write().take();
        let mut open = self.open.lock();
        let keys: Vec<_> = open.iter().map(|(key, _)| *key).filter(|(at, _)| *at == slot).collect();
        let gone: Vec<DirFd> = keys.iter().filter_map(|key| open.pop(key)).collect();
        drop(open);
        drop((root, gone));
    }

    /// The directory on the backing. ENOENT when it isn't there.
    ///
    /// Not to be called while holding `changing`: get the descriptors before.
    pub(super) fn get(&self, index: &RwLock<Index>, slot: Slot, dir: DirId) -> Result<DirFd> {
        if let Some(fd) = self.open_now(slot, dir)? {
            return Ok(fd);
        }
        // Step by step, not by calling itself: clients decide how deep directories are.
        'again: loop {
            let mut below = vec![dir];
            let (mut above, mut fd) = loop {
                let lowest = below.last().copied().unwrap_or(dir);
                let parent = index.read().dir_place(lowest).ok_or(Errno::NOENT)?.0;
                if let Some(fd) = self.open_now(slot, parent)? {
                    break (parent, fd);
                }
                below.push(parent);
            };
            while let Some(next) = below.pop() {
                match self.open_in(index, slot, (above, &fd), next)? {
                    Some(there) => (above, fd) = (next, there),
                    // It was moved meanwhile.
                    None => continue 'again,
                }
            }
            return Ok(fd);
        }
    }

    /// The directory if it's open, as the root always is.
    fn open_now(&self, slot: Slot, dir: DirId) -> Result<Option<DirFd>> {
        if dir == DirId::ROOT {
            let root = self.trees[slot.index()].root.read().clone();
            return root.map(Some).ok_or_else(|| Errno::STALE.into());
        }
        Ok(self.open.lock().get(&(slot, dir)).cloned())
    }

    /// Opens a directory in the one above it; `None` if that isn't where it is.
    fn open_in(
        &self,
        index: &RwLock<Index>,
        slot: Slot,
        (above, above_fd): (DirId, &DirFd),
        dir: DirId,
    ) -> Result<Option<DirFd>> {
        // From here on names and index say the same of this backing.
        let _names = self.trees[slot.index()].names.read();
        let (parent, name) =
            index.read().dir_place(dir).map(|(parent, name)| (parent, name.to_vec())).ok_or(Errno::NOENT)?;
        if parent != above {
            return Ok(None);
        }
        let fd = open_dir_below(above_fd.as_fd(), &name)
            .map_err(|e| Error::on(slot)(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let fd = Arc::new(fd);
        self.open.lock().put((slot, dir), fd.clone());
        // It may have been removed, and forgotten, since it was opened: then nobody would forget it again.
        if !index.read().slots(dir).is_some_and(|slots| slots.has(slot)) {
            self.forget(dir, SlotSet::one(slot));
        }
        Ok(Some(fd))
    }

    /// The directory on the backing, if it's open already. Never the root.
    pub(super) fn peek(&self, slot: Slot, dir: DirId) -> Option<DirFd> {
        self.open.lock().peek(&(slot, dir)).cloned()
    }

    /// To be held while names of directories change on these backings.
    pub(super) fn changing(&self, slots: SlotSet) -> Changing<'_> {
        Changing { _trees: slots.iter().map(|slot| self.trees[slot.index()].names.write()).collect() }
    }

    /// The directory is no more, on these backings.
    pub(super) fn forget(&self, dir: DirId, slots: SlotSet) {
        let mut open = self.open.lock();
        for slot in slots.iter() {
            open.pop(&(slot, dir));
        }
    }
}
