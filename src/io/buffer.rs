//! Aligned buffers for direct I/O, kept for the next request.
//!
//! What always holds: a buffer is aligned to 4096 bytes and belongs to one request at a time; the pool keeps
//! a bounded number, so a burst gives its memory back.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use parking_lot::Mutex;

const ALIGN: usize = 4096;
/// What a FUSE request carries at most (`max_write` of the session) and one block on either side.
pub(super) const POOLED: usize = (1 << 20) + 2 * ALIGN;
const KEPT: usize = 64;

/// Memory for one request.
#[derive(Debug)]
pub(super) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
    /// How much of it the last fill left valid.
    filled: usize,
}

// SAFETY: the buffer owns its memory alone.
unsafe impl Send for Buffer {}
// SAFETY: who shares a buffer only reads what it's filled with; who has the kernel write to it has it alone.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// One of its own, with these bytes in it.
    pub(super) fn of(data: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(data.len());
        buffer.fill(data);
        buffer
    }

    fn new(size: usize) -> Buffer {
        let layout = Layout::from_size_align(size.max(ALIGN).next_multiple_of(ALIGN), ALIGN)
            .expect("a request is far smaller than the address space");
        // SAFETY: the layout's size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        Buffer { start, layout, filled: 0 }
    }

    pub(super) fn size(&self) -> usize {
        self.layout.size()
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Copies `data` in; it must fit.
    fn fill(&mut self, data: &[u8]) {
        assert!(data.len() <= self.size());
        // SAFETY: both are valid for data.len() bytes, and apart: the buffer is ours alone.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.as_ptr(), data.len()) };
        self.filled = data.len();
    }

    /// Says that the kernel has filled the first `len` bytes.
    pub(super) fn set_filled(&mut self, len: usize) {
        assert!(len <= self.size());
        self.filled = len;
    }

    pub(super) fn filled(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes were written by us or by the kernel.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.filled) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.filled()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.as_ptr(), self.layout) };
    }
}

/// Buffers that wait for their next request.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Buffer>>);

impl Pool {
    /// A buffer of at least `size` bytes, with nothing in it.
    pub(super) fn take(&self, size: usize) -> Buffer {
        if size > POOLED {
            return Buffer::new(size);
        }
        let mut buffer = self.0.lock().pop().unwrap_or_else(|| Buffer::new(POOLED));
        buffer.filled = 0;
        buffer
    }

    /// A buffer with these bytes in it.
    pub(super) fn copy(&self, data: &[u8]) -> Buffer {
        let mut buffer = self.take(data.len());
        buffer.fill(data);
        buffer
    }

    pub(super) fn give_back(&self, buffer: Buffer) {
        let mut kept = self.0.lock();
        if buffer.size() >= POOLED && kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}
