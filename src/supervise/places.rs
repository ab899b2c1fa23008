//! Where things are, in the state: merged directories with their numbers, and the places of names in listings.
//!
//! What always holds: as in `state`, a record is whole before the word that makes it count.

use std::sync::atomic::{AtomicU64, Ordering::*};

use super::state::State;

/// Merged directories that are kept.
pub(super) const DIRS: usize = 1 << 24;
/// As many as an index can have.
pub(super) const NAMES: usize = 1 << 32;

/// A merged directory: where it is. `name` is the word that counts.
#[repr(C)]
pub(super) struct DirSlot {
    /// The hash of its name; 0: free.
    name: AtomicU64,
    /// The parent's number above, its own below.
    place: AtomicU64,
}

impl DirSlot {
    pub(super) fn is_used(&self) -> bool {
        self.name.load(Relaxed) != 0
    }
}

impl State {
    // ---- names ----

    /// The seed of the names' hashes: this one, unless a daemon before has chosen another.
    pub fn seed(&self, new: u64) -> u64 {
        // 0: none was chosen.
        let seed = &self.header().seed;
        seed.compare_exchange(0, new.max(1), AcqRel, Acquire).map_or_else(|chosen| chosen, |_| new.max(1))
    }

    /// Keeps the number of a name's entry, which is its place in a listing, by the hash of the name in its
    /// directory, which isn't 0.
    pub fn keep_name(&self, at: u32, hash: u32) {
        if let Some(slot) = self.layout().names.get(at as usize) {
            slot.store(hash, Relaxed);
            if at >= self.header().names_end.load(Relaxed) {
                self.header().names_end.fetch_max(at.saturating_add(1), Release);
            }
        }
    }

    /// The number is free again.
    pub fn drop_name(&self, at: u32) {
        if let Some(slot) = self.layout().names.get(at as usize) {
            slot.store(0, Relaxed);
        }
    }

    /// All numbers there were, by the hashes of the names that had them; and where they end.
    pub fn names(&self) -> (hashbrown::HashMap<u32, u32>, u32) {
        let end = self.header().names_end.load(Acquire);
        let hash = |at: u32| self.layout().names[at as usize].load(Relaxed);
        // Of two names with one hash (1 in 2^32) the later keeps its place.
        ((0..end).map(|at| (hash(at), at)).filter(|(hash, _)| *hash != 0).collect(), end)
    }

    // ---- directories ----

    /// The least number that no directory has had.
    pub fn next_dir(&self) -> u32 {
        self.header().next_dir.load(Relaxed)
    }

    /// Keeps where a directory is. `None` when there's no room: after a crash it's another one to the kernel.
    pub fn keep_dir(&self, dir: u32, parent: u32, name: &[u8]) -> Option<u32> {
        let at = self.dirs.lock().take(DIRS)?;
        self.header().dirs_end.fetch_max(at + 1, Release);
        self.header().next_dir.fetch_max(dir.saturating_add(1), Relaxed);
        let slot = &self.layout().dirs[at as usize];
        slot.place.store(u64::from(parent) << 32 | u64::from(dir), Relaxed);
        slot.name.store(name_hash(name), Release);
        Some(at)
    }

    /// It's no more.
    pub fn drop_dir(&self, at: u32) {
        if let Some(slot) = self.layout().dirs.get(at as usize) {
            slot.name.store(0, Release);
            self.dirs.lock().list.push(at);
        }
    }

    /// All directories there were: parent and hash of the name, the number, and where the record is.
    pub fn dirs(&self) -> Vec<(u32, u64, u32, u32)> {
        let end = self.dirs.lock().next;
        let record = |at: u32| {
            let slot = &self.layout().dirs[at as usize];
            let (name, place) = (slot.name.load(Acquire), slot.place.load(Acquire));
            (name != 0).then_some(((place >> 32) as u32, name, place as u32, at))
        };
        (0..end).filter_map(record).collect()
    }
}

/// A name as a directory's record has it.
pub fn name_hash(name: &[u8]) -> u64 {
    // 0 is a free record.
    xxhash_rust::xxh3::xxh3_64(name).max(1)
}
