//! The host engine: a ring and its thread for each backing, so that a drive that hangs holds up its own
//! transfers alone.
//!
//! What always holds: a ring that was started stays, also when its backing has left: it has nothing of it
//! open but what is under way.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Mapping;
use super::ring::Ring;
use crate::direct::abi::Path;
use crate::direct::engine::{Engine, Op};
use crate::index::{MAX_BACKINGS, Slot};
use crate::supervise::Lifeline;

/// io_uring into clients' memory.
pub(crate) struct HostEngine {
    rings: Arc<Rings>,
}

/// By slot; those of backings that there have been.
struct Rings {
    started: [OnceLock<Ring>; MAX_BACKINGS],
    starting: Mutex<()>,
    lifeline: Arc<Lifeline>,
}

impl Rings {
    fn start(&self, slot: usize) -> io::Result<()> {
        let _starting = self.starting.lock();
        if let Some(place) = self.started.get(slot)
            && place.get().is_none()
        {
            let _ = place.set(Ring::start(slot, &self.lifeline)?);
        }
        Ok(())
    }

    fn get(&self, slot: usize) -> Option<&Ring> {
        self.started.get(slot)?.get()
    }
}

/// A client's memory that the engine can reach.
pub(crate) struct HostBuffer {
    pub(super) mapping: Mapping,
    rings: Arc<Rings>,
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        for ring in self.rings.started.iter().filter_map(OnceLock::get) {
            ring.forget(self.mapping.serial());
        }
    }
}

impl HostEngine {
    /// An engine for so many backings. Fails where the kernel or a container doesn't allow io_uring.
    /// `lifeline` tells a daemon after this one when the last request has ended.
    pub(crate) fn new(
        backings: impl IntoIterator<Item = Slot>,
        lifeline: Arc<Lifeline>,
    ) -> io::Result<HostEngine> {
        let started = [const { OnceLock::new() }; MAX_BACKINGS];
        let rings = Rings { started, starting: Mutex::new(()), lifeline };
        backings.into_iter().try_for_each(|slot| rings.start(slot.index()))?;
        Ok(HostEngine { rings: Arc::new(rings) })
    }

    /// One backing more.
    pub(crate) fn enter(&self, slot: Slot) -> io::Result<()> {
        self.rings.start(slot.index())
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
        let mut by_ring: Vec<(usize, Vec<Op>)> = Vec::with_capacity(1);
        for op in ops {
            let slot = op.file.slot().index();
            match by_ring.iter_mut().find(|(ring, _)| *ring == slot) {
                Some((_, ops)) => ops.push(op),
                None => by_ring.push((slot, vec![op])),
            }
        }
        for (slot, ops) in by_ring {
            match self.rings.get(slot) {
                Some(ring) => ring.take(ops),
                // Its ring could not be started.
                None => ops.into_iter().for_each(|op| op.fail(libc::EIO)),
            }
        }
    }
}
