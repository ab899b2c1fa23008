//! The host engine: a ring and its thread for each backing, so that a drive that hangs holds up its own
//! transfers alone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::Mapping;
use super::ring::Ring;
use crate::direct::abi::Path;
use crate::direct::engine::{Engine, Op};

/// io_uring into clients' memory.
pub(crate) struct HostEngine {
    rings: Arc<[Ring]>,
}

/// A client's memory that the engine can reach.
pub(crate) struct HostBuffer {
    pub(super) mapping: Mapping,
    rings: Arc<[Ring]>,
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        for ring in &*self.rings {
            ring.forget(self.mapping.serial());
        }
    }
}

impl HostEngine {
    /// An engine for so many backings. Fails where the kernel or a container doesn't allow io_uring.
    pub(crate) fn new(backings: usize) -> io::Result<HostEngine> {
        Ok(HostEngine { rings: (0..backings).map(Ring::start).collect::<io::Result<_>>()? })
    }

    /// Makes `len` bytes at `offset` of a client's memfd a buffer, to be written by READs if `writable`. The
    /// errors are [`Mapping::new`]'s.
    pub(crate) fn map(
        &self,
        memfd: &OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<HostBuffer, Errno> {
        let mapping = Mapping::new(memfd, offset, len, writable)?;
        Ok(HostBuffer { mapping, rings: self.rings.clone() })
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
