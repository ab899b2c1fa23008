//! Files that are being copied to another backing, and whether somebody was about to change one meanwhile.
//!
//! What always holds: whoever opens such a file to write, or changes its attributes, says so here while they
//! hold `using` on it; so a mover that has taken `still` knows of every change that its copy may lack, whatever
//! the file's times say: a clock's tick is longer than a write.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;

use super::NodeId;

/// The files.
#[derive(Default)]
pub(super) struct Moving {
    /// Each with whether it was touched.
    nodes: Mutex<Vec<(NodeId, bool)>>,
    /// How many: mostly none, and then nobody takes the lock.
    count: AtomicUsize,
}

/// A file is being copied as long as this is there.
pub(super) struct Watched<'a> {
    moving: &'a Moving,
    node: NodeId,
}

impl Moving {
    /// Watches a file. `None` if it's watched already.
    pub(super) fn watch(&self, node: NodeId) -> Option<Watched<'_>> {
        let mut nodes = self.nodes.lock();
        if nodes.iter().any(|(known, _)| *known == node) {
            return None;
        }
        nodes.push((node, false));
        self.count.store(nodes.len(), SeqCst);
        Some(Watched { moving: self, node })
    }

    /// The file is about to be changed. The caller holds `using`.
    pub(super) fn touch(&self, node: NodeId) {
        if self.count.load(SeqCst) > 0 {
            self.nodes.lock().iter_mut().filter(|(known, _)| *known == node).for_each(|(_, t)| *t = true);
        }
    }
}

impl Watched<'_> {
    /// Whether somebody was about to change it.
    pub(super) fn is_touched(&self) -> bool {
        self.moving.nodes.lock().iter().any(|(known, touched)| *known == self.node && *touched)
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let mut nodes = self.moving.nodes.lock();
        nodes.retain(|(known, _)| *known != self.node);
        self.moving.count.store(nodes.len(), SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_known_to_its_own_mover() {
        let moving = Moving::default();
        let (a, b) = (NodeId(1 << 48 | 1), NodeId(1 << 48 | 2));
        moving.touch(a);
        let watched = moving.watch(a).unwrap();
        assert!(moving.watch(a).is_none());
        let other = moving.watch(b).unwrap();
        moving.touch(a);
        assert!(watched.is_touched() && !other.is_touched());
        drop(watched);
        moving.touch(a);
        assert!(!moving.watch(a).unwrap().is_touched());
    }
}
