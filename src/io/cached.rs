//! Whether the kernel has a part of a file in its page cache.

use std::os::fd::{AsRawFd, BorrowedFd};

/// cachestat(2), Linux 6.5; the same number everywhere (include/uapi/asm-generic/unistd.h).
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`
#[repr(C)]
struct Range {
    off: u64,
    len: u64,
}

/// `struct cachestat`
#[repr(C)]
#[derive(Default)]
struct Stat {
    nr_cache: u64,
    nr_dirty: u64,
    nr_writeback: u64,
    nr_evicted: u64,
    nr_recently_evicted: u64,
}

/// Whether no page of these bytes is in the page cache; false also where the kernel can't say.
pub(super) fn is_cold(file: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
    let (range, mut stat) = (Range { off: offset, len: len as u64 }, Stat::default());
    // SAFETY: the structs are the kernel's, and outlive the call.
    let answer = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            std::ptr::from_ref(&range),
            std::ptr::from_mut(&mut stat),
            0,
        )
    };
    answer == 0 && stat.nr_cache == 0
}
