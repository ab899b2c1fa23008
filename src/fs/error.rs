//! What an operation answers when it doesn't succeed, and how loudly that is logged.
//!
//! What always holds: an answer is an errno that a local file system could give; the level tells an answer
//! that clients expect (ENOENT of a lookup) from a fault that an operator must hear of (EIO of a drive).

use std::fmt;
use std::io;

use rustix::io::Errno;
use tracing::Level;

use crate::backing::is_fault;
use crate::index::{AddError, Slot};

/// An errno, with the backing that gave it if one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    errno: Errno,
    slot: Option<Slot>,
}

/// What operations return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A backing's answer.
    pub fn on(slot: Slot) -> impl Fn(Errno) -> Error + Copy {
        move |errno| Error { errno, slot: Some(slot) }
    }

    /// What the client gets.
    pub fn errno(self) -> Errno {
        self.errno
    }

    /// The backing it came from.
    pub fn slot(self) -> Option<Slot> {
        self.slot
    }

    /// Whether it's for want of room, which may come.
    pub fn is_full(self) -> bool {
        matches!(self.errno, Errno::NOSPC | Errno::DQUOT)
    }

    /// How loudly to log it: a fault of a drive or of ours is a warning, everything else is an answer.
    pub fn level(self) -> Level {
        match self.errno {
            // The watcher of the drives says it, once for all requests.
            errno if self.slot.is_some() && is_fault(errno) => Level::DEBUG,
            // Without a backing that said so it's ours: the operator has made it read-only.
            Errno::ROFS => Level::DEBUG,
            Errno::IO
            | Errno::NXIO
            | Errno::NODEV
            | Errno::UCLEAN
            | Errno::SHUTDOWN
            | Errno::MFILE
            | Errno::NOMEM => Level::WARN,
            Errno::NOSPC | Errno::DQUOT => Level::INFO,
            _ => Level::DEBUG,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            Some(slot) => write!(f, "backing {}: {}", slot.0, io::Error::from(self.errno)),
            None => write!(f, "{}", io::Error::from(self.errno)),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error { errno, slot: None }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Error {
        Errno::from_io_error(&e).unwrap_or(Errno::IO).into()
    }
}

impl From<AddError> for Error {
    fn from(e: AddError) -> Error {
        match e {
            AddError::Full => Errno::NOSPC.into(),
            AddError::DirGone => Errno::NOENT.into(),
            AddError::NotAMember => Errno::STALE.into(),
        }
    }
}
