//! Directories of the backings, kept open: every access to a file goes through its directory's descriptor.
//!
//! What always holds: a descriptor is the directory itself, whatever it's called meanwhile. It's found from
//! the backing's root one component at a time, through no symbolic link and into no other mount, so nothing
//! that a client does to names leads outside the backing. Names in the index decide; a directory that isn't
//! where the index says it is counts as missing from that backing.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::locks::NameLocks;
use crate::backing::{Backing, open_dir_below};
use crate::index::{DirId, Index, Slot, SlotSet};

/// A directory on a backing, open with `O_PATH`.
pub(super) type DirFd = Arc<OwnedFd>;

/// The open directories.
pub(super) struct Dirs {
    roots: Vec<DirFd>,
    open: Mutex<LruCache<(Slot, DirId), DirFd>>,
}

impl Dirs {
    /// For these backings; keeps at most `capacity` directories open besides the roots.
    pub(super) fn new(backings: &[Backing], capacity: NonZeroUsize) -> std::io::Result<Dirs> {
        let roots = backings
            .iter()
            .map(|b| Ok(Arc::new(b.root().try_clone_to_owned()?)))
            .collect::<std::io::Result<_>>()?;
        Ok(Dirs { roots, open: Mutex::new(LruCache::new(capacity)) })
    }

    /// The directory on the backing. ENOENT when it isn't there.
    pub(super) fn get(
        &self,
        index: &RwLock<Index>,
        locks: &NameLocks,
        slot: Slot,
        dir: DirId,
    ) -> Result<DirFd> {
        if dir == DirId::ROOT {
            return Ok(self.roots[slot.index()].clone());
        }
        if let Some(fd) = self.open.lock().get(&(slot, dir)) {
            return Ok(fd.clone());
        }
        loop {
            let place = |index: &Index| index.dir_place(dir).map(|(parent, name)| (parent, name.to_vec()));
            let (parent, name) = place(&index.read()).ok_or(Errno::NOENT)?;
            let parent_fd = self.get(index, locks, slot, parent)?;
            let opened = open_dir_below(parent_fd.as_fd(), &name);
            let moved = || place(&index.read()).as_ref() != Some(&(parent, name.clone()));
            match opened {
                // It may have been renamed meanwhile, and another directory have taken its name.
                Ok(_) if moved() => {}
                Ok(fd) => {
                    let fd = Arc::new(fd);
                    self.open.lock().put((slot, dir), fd.clone());
                    return Ok(fd);
                }
                Err(e) => {
                    // A rename of it may be half done: wait for its end and look again.
                    drop(locks.lock(parent, &name));
                    if !moved() {
                        return Err(Error::on(slot)(Errno::from_io_error(&e).unwrap_or(Errno::IO)));
                    }
                }
            }
        }
    }

    /// The directory is no more.
    pub(super) fn forget(&self, dir: DirId, slots: SlotSet) {
        let mut open = self.open.lock();
        for slot in slots.iter() {
            open.pop(&(slot, dir));
        }
    }
}
