//! A backing that stands still: writes to it wait in the kernel until it's thawed.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::common::{Errno, sys};

const FIFREEZE: u64 = 0xc004_5877;
const FITHAW: u64 = 0xc004_5878;

/// Thawed when dropped.
pub(crate) struct Frozen(OwnedFd);

impl Frozen {
    pub(crate) fn new(volume: &Path) -> Frozen {
        let fd = sys::open(volume, libc::O_RDONLY, 0).unwrap();
        switch(&fd, FIFREEZE).unwrap();
        Frozen(fd)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let thawed = switch(&self.0, FITHAW);
        if !std::thread::panicking() {
            thawed.unwrap();
        }
    }
}

fn switch(fd: &OwnedFd, how: u64) -> Result<i32, Errno> {
    let mut unused = 0i32;
    // SAFETY: the kernel doesn't look at the argument.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), how, &mut unused) })
}
