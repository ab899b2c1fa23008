//! The host engine: a ring and its thread for each backing, so that a drive that hangs holds up its own
//! transfers alone.

use std::io;

use super::ring::Ring;
use crate::direct::abi::Path;
use crate::direct::engine::{Engine, Op};

/// io_uring into clients' memory.
pub(crate) struct HostEngine {
    rings: Vec<Ring>,
}

impl HostEngine {
    /// An engine for so many backings. Fails where the kernel or a container doesn't allow io_uring.
    pub(crate) fn new(backings: usize) -> io::Result<HostEngine> {
        Ok(HostEngine { rings: (0..backings).map(Ring::start).collect::<io::Result<_>>()? })
    }
}

impl Engine for HostEngine {
    fn path(&self) -> Path {
        Path::UringHost
    }

    fn submit(&self, ops: Vec<Op>) {
        let Some(first) = ops.first().map(|op| op.file.slot()) else { return };
        if ops.iter().all(|op| op.file.slot() == first) {
            return self.rings[first.index()].take(ops);
        }
        let mut by_ring: Vec<Vec<Op>> = self.rings.iter().map(|_| Vec::new()).collect();
        for op in ops {
            by_ring[op.file.slot().index()].push(op);
        }
        for (ring, ops) in self.rings.iter().zip(by_ring) {
            if !ops.is_empty() {
                ring.take(ops);
            }
        }
    }
}
