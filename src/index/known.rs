//! The nodes that the kernel knows: they're found at once.
//!
//! What always holds: a node is among them from when the kernel is told of it until it has forgotten it as often as
//! it was told, as FORGET counts it: a LOOKUP may be answered before the FORGET of an earlier one is read. Being
//! among them, or not any more, makes things fast or slow, and nothing right or wrong.

use std::hash::BuildHasher;
use std::sync::atomic::Ordering::SeqCst;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::entry::INODE;
use super::{EntryId, Index, NO_ENTRY, NodeId, PackedIno, Slot, What};

/// How often the kernel was told of nodes, beyond the first time. Most are told once.
#[derive(Debug, Default)]
pub(super) struct ToldAgain(Mutex<HashMap<NodeId, u64>>);

impl ToldAgain {
    fn tell(&self, node: NodeId) {
        *self.0.lock().entry(node).or_default() += 1;
    }

    /// The kernel forgets so many times that it was told. Whether it knows the node no more.
    fn forget(&mut self, node: NodeId, times: u64) -> bool {
        let told = self.0.get_mut();
        let again = told.remove(&node).unwrap_or(0);
        let left = (again + 1).saturating_sub(times);
        if left > 1 {
            told.insert(node, left - 1);
        } else if told.capacity() > 1024 && told.len() < told.capacity() / 8 {
            told.shrink_to(told.len() * 2);
        }
        left == 0
    }
}

impl Index {
    /// A name of the node, if it has one left. One of them if it has several.
    ///
    /// Nodes that the kernel was told of are found at once; any other costs a pass over the index.
    pub fn find_node(&self, slot: Slot, ino: PackedIno) -> Option<EntryId> {
        let node = NodeId::file(slot, ino);
        let hash = self.hasher.hash_one(node);
        if let Some(found) = self.by_node.find(hash, |e| self.what(EntryId(*e)).node() == node) {
            return Some(EntryId(*found));
        }
        self.names_of(slot, ino).next()
    }

    /// All names of the node. Costs a pass over the index.
    pub(super) fn names_of(&self, slot: Slot, ino: PackedIno) -> impl Iterator<Item = EntryId> {
        let wanted = ino.bits() | u64::from(slot.0) << 48;
        let is_its = move |entry: &super::Entry| {
            entry.dir.0 != NO_ENTRY
                && entry.target.0 & INODE == wanted
                && matches!(entry.target.what(), What::File(_))
        };
        (0..).map(EntryId).zip(&self.entries).filter(move |(_, entry)| is_its(entry)).map(|(id, _)| id)
    }

    /// Whether the node is one that the kernel was told of and has a name.
    pub fn find_known(&self, slot: Slot, ino: PackedIno) -> bool {
        self.known(slot, ino).is_some()
    }

    /// A name of a node that the kernel knows. `None` when it has none, or the kernel doesn't know it.
    pub fn known(&self, slot: Slot, ino: PackedIno) -> Option<EntryId> {
        let node = NodeId::file(slot, ino);
        let hash = self.hasher.hash_one(node);
        self.by_node.find(hash, |e| self.what(EntryId(*e)).node() == node).map(|found| EntryId(*found))
    }

    /// The kernel is told of the node of this entry: it's to be found quickly.
    pub fn remember(&mut self, entry: EntryId) {
        let node = self.what(entry).node();
        let hash = self.hasher.hash_one(node);
        let (entries, hasher) = (&self.entries, &self.hasher);
        let rehash = |e: &u32| hasher.hash_one(entries[*e as usize].target.what().node());
        if self.by_node.find(hash, |e| entries[*e as usize].target.what().node() == node).is_some() {
            self.told_again.tell(node);
        }
        if self.by_node.find(hash, |e| *e == entry.0).is_none() {
            self.by_node.insert_unique(hash, entry.0, rehash);
        }
    }

    /// The same, where it's found quickly already; false where it isn't.
    pub fn remember_again(&self, entry: EntryId) -> bool {
        let known = self.is_remembered(entry);
        if known {
            self.told_again.tell(self.what(entry).node());
        }
        known
    }

    /// Directories that have a name of the node show something else from now on, though their names are the same:
    /// those of which the kernel was told. One that it wasn't told of shows it without its being kept (`fs::listings`).
    pub fn changed_for_others(&self, slot: Slot, ino: PackedIno) {
        let node = NodeId::file(slot, ino);
        let names = self.by_node.iter_hash(self.hasher.hash_one(node)).map(|e| EntryId(*e));
        for entry in names.filter(|e| self.what(*e).node() == node) {
            if let Some(dir) = self.dirs.get(&self.place(entry).0) {
                dir.changes.fetch_add(1, SeqCst);
            }
        }
    }

    /// Whether the entry's node is among those found quickly.
    pub fn is_remembered(&self, entry: EntryId) -> bool {
        let hash = self.hasher.hash_one(self.what(entry).node());
        self.by_node.find(hash, |e| *e == entry.0).is_some()
    }

    /// The kernel forgets a node, of which it was told so many times. If it asks for it all the same, it's found the
    /// slow way.
    pub fn forget(&mut self, slot: Slot, ino: PackedIno, times: u64) {
        let node = NodeId::file(slot, ino);
        if !self.told_again.forget(node, times) {
            return;
        }
        let hash = self.hasher.hash_one(node);
        let entries = &self.entries;
        while let Ok(found) =
            self.by_node.find_entry(hash, |e| entries[*e as usize].target.what().node() == node)
        {
            found.remove();
        }
        self.shrink_known();
    }

    pub(super) fn forget_entry(&mut self, entry: EntryId) {
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
}
