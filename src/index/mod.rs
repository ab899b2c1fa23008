//! Names to inodes: the merged tree of all backings, in memory.
//!
//! What always holds:
//! - every name is in one directory once; what it stands for is a merged directory or one inode on one
//!   backing. Other backings' copies of the same path are *shadows*, kept beside, not in, the tree;
//! - nothing here touches a disk or waits: callers hold the index's lock for nanoseconds to microseconds;
//! - attributes are not here. They come from the backing each time, because the kernel grows files by
//!   itself in passthrough mode.
//!
//! Memory per file: a 16-byte entry, its name in whole granules of 8 bytes, 5 to 11 bytes of hash table,
//! about 2 of its directory's list, 4 of its last use, and 4 of its size where sizes are counted.

mod children;
mod entry;
mod join;
mod load;
mod members;
mod names;
mod node;
mod numbers;
mod scan;
mod usage;

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use children::Children;
use entry::{Entry, INODE, SHADOWED, Target};
pub use entry::{EntryId, FileRef, What};
pub use join::{Joined, Joining, Subtree, merge_subtree, read_subtree};
pub use members::DirName;
use names::Names;
pub use node::{DirId, Kind, MAX_BACKINGS, Node, NodeId, PackedIno, Slot, SlotSet};
pub(crate) use scan::identify;
pub use scan::{MAX_DEPTH, Problem, Progress, Report, Source, scan};
pub use usage::{CreatorCode, Moment};

/// Tables of names. Several, so that one that grows moves a small part of all names at a time.
const SHARDS: usize = 64;
const NO_ENTRY: u32 = u32::MAX;

/// Why a name can't be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// 2^32 names, 2^32 directories over a mount's life, or 32 GiB of names.
    #[error("the index is full")]
    Full,
    /// The directory was removed.
    #[error("the directory was removed")]
    DirGone,
    /// The backing was removed.
    #[error("the backing was removed")]
    NotAMember,
}

/// A merged directory.
struct Dir {
    /// Its own name; `NO_ENTRY` for the root.
    entry: u32,
    /// How many of its children are directories: `st_nlink` less two.
    subdirs: u32,
    /// The backings that have it.
    slots: SlotSet,
    children: Children,
    /// Where its number is kept for a daemon after this one.
    kept: numbers::Kept,
}

/// What a mount knows of its names. One lock around it, never held across a disk call.
#[derive(Default)]
pub struct Index {
    entries: Vec<Entry>,
    free: Vec<u32>,
    names: Names,
    by_name: Vec<HashTable<u32>>,
    /// Entries of the nodes that the kernel knows; the others are found by `find_node` when it must be.
    by_node: HashTable<u32>,
    dirs: HashMap<DirId, Dir>,
    next_dir: u32,
    wide: Vec<u64>,
    wide_numbers: HashMap<u64, u32>,
    shadows: HashMap<u32, SlotSet>,
    files: Vec<u64>,
    usage: usage::Usage,
    numbers: numbers::Numbers,
    /// The backings that names can be entered on.
    members: SlotSet,
    hasher: DefaultHashBuilder,
}

impl Index {
    /// An index of just the root directory, which every one of the backings has.
    pub fn new(backings: usize) -> Index {
        let mut index = Index {
            by_name: (0..SHARDS).map(|_| HashTable::new()).collect(),
            next_dir: 1,
            files: vec![0; MAX_BACKINGS],
            members: SlotSet::first(backings),
            ..Index::default()
        };
        let root = Dir {
            entry: NO_ENTRY,
            subdirs: 0,
            slots: SlotSet::first(backings),
            children: Children::default(),
            kept: numbers::Kept::default(),
        };
        index.dirs.insert(DirId::ROOT, root);
        index
    }

    // ---- finding ----

    /// What `name` in `dir` stands for.
    pub fn find(&self, dir: DirId, name: &[u8]) -> Option<(EntryId, What)> {
        let hash = self.hash(dir, name);
        let found = self.by_name[shard(hash)].find(spread(hash), |e| self.is(*e, dir, name))?;
        Some((EntryId(*found), self.entries[*found as usize].target.what()))
    }

    /// A name of the node, if it has one left. One of them if it has several.
    ///
    /// Nodes that the kernel was told of are found at once; any other costs a pass over the index.
    pub fn find_node(&self, slot: Slot, ino: PackedIno) -> Option<EntryId> {
        let node = NodeId::file(slot, ino);
        let hash = self.hasher.hash_one(node);
        if let Some(found) = self.by_node.find(hash, |e| self.what(EntryId(*e)).node() == node) {
            return Some(EntryId(*found));
        }
        let wanted = ino.bits() | u64::from(slot.0) << 48;
        let position = self.entries.iter().position(|entry| {
            entry.dir.0 != NO_ENTRY
                && entry.target.0 & INODE == wanted
                && matches!(entry.target.what(), What::File(_))
        })?;
        Some(EntryId(position as u32))
    }

