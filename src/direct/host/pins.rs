//! Parts of clients' buffers that a ring keeps pinned ("registered buffers" of io_uring): without it the kernel
//! looks up every page anew for every request, which costs a tenth of a transfer from fast memory.
//!
//! What always holds: a pin is of a mapping that exists, or is taken off before the ring does anything else; a
//! part that can't be pinned is transferred all the same.

use std::num::NonZeroUsize;

use io_uring::Submitter;
use lru::LruCache;

use super::Mapping;

/// What is pinned at once, in bytes: pinning it takes a millisecond or two.
const PART: u64 = 64 << 20;
/// Parts of one ring: 16 GiB of buffers.
const SLOTS: u32 = 256;

/// A part of a mapping, by the mapping's serial number.
type Key = (u64, u64);

/// The pinned parts of one ring.
pub(super) struct Pins {
    slots: Option<LruCache<Key, u16>>,
    free: Vec<u16>,
}

impl Pins {
    /// None yet. Without registered buffers (a kernel before 5.19) there will be none.
    pub(super) fn new(ring: &Submitter<'_>) -> Pins {
        let slots = match ring.register_buffers_sparse(SLOTS) {
            Ok(()) => NonZeroUsize::new(SLOTS as usize).map(LruCache::new),
            Err(e) => {
                tracing::debug!("io_uring pins no buffers: {e}");
                None
            }
        };
        Pins { slots, free: (0..SLOTS as u16).rev().collect() }
    }

    /// The slot of the part that has these bytes, pinned now if it isn't. `None` if they lie in two parts, or
    /// can't be pinned.
    pub(super) fn slot(
        &mut self,
        ring: &Submitter<'_>,
        mapping: &Mapping,
        off: u64,
        len: u64,
    ) -> Option<u16> {
        let part = off / PART;
        // The kernel pins for writing alone (io_pin_pages in io_uring/memmap.c).
        if (off + len - 1) / PART != part || !mapping.is_writable() {
            return None;
        }
        let slots = self.slots.as_mut()?;
        let key = (mapping.serial(), part);
        if let Some(slot) = slots.get(&key) {
            return Some(*slot);
        }
        let slot = self.free.pop().or_else(|| slots.pop_lru().map(|(_, slot)| slot))?;
        let start = part * PART;
        let memory = libc::iovec {
            iov_base: mapping.at(start).cast(),
            iov_len: PART.min(mapping.len() as u64 - start) as usize,
        };
        // SAFETY: the memory is mapped: an op on it holds the mapping. Requests under way on what the slot
        // had keep that pinned by themselves (io_uring/rsrc.c).
        match unsafe { ring.register_buffers_update(slot.into(), &[memory], None) } {
            Ok(()) => {
                slots.put(key, slot);
                Some(slot)
            }
            Err(e) => {
                self.free.push(slot);
                // RLIMIT_MEMLOCK: it will be so the next time. Anything else is that buffer's own.
                if e.raw_os_error() == Some(libc::ENOMEM) {
                    tracing::info!("clients' buffers can't be pinned, transfers go on without: {e}");
                    self.slots = None;
                }
                None
            }
        }
    }

    /// The mapping is gone.
    pub(super) fn forget(&mut self, ring: &Submitter<'_>, serial: u64) {
        let Some(slots) = &mut self.slots else { return };
        let gone: Vec<Key> = slots.iter().map(|(key, _)| *key).filter(|(of, _)| *of == serial).collect();
        for key in gone {
            let Some(slot) = slots.pop(&key) else { continue };
            let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: an empty slot has no memory.
            if let Err(e) = unsafe { ring.register_buffers_update(slot.into(), &[nothing], None) } {
                tracing::warn!("a client's buffer can't be unpinned: {e}");
                continue;
            }
            self.free.push(slot);
        }
    }
}
