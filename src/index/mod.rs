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

mod change;
mod children;
mod entry;
mod hash;
mod join;
mod known;
mod load;
mod members;
mod names;
mod node;
mod numbers;
mod report;
mod scan;
mod source;
mod usage;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use children::Children;
use entry::{Entry, SHADOWED};
pub use entry::{EntryId, FileRef, What};
use hash::{NameHash, SHARDS, shard, spread};
pub use join::{Joined, Joining, Subtree, merge_subtree, read_subtree};
pub use members::DirName;
use names::{NameRef, Names};
pub use node::{DirId, Kind, MAX_BACKINGS, Node, NodeId, PackedIno, Slot, SlotSet};
pub use report::{Problem, Progress, Report};
pub(crate) use scan::identify;
pub use scan::{MAX_DEPTH, scan};
pub use source::{Passed, Sieve, Source};
pub use usage::{CreatorCode, Moment};

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
    /// How often what it shows has changed.
    changes: AtomicU64,
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
    told_again: known::ToldAgain,
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
    /// Hashes names.
    hashing: NameHash,
    /// Hashes nodes.
    hasher: DefaultHashBuilder,
}

impl Index {
    /// An index of just the root directory, which every one of the backings has.
    pub fn new(backings: usize) -> Index {
        Index::of(SlotSet::first(backings))
    }

    /// The same of backings with these slots.
    pub fn of(members: SlotSet) -> Index {
        let mut index = Index {
            by_name: (0..SHARDS).map(|_| HashTable::new()).collect(),
            next_dir: 1,
            files: vec![0; MAX_BACKINGS],
            members,
            ..Index::default()
        };
        let root = Dir {
            entry: NO_ENTRY,
            subdirs: 0,
            slots: members,
            children: Children::default(),
            changes: AtomicU64::new(0),
            kept: numbers::Kept::default(),
        };
        index.dirs.insert(DirId::ROOT, root);
        index
    }

    // ---- finding ----

    /// What `name` in `dir` stands for.
    pub fn find(&self, dir: DirId, name: &[u8]) -> Option<(EntryId, What)> {
        let hash = self.hashing.of(dir, name);
        let found = self.by_name[shard(hash)].find(spread(hash), |e| self.is(*e, dir, name))?;
        Some((EntryId(*found), self.entries[*found as usize].target.what()))
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

    /// How many entries the directory has.
    pub fn entries(&self, dir: DirId) -> u64 {
        self.dirs.get(&dir).map_or(0, |dir| dir.children.len())
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

    /// How often what the directory shows has changed. `None` when it was removed.
    pub fn changes(&self, dir: DirId) -> Option<u64> {
        self.dirs.get(&dir).map(|dir| dir.changes.load(SeqCst))
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

    fn is(&self, entry: u32, dir: DirId, name: &[u8]) -> bool {
        let entry = &self.entries[entry as usize];
        entry.dir == dir && self.names.get(entry.name) == name
    }
}

#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod tests;
