//! Who registered a buffer: a process, known by its pidfd.
//!
//! What always holds: an owner stands for one process and never for another that got its number later.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that uses the fast path.
pub(crate) struct Owner {
    /// Its id in the daemon's pid namespace.
    pub(crate) tgid: u32,
    /// The user it acted for when it registered first.
    pub(crate) uid: u32,
    pidfd: OwnedFd,
}

impl Owner {
    /// The process of this id.
    pub(crate) fn open(tgid: u32, uid: u32) -> Result<Owner, Errno> {
        let pid = i32::try_from(tgid).ok().and_then(Pid::from_raw).ok_or(Errno::PERM)?;
        Ok(Owner { tgid, uid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Readable when it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
