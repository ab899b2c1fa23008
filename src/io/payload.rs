//! What is written: bytes, and who keeps them there.
//!
//! What always holds: the bytes stay as they are and where they are while the payload is there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::buffer::Buffer;

/// Memory that somebody shares: what it gives is always the same.
pub type Memory = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Below this many bytes a copy costs less than doing without the memory that they're in.
const WORTH_KEEPING: usize = 32 << 10;

/// Bytes to be written. A clone has the same.
#[derive(Clone)]
pub struct Payload {
    memory: Memory,
    range: Range<usize>,
}

impl Payload {
    /// A copy.
    pub fn copied(data: &[u8]) -> Payload {
        // What may go by direct I/O lies as that wants it.
        let memory: Memory =
            if data.len() < 512 { Arc::new(data.to_vec()) } else { Arc::new(Buffer::of(data)) };
        Payload { memory, range: 0..data.len() }
    }

    /// `data`, which is kept if it's worth that and lies in `memory`; or else a copy of it.
    pub fn kept(data: &[u8], memory: impl FnOnce() -> Option<Memory>) -> Payload {
        if data.len() < WORTH_KEEPING {
            return Payload::copied(data);
        }
        let within = |memory: Memory| {
            let whole = (*memory).as_ref();
            let start = (data.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
            let range = start..start.checked_add(data.len())?;
            (range.end <= whole.len()).then_some(Payload { memory, range })
        };
        memory().and_then(within).unwrap_or_else(|| Payload::copied(data))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &(*self.memory).as_ref()[self.range.clone()]
    }

    /// Whether they lie as direct I/O wants it, which is at a multiple of `align` bytes.
    pub(super) fn is_aligned(&self, align: u64) -> bool {
        (self.bytes().as_ptr() as u64).is_multiple_of(align)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_large_and_shared_is_kept_and_else_copied() {
        let memory: Arc<Vec<u8>> = Arc::new((0..100_000u32).map(|i| (i / 7) as u8).collect());
        let share = || -> Option<Memory> { Some(memory.clone()) };
        let all: &[u8] = &memory;
        let kept = Payload::kept(&all[80..80_080], share);
        assert_eq!((kept.bytes(), kept.bytes().as_ptr()), (&all[80..80_080], all[80..].as_ptr()));
        let small = Payload::kept(&all[..100], share);
        assert!(small.bytes() == &all[..100] && small.bytes().as_ptr() != all.as_ptr());
        // Of other memory, and of none.
        let other = all.to_vec();
        for shared in [Some(memory.clone() as Memory), None] {
            let copy = Payload::kept(&other, || shared);
            assert!(copy.bytes() == other && copy.bytes().as_ptr() != other.as_ptr());
        }
    }
}
