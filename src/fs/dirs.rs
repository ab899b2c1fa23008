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
use crate::index::{DirId, Index, Slot, SlotSet};

/// A directory on a backing, open with `O_PATH`.
pub(super) type DirFd = Arc<OwnedFd>;

/// A backing's directories.
struct Tree {
    root: DirFd,
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
        let tree =
            |b: &Backing| Ok(Tree { root: Arc::new(b.root().try_clone_to_owned()?), names: RwLock::new(()) });
        let trees = backings.iter().map(tree).collect::<std::io::Result<_>>()?;
        Ok(Dirs { trees, open: Mutex::new(LruCache::new(capacity)) })
    }

    /// The directory on the backing. ENOENT when it isn't there.
    ///
    /// Not to be called while holding `changing`: get the descriptors before.
    pub(super) fn get(&self, index: &RwLock<Index>, slot: Slot, dir: DirId) -> Result<DirFd> {
        let tree = &self.trees[slot.index()];
        if dir == DirId::ROOT {
            return Ok(tree.root.clone());
        }
        if let Some(fd) = self.open.lock().get(&(slot, dir)) {
            return Ok(fd.clone());
        }
        loop {
            let parent = index.read().dir_place(dir).ok_or(Errno::NOENT)?.0;
            let parent_fd = self.get(index, slot, parent)?;
            // From here on names and index say the same of this backing.
            let _names = tree.names.read();
            let (parent_now, name) = index
                .read()
                .dir_place(dir)
                .map(|(parent, name)| (parent, name.to_vec()))
                .ok_or(Errno::NOENT)?;
            if parent_now != parent {
                continue;
            }
            let fd = open_dir_below(parent_fd.as_fd(), &name)
                .map_err(|e| Error::on(slot)(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
            let fd = Arc::new(fd);
            self.open.lock().put((slot, dir), fd.clone());
            // It may have been removed, and forgotten, since it was opened: then nobody would forget it again.
            if !index.read().slots(dir).is_some_and(|slots| slots.has(slot)) {
                self.forget(dir, SlotSet::one(slot));
            }
            return Ok(fd);
        }
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
