//! What the kernel has open, in the state: handles, and the inodes that it passes through.
//!
//! What always holds: as in `state`, a record is whole before the word that makes it count.

use std::sync::atomic::{AtomicU64, Ordering::*};

use super::state::{State, end_of};

/// Handles that are kept.
pub(super) const HANDLES: usize = 1 << 21;
/// Inodes with a backing id.
pub(super) const NODES: usize = 1 << 21;

/// An open handle as it's kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandleRecord {
    /// Its number.
    pub fh: u64,
    /// The node it's of.
    pub node: u64,
    /// What tells this file from another that has its inode number later.
    pub birth: u64,
    /// The request that opened it.
    pub unique: u64,
    /// How it was opened, and what came of it.
    pub flags: u32,
    /// Whose it is.
    pub user: u32,
}

#[repr(C)]
pub(super) struct HandleSlot {
    fh: AtomicU64,
    node: AtomicU64,
    birth: AtomicU64,
    unique: AtomicU64,
    /// And, above 32 bits of them, the user.
    flags: AtomicU64,
}

/// An inode that the kernel passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Where its record is.
    pub at: u32,
    /// The node.
    pub node: u64,
    /// The kernel's number for the backing file.
    pub backing_id: u32,
}

#[repr(C)]
pub(super) struct NodeSlot {
    /// 0: free.
    node: AtomicU64,
    backing_id: AtomicU64,
}

impl NodeSlot {
    pub(super) fn is_used(&self) -> bool {
        self.node.load(Relaxed) != 0
    }
}

impl State {
    // ---- handles ----

    /// A number for a handle, never used again.
    pub fn next_serial(&self) -> u64 {
        self.header().next_serial.fetch_add(1, Relaxed)
    }

    /// Keeps a handle, at its place in the table. One beyond the table's end isn't kept.
    pub fn keep_handle(&self, at: usize, record: HandleRecord) {
        let Some(slot) = self.layout().handles.get(at) else { return };
        self.header().handles_end.fetch_max(at as u32 + 1, Release);
        slot.node.store(record.node, Relaxed);
        slot.birth.store(record.birth, Relaxed);
        slot.unique.store(record.unique, Relaxed);
        slot.flags.store(u64::from(record.user) << 32 | u64::from(record.flags), Relaxed);
        slot.fh.store(record.fh, Release);
    }

    /// Something more is to be known of a handle: these flags, which open(2) has none of.
    pub fn flag_handle(&self, at: usize, flags: u32) {
        if let Some(slot) = self.layout().handles.get(at) {
            slot.flags.fetch_or(flags.into(), Relaxed);
        }
    }

    /// The handle is closed.
    pub fn drop_handle(&self, at: usize) {
        if let Some(slot) = self.layout().handles.get(at) {
            slot.fh.store(0, Release);
        }
    }

    /// All handles that were open, with their places.
    pub fn handles(&self) -> Vec<(usize, HandleRecord)> {
        let used = &self.layout().handles[..end_of(&self.header().handles_end, HANDLES)];
        let record = |slot: &HandleSlot| {
            let flags = slot.flags.load(Relaxed);
            HandleRecord {
                fh: slot.fh.load(Acquire),
                node: slot.node.load(Relaxed),
                birth: slot.birth.load(Relaxed),
                unique: slot.unique.load(Relaxed),
                flags: flags as u32,
                user: (flags >> 32) as u32,
            }
        };
        used.iter().map(record).enumerate().filter(|(_, record)| record.fh != 0).collect()
    }

    // ---- inodes ----

    /// Keeps the kernel's number for an inode's backing file. `None` when there's no room: it's not kept.
    pub fn keep_node(&self, node: u64, backing_id: u32) -> Option<u32> {
        let at = self.nodes.lock().take(NODES)?;
        self.header().nodes_end.fetch_max(at + 1, Release);
        let slot = &self.layout().nodes[at as usize];
        slot.backing_id.store(backing_id.into(), Relaxed);
        slot.node.store(node, Release);
        Some(at)
    }

    /// The number is about to be given up.
    pub fn drop_node(&self, at: u32) {
        if let Some(slot) = self.layout().nodes.get(at as usize) {
            slot.node.store(0, Release);
            self.nodes.lock().list.push(at);
        }
    }

    /// All inodes that were passed through.
    pub fn nodes(&self) -> Vec<NodeRecord> {
        let end = self.nodes.lock().next;
        let record = |at: u32| {
            let slot = &self.layout().nodes[at as usize];
            let node = slot.node.load(Acquire);
            (node != 0).then(|| NodeRecord { at, node, backing_id: slot.backing_id.load(Relaxed) as u32 })
        };
        (0..end).filter_map(record).collect()
    }
}
