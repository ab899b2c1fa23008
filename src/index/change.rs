//! Changing the index: names come, go, and stand for something else.
//!
//! What always holds: counts, tables and lists of children agree after each of these calls; what fails has changed
//! nothing.

use super::entry::{Entry, SHADOWED, Target};
use super::{
    AddError, Dir, DirId, EntryId, FileRef, Index, Kind, NO_ENTRY, NameRef, PackedIno, SlotSet, What, shard,
    spread,
};

impl Index {
    /// The inode number in its packed form.
    pub fn pack_ino(&mut self, ino: u64) -> PackedIno {
        PackedIno::plain(ino).unwrap_or_else(|| {
            let wide = &mut self.wide;
            let number = *self.wide_numbers.entry(ino).or_insert_with(|| {
                wide.push(ino);
                (wide.len() - 1) as u32
            });
            PackedIno::wide(number)
        })
    }

    /// Adds a file's name. `Ok(Err(entry))` when the name is taken, by that entry.
    pub fn add_file(
        &mut self,
        dir: DirId,
        name: &[u8],
        file: FileRef,
    ) -> Result<Result<EntryId, EntryId>, AddError> {
        debug_assert!(file.kind != Kind::Dir);
        if !self.members.has(file.slot) {
            return Err(AddError::NotAMember);
        }
        let added = self.add(dir, name, What::File(file))?;
        if added.is_ok() {
            self.files[file.slot.index()] += 1;
        }
        Ok(added)
    }

    /// Adds a directory's name. `Ok(Err(entry))` when the name is taken, by that entry.
    pub fn add_dir(
        &mut self,
        dir: DirId,
        name: &[u8],
        slots: SlotSet,
    ) -> Result<Result<DirId, EntryId>, AddError> {
        if self.next_dir == NO_ENTRY {
            return Err(AddError::Full);
        }
        let slots = slots.both(self.members);
        if slots.is_empty() {
            return Err(AddError::NotAMember);
        }
        let known = self.numbers.of(dir, name).filter(|id| !self.dirs.contains_key(id));
        let id = known.unwrap_or(DirId(self.next_dir));
        let entry = match self.add(dir, name, What::Dir(id))? {
            Ok(entry) => entry,
            Err(taken) => return Ok(Err(taken)),
        };
        if known.is_none() {
            self.next_dir += 1;
        }
        let kept = self.numbers.keep(id, dir, name);
        let (children, changes) = Default::default();
        self.dirs.insert(id, Dir { entry: entry.0, subdirs: 0, slots, children, changes, kept });
        Ok(Ok(id))
    }

    /// Takes a name away, and with an (empty) directory's name the directory.
    pub fn remove(&mut self, entry: EntryId) {
        self.uncount(entry);
        self.detach(entry);
        self.forget_entry(entry);
        self.shadows.remove(&entry.0);
        match self.what(entry) {
            What::Dir(dir) => {
                let removed = self.dirs.remove(&dir);
                removed.into_iter().for_each(|dir| self.numbers.drop(dir.kept));
            }
            What::File(file) => self.files[file.slot.index()] -= 1,
        }
        self.free_entry(entry);
    }

    /// Gives the entry another place. The name must be free there.
    pub fn rename(&mut self, entry: EntryId, dir: DirId, name: &[u8]) -> Result<(), AddError> {
        if !self.dirs.contains_key(&dir) {
            return Err(AddError::DirGone);
        }
        let new = self.names.add(name).ok_or(AddError::Full)?;
        self.uncount(entry);
        self.detach(entry);
        let moved = &mut self.entries[entry.0 as usize];
        let old = std::mem::replace(&mut moved.name, new);
        moved.dir = dir;
        self.names.remove(old);
        self.attach(entry);
        self.keep_place(entry);
        self.recount(entry);
        Ok(())
    }

    /// Lets two entries change places.
    pub fn exchange(&mut self, one: EntryId, other: EntryId) {
        self.uncount(one);
        self.uncount(other);
        self.detach(one);
        self.detach(other);
        let (a, b) = (self.entries[one.0 as usize], self.entries[other.0 as usize]);
        for (entry, place) in [(one, b), (other, a)] {
            let entry = &mut self.entries[entry.0 as usize];
            (entry.dir, entry.name) = (place.dir, place.name);
        }
        self.attach(one);
        self.attach(other);
        self.keep_place(one);
        self.keep_place(other);
        self.recount(one);
        self.recount(other);
    }

