//! Descriptors that clients have handed over.
//!
//! Closing a file flushes it (filp_flush in fs/open.c), and a file system in user space or on a network may
//! never answer that: it may be the client's own. What always holds: no thread that others need waits for such
//! a close; and a user whose descriptors can't be closed keeps others from handing over none of theirs.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};

use rustix::io::Errno;

use crate::shares::Shares;

/// Closes that may be under way: of all users, and of one, from whom nothing is taken while there are more.
const MOST: usize = 8192;
const OF_ONE: usize = 64;

/// A close needs little.
const STACK: usize = 64 << 10;

static CLOSING: LazyLock<Arc<Shares>> =
    LazyLock::new(|| Shares::new("descriptors that can't be closed", MOST));

/// A client's descriptor, closed where it does no harm.
pub(crate) struct Handed {
    fd: Option<OwnedFd>,
    uid: u32,
}

impl Handed {
    /// This user's.
    pub(crate) fn new(fd: OwnedFd, uid: u32) -> Handed {
        Handed { fd: Some(fd), uid }
    }

    /// Whether there's room for one more of this user's. `EBUSY` while too many can't be closed.
    pub(crate) fn room(uid: u32) -> Result<(), Errno> {
        let is_free = CLOSING.held_by(uid) < OF_ONE && CLOSING.has_some_for(uid);
        if is_free { Ok(()) } else { Err(Errno::BUSY) }
    }

    /// The same once more, if there can be one.
    pub(crate) fn again(&self) -> Option<Handed> {
        Some(Handed::new(self.try_clone().ok()?, self.uid))
    }

    /// Takes it for what closes it on a thread of its own.
    pub(crate) fn into_inner(mut self) -> Option<OwnedFd> {
        self.fd.take()
    }
}

impl Deref for Handed {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        // Only `into_inner` and `drop` take it.
        self.fd.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        // Memory has nothing to flush.
        if rustix::fs::fcntl_get_seals(&fd).is_ok() {
            return;
        }
        let closing = CLOSING.taken(self.uid);
        let close = move || {
            crate::processors::anywhere();
            drop(fd);
            drop(closing);
        };
        let thread = std::thread::Builder::new().name("kvfs-close".into()).stack_size(STACK);
        if let Err(e) = thread.spawn(close) {
            tracing::warn!("no thread to close a client's descriptor: {e}");
        }
    }
}