    /// Whether the node is one that the kernel was told of and has a name.
    pub fn find_known(&self, slot: Slot, ino: PackedIno) -> bool {
        let node = NodeId::file(slot, ino);
        self.by_node.find(self.hasher.hash_one(node), |e| self.what(EntryId(*e)).node() == node).is_some()
    }

    /// What the entry stands for.
    pub fn what(&self, entry: EntryId) -> What {
        self.entries[entry.0 as usize].target.what()
    }

    /// What the entry stands for, if it's there; its number may be another's by now.
    pub fn live(&self, entry: EntryId) -> Option<What> {
        self.entries.get(entry.0 as usize).filter(|e| e.dir.0 != NO_ENTRY).map(|e| e.target.what())
    }

    /// The entry's directory and name.
    pub fn place(&self, entry: EntryId) -> (DirId, &[u8]) {
        let entry = &self.entries[entry.0 as usize];
        (entry.dir, self.names.get(entry.name))
    }

    /// The backings that have the directory. `None` when it was removed.
    pub fn slots(&self, dir: DirId) -> Option<SlotSet> {
        self.dirs.get(&dir).map(|dir| dir.slots)
    }

    /// How many directories are in the directory.
    pub fn subdirs(&self, dir: DirId) -> u32 {
        self.dirs.get(&dir).map_or(0, |dir| dir.subdirs)
    }

    /// Whether no visible name is in the directory.
    pub fn is_empty(&self, dir: DirId) -> bool {
        self.dirs.get(&dir).is_none_or(|dir| dir.children.is_empty())
    }

    /// The directory's own place: parent and name. `None` for the root, or when it was removed.
    pub fn dir_place(&self, dir: DirId) -> Option<(DirId, &[u8])> {
        let entry = self.dirs.get(&dir)?.entry;
        (entry != NO_ENTRY).then(|| self.place(EntryId(entry)))
    }

    /// The directory's parent; the root's is the root.
    pub fn parent(&self, dir: DirId) -> DirId {
        self.dir_place(dir).map_or(DirId::ROOT, |(parent, _)| parent)
    }

