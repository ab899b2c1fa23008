//! Descriptors that clients have handed over.
//!
//! Closing a file flushes it (filp_flush in fs/open.c), and a file system in user space or on a network may
//! never answer that: it may be the client's own. What always holds: no thread that others need waits for such
//! a close.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::io::Errno;

/// Closes that may be under way; nothing is taken from clients while there are more.
const MOST: usize = 64;

static CLOSING: AtomicUsize = AtomicUsize::new(0);

/// A client's descriptor, closed where it does no harm.
pub(crate) struct Handed(Option<OwnedFd>);

impl Handed {
    /// Whether there's room for one more. `EBUSY` while too many can't be closed.
    pub(crate) fn room() -> Result<(), Errno> {
        if CLOSING.load(Relaxed) < MOST { Ok(()) } else { Err(Errno::BUSY) }
    }

    /// Takes it for what closes it on a thread of its own.
    pub(crate) fn into_inner(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl From<OwnedFd> for Handed {
    fn from(fd: OwnedFd) -> Handed {
        Handed(Some(fd))
    }
}

impl Deref for Handed {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        // Only `into_inner` and `drop` take it.
        self.0.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        let Some(fd) = self.0.take() else { return };
        // Memory has nothing to flush.
        if rustix::fs::fcntl_get_seals(&fd).is_ok() {
            return;
        }
        CLOSING.fetch_add(1, Relaxed);
        let close = move || {
            drop(fd);
            CLOSING.fetch_sub(1, Relaxed);
        };
        if let Err(e) = std::thread::Builder::new().name("kvfs-close".into()).spawn(close) {
            tracing::warn!("no thread to close a client's descriptor: {e}");
            CLOSING.fetch_sub(1, Relaxed);
        }
    }
}
