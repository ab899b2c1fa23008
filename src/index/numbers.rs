//! Numbers, kept for a daemon after this one: those of merged directories, by which the kernel knows them, and
//! those of entries, by which a listing that has begun goes on.
//!
//! What always holds: where each directory is, by its parent's number and its name, is written down before
//! anyone is told of it, if there is a [`State`]. A daemon that takes over gives the directories that it finds
//! at these places the numbers that they had, and never gives a number again that any had.

use std::sync::Arc;

use hashbrown::HashMap;

use super::entry::Entry;
use super::{DirId, EntryId, Index, NameHash, What};
use crate::supervise::{State, name_hash};

/// Where a directory's number is written down, if it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept(Option<u32>);

/// What directories are called.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    state: Option<Arc<State>>,
    /// Those of the daemon before that haven't been found yet: the number, and where it's written down.
    former: HashMap<(DirId, u64), (DirId, u32)>,
    /// The same of entries, by the hash of directory and name; 0 is no hash.
    former_entries: HashMap<u32, u32>,
}

impl Numbers {
    /// The number that the directory of this place had.
    pub(super) fn of(&self, parent: DirId, name: &[u8]) -> Option<DirId> {
        if self.former.is_empty() {
            return None;
        }
        self.former.get(&(parent, name_hash(name))).map(|(dir, _)| *dir)
    }

    /// Writes a directory's number down.
    pub(super) fn keep(&mut self, dir: DirId, parent: DirId, name: &[u8]) -> Kept {
        let Some(state) = &self.state else { return Kept(None) };
        if let Some((_, at)) = self.former.remove(&(parent, name_hash(name))) {
            return Kept(Some(at));
        }
        Kept(state.keep_dir(dir.0, parent.0, name))
    }

    /// The number that the entry of this name had.
    pub(super) fn of_entry(&mut self, hash: u32) -> Option<u32> {
        if self.former_entries.is_empty() {
            return None;
        }
        self.former_entries.remove(&hash.max(1))
    }

    pub(super) fn keep_entry(&self, entry: u32, hash: u32) {
        if let Some(state) = &self.state {
            state.keep_name(entry, hash.max(1));
        }
    }

    pub(super) fn drop_entry(&self, entry: u32) {
        if let Some(state) = &self.state {
            state.drop_name(entry);
        }
    }

    pub(super) fn drop(&mut self, kept: Kept) {
        if let (Some(state), Some(at)) = (&self.state, kept.0) {
            state.drop_dir(at);
        }
    }

    /// It's elsewhere: that is written down before the old place is forgotten.
    fn moved(&mut self, kept: Kept, dir: DirId, parent: DirId, name: &[u8]) -> Kept {
        let new = self.keep(dir, parent, name);
        self.drop(kept);
        new
    }
}

impl Index {
    /// Numbers of directories are kept in this state, and those that it has are given again.
    pub fn keep_in(&mut self, state: Arc<State>) {
        self.hashing = NameHash::seeded(state.seed(self.hashing.seed()));
        self.next_dir = state.next_dir().max(1);
        let known = state.dirs().into_iter();
        self.numbers.former =
            known.map(|(parent, name, dir, at)| ((DirId(parent), name), (DirId(dir), at))).collect();
        let (entries, end) = state.names();
        self.numbers.former_entries = entries;
        self.entries.resize(end as usize, Entry::FREE);
        self.numbers.state = Some(state);
    }

    /// All that is there has been found: what else had a number is gone. Every node may be one that the kernel
    /// knows.
    pub fn is_found(&mut self) {
        let Some(state) = &self.numbers.state else { return };
        let recovered = state.is_recovered();
        for (_, (_, at)) in self.numbers.former.drain() {
            state.drop_dir(at);
        }
        self.numbers.former.shrink_to_fit();
        for (_, at) in std::mem::take(&mut self.numbers.former_entries) {
            state.drop_name(at);
        }
        let is_free = |at: &u32| self.entries[*at as usize].dir == DirId::NONE;
        self.free = (0..self.entries.len() as u32).filter(is_free).collect();
        if recovered {
            for entry in 0..self.entries.len() as u32 {
                if let Some(What::File(_)) = self.live(EntryId(entry)) {
                    self.remember(EntryId(entry));
                }
            }
        }
    }

    /// Writes down where the entry is now.
    pub(super) fn keep_place(&mut self, entry: EntryId) {
        let at = &self.entries[entry.0 as usize];
        self.numbers.keep_entry(entry.0, self.hash_of(entry));
        let What::Dir(id) = at.target.what() else { return };
        if let Some(dir) = self.dirs.get_mut(&id) {
            dir.kept = self.numbers.moved(dir.kept, id, at.dir, self.names.get(at.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::index::{Slot, SlotSet};

    #[test]
    fn directories_are_called_what_they_were() {
        let state = Arc::new(State::create().unwrap());
        let mut index = Index::new(1);
        index.keep_in(state.clone());
        let here = SlotSet::one(Slot(0));
        let add =
            |index: &mut Index, dir, name: &str| index.add_dir(dir, name.as_bytes(), here).unwrap().unwrap();
        let a = add(&mut index, DirId::ROOT, "a");
        let b = add(&mut index, a, "b");
        let gone = add(&mut index, b, "gone");
        let c = add(&mut index, DirId::ROOT, "c");
        let entry = |index: &Index, dir, name: &str| index.find(dir, name.as_bytes()).unwrap().0;
        index.rename(entry(&index, a, "b"), c, b"moved").unwrap();
        index.exchange(entry(&index, DirId::ROOT, "a"), entry(&index, DirId::ROOT, "c"));
        index.remove(entry(&index, b, "gone"));
        drop(index);

        let state = Arc::new(State::take_over(state.fd().as_fd().try_clone_to_owned().unwrap()).unwrap());
        let mut index = Index::new(1);
        index.keep_in(state);
        // Found in another order, with one that is new.
        let new = add(&mut index, DirId::ROOT, "new");
        assert_eq!(add(&mut index, DirId::ROOT, "a"), c);
        assert_eq!(add(&mut index, c, "moved"), b);
        let again = add(&mut index, b, "gone");
        assert_eq!(add(&mut index, DirId::ROOT, "c"), a);
        index.is_found();
        let next = add(&mut index, a, "next");
        assert!(![a, b, c, gone].iter().any(|old| [new, again, next].contains(old)), "no number twice");
    }
}
