//! A piece of shared memory that is replaced as a whole: it's there twice, and a word says which one counts.
//!
//! What always holds: the one that counts isn't written to, so a reader that comes after a crash at any point
//! finds what was there before, or what was to be there, and nothing in between. Writers are one at a time: the
//! caller's business.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use super::state::{load, store};

/// Room for `8 * WORDS` bytes. Zeros are an empty one.
#[repr(C)]
pub(super) struct Twice<const WORDS: usize> {
    /// 0: nothing yet; else 1 more than the one that counts.
    counts: AtomicU32,
    lens: [AtomicU32; 2],
    _unused: AtomicU32,
    bytes: [[AtomicU64; WORDS]; 2],
}

impl<const WORDS: usize> Twice<WORDS> {
    /// Replaces what is there. False when it's too long: then nothing has changed.
    pub(super) fn put(&self, bytes: &[u8]) -> bool {
        if bytes.len() > WORDS * 8 {
            return false;
        }
        let other = usize::from(self.counts.load(Acquire) == 1);
        store(&self.bytes[other], bytes);
        self.lens[other].store(bytes.len() as u32, Relaxed);
        self.counts.store(other as u32 + 1, Release);
        true
    }

    /// What is there.
    pub(super) fn get(&self) -> Option<Vec<u8>> {
        let at = (self.counts.load(Acquire) as usize).checked_sub(1)?;
        let len = self.lens.get(at)?.load(Relaxed) as usize;
        (len <= WORDS * 8).then(|| load(&self.bytes[at], len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_counts_and_what_is_too_long_changes_nothing() {
        // SAFETY: all of it is atomic integers, for which zeros are a value.
        let twice: Twice<2> = unsafe { std::mem::zeroed() };
        assert_eq!(twice.get(), None);
        for text in [&b"one"[..], b"the second", b"", b"sixteen bytes ok"] {
            assert!(twice.put(text));
            assert_eq!(twice.get().as_deref(), Some(text));
        }
        assert!(!twice.put(b"seventeen bytes !"));
        assert_eq!(twice.get().as_deref(), Some(&b"sixteen bytes ok"[..]));
        // Cut off: what was being written doesn't count.
        store(&twice.bytes[usize::from(twice.counts.load(Relaxed) == 1)], b"half of it");
        assert_eq!(twice.get().as_deref(), Some(&b"sixteen bytes ok"[..]));
        twice.counts.store(9, Relaxed);
        assert_eq!(twice.get(), None, "a number that can't be");
    }
}
