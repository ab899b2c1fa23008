//! A client's memfd in the daemon's address space.
//!
//! The daemon never touches these bytes itself: only the kernel does, for an I/O, and tells EFAULT where a
//! page can't be had. What always holds: the region was inside the file when it was mapped and the file can't
//! shrink (`F_SEAL_SHRINK`), so no access to it can end in SIGBUS; the mapping allows no more than the client's
//! own descriptor does.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{Mode, OFlags, SealFlags, SeekFrom, fcntl_get_seals, fstat, open, seek};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// Offsets of a region must be multiples of it: the page size of x86-64, and of most arm64 kernels.
pub(crate) const PAGE: u64 = 4096;

/// The registered region.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
    /// No other mapping has had it.
    serial: u64,
}

// SAFETY: the mapping is plain shared memory that this process never reads or writes itself.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset` of a client's memfd, to be written by I/O if `writable`.
    ///
    /// `EBADF` if it isn't a memfd, `EPERM` if it isn't sealed against shrinking or is sealed against writing,
    /// `ERANGE` if the region ends behind its end, `ENODATA` if pages of the region aren't there yet (the
    /// daemon would pay for them), `EACCES` if the descriptor doesn't allow the access.
    pub(super) fn new(memfd: &OwnedFd, offset: u64, len: u64, writable: bool) -> Result<Mapping, Errno> {
        let seals = fcntl_get_seals(memfd).map_err(|_| Errno::BADF)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Errno::PERM);
        }
        let end = offset.checked_add(len).ok_or(Errno::RANGE)?;
        let stat = fstat(memfd)?;
        let (size, present) = (stat.st_size.cast_unsigned(), stat.st_blocks.cast_unsigned() * 512);
        if end > size {
            return Err(Errno::RANGE);
        }
        // What fallocate has put there counts as present, though it's a hole to seek.
        if present < size && first_hole(memfd, offset)? < end {
            return Err(Errno::NODATA);
        }
        let len = usize::try_from(len).map_err(|_| Errno::RANGE)?;
        let mut access = ProtFlags::READ;
        access.set(ProtFlags::WRITE, writable);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, memfd, offset) }?;
        let start: NonNull<u8> = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        // A child between fork and exec, and a core dump, do without it. It's no fault if they can't.
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: neither changes what the mapping is for this process.
            let _ = unsafe { madvise(start.as_ptr().cast(), len, advice) };
        }
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Ok(Mapping { start, len, writable, serial: SERIAL.fetch_add(1, Relaxed) })
    }

    /// The address of a byte, for the kernel alone; the caller keeps it within [`Mapping::len`].
    pub(super) fn at(&self, offset: u64) -> *mut u8 {
        self.start.as_ptr().wrapping_add(offset as usize)
    }

    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether I/O may write to it.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// A number that no other mapping has had.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }
}

/// The first byte from `offset` on that was never written.
fn first_hole(memfd: &OwnedFd, offset: u64) -> Result<u64, Errno> {
    // A descriptor of our own: seeking must not move the client's.
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let own = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    seek(&own, SeekFrom::Hole(offset))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody has its address any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        if let Err(e) = unmapped {
            tracing::warn!("a client's buffer can't be unmapped: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    fn memfd(size: u64, written: usize, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        rustix::io::pwrite(&fd, &vec![1; written], 0).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn only_what_is_safe_to_touch_is_mapped() {
        let refused = |fd: &OwnedFd, offset, len| Mapping::new(fd, offset, len, true).unwrap_err();
        let good = memfd(8192, 8192, SealFlags::SHRINK);
        assert_eq!(Mapping::new(&good, 4096, 4096, true).unwrap().len(), 4096);
        assert_eq!(refused(&good, 4096, 4097), Errno::RANGE);
        assert_eq!(refused(&good, u64::MAX, 2), Errno::RANGE);
        assert_eq!(refused(&memfd(8192, 8192, SealFlags::GROW), 0, 4096), Errno::PERM);
        assert_eq!(refused(&memfd(8192, 4096, SealFlags::SHRINK), 0, 8192), Errno::NODATA);
        let sealed = memfd(4096, 4096, SealFlags::SHRINK | SealFlags::WRITE);
        assert_eq!(refused(&sealed, 0, 4096), Errno::PERM);
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(refused(&file.into(), 0, 4096), Errno::BADF);
    }
}
