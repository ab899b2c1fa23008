//! Inodes kept still: nobody opens or changes one while it's moved or evicted.
//!
//! What always holds: an operation that goes by a node's inode (open, attributes) holds `using` from finding
//! the inode to being done with it, or to being counted as an open; who takes the inode away from under its
//! name holds `still`. Locks are taken in this order: a name's, then a node's. Several nodes of a backing
//! share a lock: so nobody holds one while taking another; nodes of two backings never share one, so a drive
//! that hangs keeps nobody waiting who uses another.

use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::NodeId;
use crate::index::MAX_BACKINGS;

/// Locks of each backing.
const STRIPES: usize = 512;
/// The high bits of a file's node are its slot and one more; others' are anything.
const BACKINGS: usize = MAX_BACKINGS + 1;

/// A node is being used.
pub(super) type Using<'a> = RwLockReadGuard<'a, ()>;

/// The locks.
pub(super) struct Stillness {
    stripes: Vec<RwLock<()>>,
}

impl Stillness {
    pub(super) fn new() -> Stillness {
        Stillness { stripes: (0..BACKINGS * STRIPES).map(|_| RwLock::new(())).collect() }
    }

    fn stripe(&self, node: NodeId) -> &RwLock<()> {
        // Inode numbers on XFS and ext4 differ in the low bits.
        let mixed = (node.0 << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
        let backing = (node.0 >> 48) as usize % BACKINGS;
        &self.stripes[backing * STRIPES + mixed as usize]
    }

    /// The node is being used.
    pub(super) fn using(&self, node: NodeId) -> Using<'_> {
        // Recursive: an operation may go by the node's inode again while it holds this.
        self.stripe(node).try_read_recursive().unwrap_or_else(|| {
            super::at::nowhere();
            self.stripe(node).read_recursive()
        })
    }

    /// The node is being used; `None` if that can't be for so long.
    pub(super) fn using_within(&self, node: NodeId, patience: Duration) -> Option<Using<'_>> {
        self.stripe(node).try_read_recursive_for(patience)
    }

    /// Waits until nobody uses the node, and keeps it so.
    pub(super) fn still(&self, node: NodeId) -> RwLockWriteGuard<'_, ()> {
        super::at::nowhere();
        self.stripe(node).write()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_that_hangs_keeps_no_other_waiting() {
        let still = Stillness::new();
        let node = |slot: u64, ino: u64| NodeId((slot + 1) << 48 | ino);
        let kept: Vec<_> =
            (0..STRIPES as u64 * 16).filter_map(|ino| still.stripe(node(3, ino)).try_write()).collect();
        assert_eq!(kept.len(), STRIPES, "all locks of one backing, and inodes spread over them");
        for slot in (0..64).filter(|slot| *slot != 3) {
            assert!((0..256).all(|ino| still.stripe(node(slot, ino)).try_write().is_some()), "{slot}");
        }
    }
}