    /// Lets the entry, a file's, stand for another inode.
    pub fn retarget(&mut self, entry: EntryId, file: FileRef) {
        self.uncount(entry);
        self.forget_entry(entry);
        if let What::File(old) = self.what(entry) {
            self.files[old.slot.index()] -= 1;
        }
        self.files[file.slot.index()] += 1;
        let Entry { dir, target: Target(old), .. } = self.entries[entry.0 as usize];
        if let Some(dir) = self.dirs.get_mut(&dir) {
            *dir.changes.get_mut() += 1;
        }
        let shadowed = old & SHADOWED;
        self.entries[entry.0 as usize].target = Target(Target::new(What::File(file)).0 | shadowed);
        self.recount(entry);
    }

    /// Says which backings have a copy of this path that is not the file.
    pub fn set_shadows(&mut self, entry: EntryId, slots: SlotSet) {
        let slots = slots.both(self.members);
        let target = &mut self.entries[entry.0 as usize].target.0;
        if slots.is_empty() {
            *target &= !SHADOWED;
            self.shadows.remove(&entry.0);
        } else {
            *target |= SHADOWED;
            self.shadows.insert(entry.0, slots);
        }
    }

    /// Says which backings have the directory.
    pub fn set_slots(&mut self, dir: DirId, slots: SlotSet) {
        let slots = slots.both(self.members);
        if let Some(dir) = self.dirs.get_mut(&dir) {
            dir.slots = slots;
        }
    }

    // ---- inside ----

    fn add(&mut self, dir: DirId, name: &[u8], what: What) -> Result<Result<EntryId, EntryId>, AddError> {
        if !self.dirs.contains_key(&dir) {
            return Err(AddError::DirGone);
        }
        let hash = self.hashing.of(dir, name);
        if let Some(taken) = self.by_name[shard(hash)].find(spread(hash), |e| self.is(*e, dir, name)) {
            return Ok(Err(EntryId(*taken)));
        }
        let name = self.names.add(name).ok_or(AddError::Full)?;
        let entry = self.new_entry(dir, name, hash, what)?;
        self.usage.start(entry.0);
        self.attach_hashed(entry, hash);
        Ok(Ok(entry))
    }

    /// Room for an entry that no table knows yet, nor `usage`.
    pub(super) fn new_entry(
        &mut self,
        dir: DirId,
        name: NameRef,
        hash: u32,
        what: What,
    ) -> Result<EntryId, AddError> {
        let entry = Entry { name, dir, target: Target::new(what) };
        let number = match self.numbers.of_entry(hash).or_else(|| self.free.pop()) {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                let number = u32::try_from(self.entries.len()).map_err(|_| AddError::Full)?;
                if number == NO_ENTRY {
                    return Err(AddError::Full);
                }
                self.entries.push(entry);
                number
            }
        };
        self.numbers.keep_entry(number, hash);
        Ok(EntryId(number))
    }

    /// Gives the room of an entry back that no table knows any more.
    pub(super) fn free_entry(&mut self, entry: EntryId) {
        let freed = &mut self.entries[entry.0 as usize];
        self.names.remove(freed.name);
        freed.dir = DirId(NO_ENTRY);
        self.numbers.drop_entry(entry.0);
        self.free.push(entry.0);
    }

    fn attach(&mut self, entry: EntryId) {
        self.attach_hashed(entry, self.hash_of(entry));
    }

    /// The hash of the entry's name where it is.
    pub(super) fn hash_of(&self, entry: EntryId) -> u32 {
        let (dir, name) = self.place(entry);
        self.hashing.of(dir, name)
    }

    fn attach_hashed(&mut self, entry: EntryId, hash: u32) {
        let (entries, names, hashing) = (&self.entries, &self.names, self.hashing);
        let rehash = |e: &u32| {
            let e = &entries[*e as usize];
            spread(hashing.of(e.dir, names.get(e.name)))
        };
        self.by_name[shard(hash)].insert_unique(spread(hash), entry.0, rehash);
        let Entry { dir, target, .. } = self.entries[entry.0 as usize];
        if let Some(dir) = self.dirs.get_mut(&dir) {
            dir.children.insert(entry.0);
            *dir.changes.get_mut() += 1;
            dir.subdirs += u32::from(matches!(target.what(), What::Dir(_)));
        }
    }

    fn detach(&mut self, entry: EntryId) {
        let (dir, hash) = (self.place(entry).0, self.hash_of(entry));
        if let Ok(found) = self.by_name[shard(hash)].find_entry(spread(hash), |e| *e == entry.0) {
            found.remove();
        }
        let is_dir = matches!(self.what(entry), What::Dir(_));
        if let Some(dir) = self.dirs.get_mut(&dir) {
            dir.children.remove(entry.0);
            *dir.changes.get_mut() += 1;
            dir.subdirs -= u32::from(is_dir);
        }
    }
}