    /// The directory's path below the root, without slashes at its ends. Empty for the root.
    pub fn path(&self, dir: DirId) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = dir;
        while let Some((parent, name)) = self.dir_place(at) {
            parts.push(name);
            at = parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// The path of `name` in the directory, below the root.
    pub fn path_of(&self, dir: DirId, name: &[u8]) -> Vec<u8> {
        let mut path = self.path(dir);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Whether `dir` is `ancestor` or lies below it.
    pub fn is_within(&self, dir: DirId, ancestor: DirId) -> bool {
        let mut at = dir;
        loop {
            if at == ancestor {
                return true;
            }
            match self.dir_place(at) {
                Some((parent, _)) => at = parent,
                None => return false,
            }
        }
    }

    /// The directory's entries with numbers from `from` on, ascending.
    pub fn children(&self, dir: DirId, from: u32) -> impl Iterator<Item = EntryId> {
        self.dirs.get(&dir).map(|dir| dir.children.from(from)).into_iter().flatten().map(EntryId)
    }

    /// The backings with a copy of this path that is not the file.
    pub fn shadows(&self, entry: EntryId) -> SlotSet {
        if self.entries[entry.0 as usize].target.0 & SHADOWED == 0 {
            return SlotSet::EMPTY;
        }
        self.shadows.get(&entry.0).copied().unwrap_or_default()
    }

    /// The inode number behind its packed form.
    pub fn ino(&self, packed: PackedIno) -> u64 {
        match packed.as_wide() {
            Some(n) => self.wide.get(n as usize).copied().unwrap_or(0),
            None => packed.bits(),
        }
    }

    // ---- counting ----

    /// Names that are not directories.
    pub fn files(&self) -> u64 {
        self.files.iter().sum()
    }

    /// Names whose file is on the backing.
    pub fn files_on(&self, slot: Slot) -> u64 {
        self.files[slot.index()]
    }

    /// Directories, the root included.
    pub fn directories(&self) -> u64 {
        self.dirs.len() as u64
    }

    /// Copies that stand behind another backing's file.
    pub fn shadow_count(&self) -> u64 {
        self.shadows.values().map(|slots| u64::from(slots.len())).sum()
    }

    // ---- changing ----

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
        self.dirs.insert(id, Dir { entry: entry.0, subdirs: 0, slots, children: Children::default(), kept });
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
        let shadowed = self.entries[entry.0 as usize].target.0 & SHADOWED;
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

    /// The kernel now knows the node of this entry: it's to be found quickly.
    pub fn remember(&mut self, entry: EntryId) {
        let node = self.what(entry).node();
        let hash = self.hasher.hash_one(node);
        let (entries, hasher) = (&self.entries, &self.hasher);
        let rehash = |e: &u32| hasher.hash_one(entries[*e as usize].target.what().node());
        if self.by_node.find(hash, |e| *e == entry.0).is_none() {
            self.by_node.insert_unique(hash, entry.0, rehash);
        }
    }

    /// Whether the entry's node is among those found quickly.
    pub fn is_remembered(&self, entry: EntryId) -> bool {
        let hash = self.hasher.hash_one(self.what(entry).node());
        self.by_node.find(hash, |e| *e == entry.0).is_some()
    }

    /// The kernel has dropped the node. If it asks for it all the same, it's found the slow way.
    pub fn forget(&mut self, slot: Slot, ino: PackedIno) {
        let node = NodeId::file(slot, ino);
        let hash = self.hasher.hash_one(node);
        let entries = &self.entries;
        while let Ok(found) =
            self.by_node.find_entry(hash, |e| entries[*e as usize].target.what().node() == node)
        {
            found.remove();
        }
        self.shrink_known();
    }

    // ---- inside ----

    fn add(&mut self, dir: DirId, name: &[u8], what: What) -> Result<Result<EntryId, EntryId>, AddError> {
        if !self.dirs.contains_key(&dir) {
            return Err(AddError::DirGone);
        }
        let hash = self.hash(dir, name);
        if let Some(taken) = self.by_name[shard(hash)].find(spread(hash), |e| self.is(*e, dir, name)) {
            return Ok(Err(EntryId(*taken)));
        }
        let entry = self.new_entry(dir, name, what)?;
        self.attach_hashed(entry, hash);
        Ok(Ok(entry))
    }

    /// Room for an entry that no table knows yet.
    fn new_entry(&mut self, dir: DirId, name: &[u8], what: What) -> Result<EntryId, AddError> {
        let entry =
            Entry { name: self.names.add(name).ok_or(AddError::Full)?, dir, target: Target::new(what) };
        let number = match self.numbers.of_entry(dir, name).or_else(|| self.free.pop()) {
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
        self.usage.start(number);
        self.numbers.keep_entry(number, dir, name);
        Ok(EntryId(number))
    }

    /// Gives the room of an entry back that no table knows any more.
    fn free_entry(&mut self, entry: EntryId) {
        let freed = &mut self.entries[entry.0 as usize];
        self.names.remove(freed.name);
        freed.dir = DirId(NO_ENTRY);
        self.numbers.drop_entry(entry.0);
        self.free.push(entry.0);
    }

    fn attach(&mut self, entry: EntryId) {
        let (dir, name) = self.place(entry);
        let hash = self.hash(dir, name);
        self.attach_hashed(entry, hash);
    }

    fn attach_hashed(&mut self, entry: EntryId, hash: u32) {
        let (entries, names, hasher) = (&self.entries, &self.names, &self.hasher);
        let rehash = |e: &u32| {
            let e = &entries[*e as usize];
            spread(hash_in(e.dir, hash_name(hasher, names.get(e.name))))
        };
        self.by_name[shard(hash)].insert_unique(spread(hash), entry.0, rehash);
        let Entry { dir, target, .. } = self.entries[entry.0 as usize];
        if let Some(dir) = self.dirs.get_mut(&dir) {
            dir.children.insert(entry.0);
            dir.subdirs += u32::from(matches!(target.what(), What::Dir(_)));
        }
    }

    fn detach(&mut self, entry: EntryId) {
        let (dir, name) = self.place(entry);
        let hash = self.hash(dir, name);
        if let Ok(found) = self.by_name[shard(hash)].find_entry(spread(hash), |e| *e == entry.0) {
            found.remove();
        }
        let is_dir = matches!(self.what(entry), What::Dir(_));
        if let Some(dir) = self.dirs.get_mut(&dir) {
            dir.children.remove(entry.0);
            dir.subdirs -= u32::from(is_dir);
        }
    }

    fn forget_entry(&mut self, entry: EntryId) {
        let hash = self.hasher.hash_one(self.what(entry).node());
        if let Ok(found) = self.by_node.find_entry(hash, |e| *e == entry.0) {
            found.remove();
        }
    }

    fn shrink_known(&mut self) {
        if self.by_node.capacity() > 1024 && self.by_node.len() < self.by_node.capacity() / 8 {
            let (entries, hasher) = (&self.entries, &self.hasher);
            self.by_node.shrink_to(self.by_node.len() * 2, |e| {
                hasher.hash_one(entries[*e as usize].target.what().node())
            });
        }
    }

    fn is(&self, entry: u32, dir: DirId, name: &[u8]) -> bool {
        let entry = &self.entries[entry as usize];
        entry.dir == dir && self.names.get(entry.name) == name
    }

    fn hash(&self, dir: DirId, name: &[u8]) -> u32 {
        hash_in(dir, hash_name(&self.hasher, name))
    }
}

/// A name's hash, whatever its directory: the scan's threads make it before the directory has a number.
fn hash_name(hasher: &DefaultHashBuilder, name: &[u8]) -> u64 {
    hasher.hash_one(name)
}

/// The hash of a name in a directory.
fn hash_in(dir: DirId, name: u64) -> u32 {
    let mixed = name ^ u64::from(dir.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

/// For a table, which looks at the lowest and at the highest bits of 64.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn shard(hash: u32) -> usize {
    hash as usize >> 26
}

#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod tests;
