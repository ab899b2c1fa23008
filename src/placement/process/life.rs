//! Whether a thread or a process still is who it was.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::read::{Incarnation, Reader};

/// `PIDFD_THREAD` (include/uapi/linux/pidfd.h): a pidfd of a thread.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

/// What tells when an id has changed hands.
pub(super) enum Life {
    /// Readable when the thread, or the last thread of the process, has ended.
    Descriptor(OwnedFd),
    /// The kernel has no such descriptors, or this isn't its own `/proc`: asked by a `stat`.
    Directory(Incarnation),
}

impl Life {
    /// Of a thread; `None` when there is none.
    pub(super) fn of_thread(reader: &Reader, tid: u32) -> Option<Self> {
        Self::open(reader, tid, PIDFD_THREAD)
    }

    /// Of a process.
    pub(super) fn of_process(reader: &Reader, pid: u32) -> Option<Self> {
        Self::open(reader, pid, PidfdFlags::empty())
    }

    fn open(reader: &Reader, id: u32, flags: PidfdFlags) -> Option<Self> {
        if reader.is_the_kernels() {
            match pidfd_open(Pid::from_raw(i32::try_from(id).ok()?)?, flags) {
                Ok(fd) => return Some(Self::Descriptor(fd)),
                Err(rustix::io::Errno::SRCH) => return None,
                // No such flag (before 6.9), or no descriptor left.
                Err(_) => {}
            }
        }
        reader.incarnation(id).map(Self::Directory)
    }

    /// Whether it still lives, and so has its id.
    pub(super) fn lasts(&self, reader: &Reader, id: u32) -> bool {
        match self {
            Self::Descriptor(fd) => {
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
            }
            Self::Directory(incarnation) => reader.incarnation(id) == Some(*incarnation),
        }
    }
}
