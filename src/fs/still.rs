//! Inodes kept still: nobody opens or changes one while it's moved or evicted.
//!
//! What always holds: an operation that goes by a node's inode (open, attributes) holds `using` from finding
//! the inode to being done with it, or to being counted as an open; who takes the inode away from under its
//! name holds `still`. Locks are taken in this order: a name's, then a node's. Several nodes share a lock: so
//! nobody holds one while taking another.

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::NodeId;

const STRIPES: usize = 64;

/// The locks.
pub(super) struct Stillness {
    stripes: Vec<RwLock<()>>,
}

impl Stillness {
    pub(super) fn new() -> Stillness {
        Stillness { stripes: (0..STRIPES).map(|_| RwLock::new(())).collect() }
    }

    fn stripe(&self, node: NodeId) -> &RwLock<()> {
        // Inode numbers on XFS and ext4 differ in the low bits, the slot is in the high ones.
        let mixed = (node.0 ^ node.0 >> 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.stripes[mixed as usize >> 58]
    }

    /// The node is being used.
    pub(super) fn using(&self, node: NodeId) -> RwLockReadGuard<'_, ()> {
        // Recursive: an operation may go by the node's inode again while it holds this.
        self.stripe(node).read_recursive()
    }

    /// Waits until nobody uses the node, and keeps it so.
    pub(super) fn still(&self, node: NodeId) -> RwLockWriteGuard<'_, ()> {
        self.stripe(node).write()
    }
}
