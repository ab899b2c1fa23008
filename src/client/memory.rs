//! Host memory that can be shared with the daemon: a sealed memfd, mapped.
//!
//! What always holds: the memfd can't shrink (the daemon takes no other), and all its pages are there from the
//! start, so that a transfer finds memory and never has to ask for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::Error;

/// Which pages a buffer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pages {
    /// The system's ordinary ones.
    #[default]
    Ordinary,
    /// Of 2 MiB, from the pool that an administrator has set aside (`vm.nr_hugepages`).
    Huge,
}

impl Pages {
    fn bytes(self) -> usize {
        match self {
            Pages::Ordinary => 4096,
            Pages::Huge => 2 << 20,
        }
    }
}

/// Memory that the daemon can read and write when it's registered.
///
/// The daemon changes it only while a READ into it is under way. Rust can't see that from here, so the safe
/// ways in and out copy; the ones without a copy are `unsafe` and say what to keep.
#[derive(Debug)]
pub struct HostBuffer {
    memfd: OwnedFd,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its mapping, which has no ties to a thread.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; through a shared reference its bytes are only reached by copying, or with `unsafe`.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// At least `len` bytes of zeros: rounded up to a multiple of 4096, or to whole huge pages.
    pub fn new(len: usize, pages: Pages) -> Result<HostBuffer, Error> {
        let bytes = len.max(1).checked_next_multiple_of(pages.bytes()).unwrap_or(usize::MAX);
        Self::make(bytes, pages).map_err(|source| Error::Memory { bytes, source })
    }

    fn make(len: usize, pages: Pages) -> io::Result<HostBuffer> {
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if pages == Pages::Huge {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let memfd = rustix::fs::memfd_create("kvfs-buffer", flags)?;
        rustix::fs::ftruncate(&memfd, len as u64)?;
        // Says so when there isn't enough, instead of killing whoever touches the missing page.
        rustix::fs::fallocate(&memfd, FallocateFlags::empty(), 0, len as u64)?;
        rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, &memfd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(HostBuffer { memfd, start, len })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a buffer has a page at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where it begins; valid as long as the buffer is.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its bytes, without a copy.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no READ into the buffer may be under way in this or another thread.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`; nobody writes, says the caller.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Its bytes to change, without a copy.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no READ into the buffer and no WRITE from it may be under way.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` bytes long and ours alone, says the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Copies `to.len()` bytes out, from `offset` on.
    ///
    /// # Panics
    ///
    /// If that's beyond the end.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: both are `to.len()` bytes long, and a caller's slice can't overlap our mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), to.as_mut_ptr(), to.len()) }
    }

    /// Copies `from` in, to `offset`.
    ///
    /// # Panics
    ///
    /// If that's beyond the end.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: as in `copy_out`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr().add(offset), from.len()) }
    }

    fn check(&self, offset: usize, len: usize) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {offset} of a buffer of {} bytes", self.len);
    }
}

impl AsFd for HostBuffer {
    /// The memfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing borrows any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_sealed_and_wholly_there() {
        let mut buffer = HostBuffer::new(5000, Pages::Ordinary).unwrap();
        assert_eq!(buffer.len(), 8192);
        assert!(rustix::fs::fcntl_get_seals(&buffer).unwrap().contains(SealFlags::SHRINK));
        let stat = rustix::fs::fstat(&buffer).unwrap();
        assert_eq!(stat.st_size as usize, buffer.len());
        assert!(stat.st_blocks as usize * 512 >= buffer.len());
        assert!(rustix::fs::ftruncate(&buffer, 0).is_err());

        buffer.copy_in(4090, b"across the page's end");
        let mut out = [0; 21];
        buffer.copy_out(4090, &mut out);
        assert_eq!(&out, b"across the page's end");
        // SAFETY: not registered, so nobody else touches it.
        assert_eq!(unsafe { &buffer.as_mut_slice()[4090..4096] }, b"across");
    }

    #[test]
    #[should_panic(expected = "1 bytes at 4096")]
    fn out_of_bounds() {
        HostBuffer::new(1, Pages::Ordinary).unwrap().copy_in(4096, b"x");
    }
}
