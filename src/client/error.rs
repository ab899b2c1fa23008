//! What can go wrong for a client, and what to do about it.
//!
//! What always holds: an error says which call failed and keeps the errno; whoever gets one can still read and
//! write the file with `pread` and `pwrite`, which need nothing of this.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// One of the interface's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// QUERY.
    Query,
    /// REGISTER.
    Register,
    /// UNREGISTER.
    Unregister,
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// SUBMIT.
    Submit,
    /// LOCATE.
    Locate,
    /// `LOOKUP_PREFIX`.
    LookupPrefix,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::Query => "QUERY",
            Call::Register => "REGISTER",
            Call::Unregister => "UNREGISTER",
            Call::Read => "READ",
            Call::Write => "WRITE",
            Call::Submit => "SUBMIT",
            Call::Locate => "LOCATE",
            Call::LookupPrefix => "LOOKUP_PREFIX",
        })
    }
}

/// Why the fast path can't be used, or what a call answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path can't be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It isn't in a FUSE mount.
    #[error("{} is not in a kvfs mount (its file system is no FUSE): is kvfs mounted there?", path.display())]
    NotFuse {
        /// Which path.
        path: PathBuf,
    },
    /// It's in a FUSE mount that doesn't know the interface.
    #[error("{} is in a FUSE mount that isn't kvfs, or is a kvfs without the fast path", path.display())]
    NotKvfs {
        /// Which path.
        path: PathBuf,
    },
    /// The mount's daemon has ended.
    #[error("the daemon of the mount at {} is gone: `kvfs umount --lazy` it and mount again", path.display())]
    Dead {
        /// Which path.
        path: PathBuf,
    },
    /// The daemon speaks a version that this client doesn't know.
    #[error("the mount speaks version {spoken} of the interface, this client version {known}")]
    Version {
        /// The daemon's.
        spoken: u32,
        /// Ours.
        known: u32,
    },
    /// The daemon runs where this process has no number.
    #[error(
        "the kvfs daemon can't see this process: it runs in another pid namespace. Run both in one (containers: \
         hostPID), or read and write the files as usual"
    )]
    Unseen,
    /// A call failed as a whole.
    #[error("{call}: {}{}", io::Error::from(*errno), hint(*call, *errno))]
    Refused {
        /// Which call.
        call: Call,
        /// What it answered.
        errno: Errno,
    },
    /// A buffer can't be registered; the daemon says why.
    #[error("REGISTER: {}{} (reason {reason})", io::Error::from(*errno), hint(Call::Register, *errno))]
    Unregistrable {
        /// What it answered.
        errno: Errno,
        /// `KVFS_WHY_*`, or the CUDA code of the failure when `errno` is EIO.
        reason: u32,
    },
    /// One transfer failed.
    #[error("{call}: {error}")]
    Failed {
        /// READ or WRITE.
        call: Call,
        /// How.
        error: OpError,
    },
    /// The memory of a buffer can't be had.
    #[error("{bytes} bytes of shared memory: {source}")]
    Memory {
        /// How many.
        bytes: usize,
        /// Why.
        source: io::Error,
    },
    /// The socket for descriptors doesn't work.
    #[error("the descriptor can't be sent through {}: {source}", super::socket_name())]
    Socket {
        /// Why.
        source: io::Error,
    },
    /// A name that can't be looked up: too long, empty, or with a zero byte in it.
    #[error("{name:?} can't be a file's name")]
    Name {
        /// The name.
        name: std::ffi::OsString,
    },
}

impl Error {
    /// The errno of a call that failed as a whole.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { errno, .. } | Error::Unregistrable { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// What became of a transfer that failed. A WRITE that fails may have written a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// An errno.
    #[error("{}{}", io::Error::from(*.0), op_hint(*.0))]
    Os(Errno),
    /// A cuFile or hipFile code, 5000 and above.
    #[error("cuFile or hipFile code {0}")]
    Gpu(u32),
}

impl OpError {
    /// Reads `kvfs_op.result`.
    pub(super) fn of(result: i64) -> Result<u64, OpError> {
        match u64::try_from(result) {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(match i32::try_from(result.unsigned_abs()) {
                Ok(code @ 1..=4095) => OpError::Os(Errno::from_raw_os_error(code)),
                Ok(code @ 5000..) => OpError::Gpu(code as u32),
                // Nothing the interface knows.
                _ => OpError::Os(Errno::IO),
            }),
        }
    }
}

impl From<OpError> for io::Error {
    fn from(error: OpError) -> io::Error {
        match error {
            OpError::Os(errno) => errno.into(),
            OpError::Gpu(_) => io::Error::other(error),
        }
    }
}

/// What to do about it, where that isn't obvious.
fn hint(call: Call, errno: Errno) -> &'static str {
    match (call, errno) {
        (Call::Locate, Errno::PERM) => ": the mount was made without --allow-locate",
        (Call::Register, Errno::PERM) => {
            ": the memfd isn't sealed against shrinking, or the daemon may not take this process's descriptors"
        }
        (_, Errno::PERM) => ": the buffer is another process's, or the daemon can't see this one",
        (Call::Register, Errno::DQUOT) => ": this user's registered buffers are at their limit; drop some",
        (Call::Register, Errno::OPNOTSUPP) => ": this mount can't do this kind of buffer",
        (Call::Register, Errno::NODATA) => {
            ": not all of the memfd's pages are there; write or fallocate them"
        }
        (Call::Unregister, Errno::BUSY) => ": transfers are under way",
        (_, Errno::NOTTY) => ": not a file of a kvfs mount with the fast path",
        (_, Errno::NOTCONN) => ": the daemon is gone; `kvfs umount --lazy` and mount again",
        _ => "",
    }
}

fn op_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS => ": the buffer wasn't registered for this direction",
        Errno::BADF => ": the file isn't open for this, or its token is of another mount",
        Errno::NOENT => ": the buffer isn't registered any more",
        Errno::PERM => ": the buffer or the file is another process's",
        Errno::RANGE => ": beyond the end of the registered region",
        Errno::TIMEDOUT | Errno::TIME => ": the mount's deadline has passed",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results() {
        assert_eq!(OpError::of(0), Ok(0));
        assert_eq!(OpError::of(1 << 40), Ok(1 << 40));
        assert_eq!(OpError::of(-5), Err(OpError::Os(Errno::IO)));
        assert_eq!(OpError::of(-4095), Err(OpError::Os(Errno::from_raw_os_error(4095))));
        assert_eq!(OpError::of(-5030), Err(OpError::Gpu(5030)));
        for odd in [-4096, -4999, i64::MIN, i64::from(i32::MIN)] {
            assert_eq!(OpError::of(odd), Err(OpError::Os(Errno::IO)), "{odd}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = Error::Refused { call: Call::Locate, errno: Errno::PERM };
        assert!(error.to_string().ends_with(": the mount was made without --allow-locate"), "{error}");
        let error = Error::Unregistrable { errno: Errno::DQUOT, reason: 0 };
        assert!(error.to_string().contains("drop some"), "{error}");
    }
}
