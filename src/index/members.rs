//! The backings that the index has names on, and passes over what is on one of them.
//!
//! What always holds: nothing is entered on a backing that isn't a member. So whoever was about to enter
//! something there while the backing was taken out is told, however late they come. A pass holds the lock for
//! a piece of the index at a time: what it has found may have changed when it's looked at.

use super::{DirId, EntryId, Index, Slot, SlotSet, What};

/// Entries that a pass looks at in one go: some tens of microseconds.
const PIECE: u32 = 16384;

/// A directory's name on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirName {
    /// The directory.
    pub id: DirId,
    /// The one above it.
    pub parent: DirId,
    /// What it's called there.
    pub name: Vec<u8>,
}

impl Index {
    /// A backing joins: from now on names can be entered on it. It has the root directory.
    pub fn admit(&mut self, slot: Slot) {
        self.members = self.members.with(slot);
        let root = self.slots(DirId::ROOT).unwrap_or_default();
        self.set_slots(DirId::ROOT, root.with(slot));
    }

    /// A backing goes: from now on nothing can be entered on it. What is there is for others to take out.
    pub fn expel(&mut self, slot: Slot) {
        self.members = self.members.without(slot);
        let root = self.slots(DirId::ROOT).unwrap_or_default();
        self.set_slots(DirId::ROOT, root.without(slot));
    }

    /// The backings that names can be entered on.
    pub fn members(&self) -> SlotSet {
        self.members
    }

    /// The next file entries on a backing, of those with numbers from `from` on, and where to go on. `None`
    /// at the end.
    pub fn files_from(&self, slot: Slot, from: u32) -> (Vec<EntryId>, Option<u32>) {
        let end = self.end();
        let to = from.saturating_add(PIECE).min(end);
        let on = |entry: &EntryId| matches!(self.live(*entry), Some(What::File(file)) if file.slot == slot);
        ((from..to).map(EntryId).filter(on).collect(), (to < end).then_some(to))
    }

    /// Files on other backings that have a shadow on this one.
    pub fn shadowed_on(&self, slot: Slot) -> Vec<EntryId> {
        let on = self.shadows.iter().filter(|(_, slots)| slots.has(slot));
        on.map(|(number, _)| EntryId(*number)).collect()
    }

    /// Files on a backing that have shadows on others.
    pub fn with_shadows(&self, slot: Slot) -> Vec<EntryId> {
        let numbers = self.shadows.keys().map(|number| EntryId(*number));
        numbers.filter(|e| matches!(self.live(*e), Some(What::File(file)) if file.slot == slot)).collect()
    }

    /// Directories, but for the root, that no other backing has.
    pub fn dirs_only_on(&self, slot: Slot) -> Vec<DirId> {
        let one = SlotSet::one(slot);
        let only = self.dirs.iter().filter(|(id, dir)| **id != DirId::ROOT && dir.slots == one);
        only.map(|(id, _)| *id).collect()
    }

    /// All directories that a backing has, the deepest first; the root isn't among them.
    pub fn dirs_on(&self, slot: Slot) -> Vec<DirName> {
        let mut found: Vec<(usize, DirName)> = self
            .dirs
            .iter()
            .filter(|(_, dir)| dir.slots.has(slot))
            .filter_map(|(id, _)| {
                let (parent, name) = self.dir_place(*id)?;
                Some((self.depth(*id), DirName { id: *id, parent, name: name.to_vec() }))
            })
            .collect();
        found.sort_by_key(|(depth, dir)| (std::cmp::Reverse(*depth), dir.id));
        found.into_iter().map(|(_, dir)| dir).collect()
    }

    /// The directory that the next new one will be: those below it were there before.
    pub fn next_dir(&self) -> DirId {
        DirId(self.next_dir)
    }

    fn depth(&self, dir: DirId) -> usize {
        std::iter::successors(Some(dir), |at| self.dir_place(*at).map(|(parent, _)| parent)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AddError, FileRef, Kind, PackedIno};
    use super::*;

    fn file(slot: u8, ino: u64) -> FileRef {
        FileRef { slot: Slot(slot), ino: PackedIno::plain(ino).unwrap(), kind: Kind::File, reason: 0 }
    }

    #[test]
    fn nothing_is_entered_on_a_backing_that_has_gone() {
        let mut index = Index::new(2);
        let dir = index.add_dir(DirId::ROOT, b"d", SlotSet::first(2)).unwrap().unwrap();
        index.expel(Slot(1));
        assert_eq!(index.add_file(dir, b"x", file(1, 7)), Err(AddError::NotAMember));
        assert_eq!(index.add_dir(dir, b"e", SlotSet::one(Slot(1))), Err(AddError::NotAMember));
        index.set_slots(dir, SlotSet::first(2));
        assert_eq!(index.slots(dir), Some(SlotSet::one(Slot(0))));
        let entry = index.add_file(dir, b"x", file(0, 7)).unwrap().unwrap();
        index.set_shadows(entry, SlotSet::one(Slot(1)));
        assert!(index.shadows(entry).is_empty());
        index.admit(Slot(1));
        assert_eq!(index.slots(DirId::ROOT), Some(SlotSet::first(2)));
        assert!(index.add_file(dir, b"y", file(1, 7)).unwrap().is_ok());
    }

    #[test]
    fn passes_find_what_is_on_one_backing() {
        let mut index = Index::new(3);
        let both = SlotSet::first(2);
        let dir = index.add_dir(DirId::ROOT, b"d", both).unwrap().unwrap();
        let inner = index.add_dir(dir, b"e", SlotSet::one(Slot(1))).unwrap().unwrap();
        let a = index.add_file(dir, b"a", file(0, 1)).unwrap().unwrap();
        let b = index.add_file(inner, b"b", file(1, 2)).unwrap().unwrap();
        index.set_shadows(a, SlotSet::one(Slot(2)));
        assert_eq!(index.files_from(Slot(1), 0), (vec![b], None));
        assert_eq!(index.files_from(Slot(0), 0), (vec![a], None));
        assert_eq!(index.shadowed_on(Slot(2)), [a]);
        assert_eq!(index.dirs_only_on(Slot(1)), [inner]);
        let order: Vec<DirId> = index.dirs_on(Slot(1)).iter().map(|d| d.id).collect();
        assert_eq!(order, [inner, dir]);
    }
}
