//! Exit statuses: every fault of the command line, the backings and the mount point has one of its own.
//!
//! What always holds: a number never changes its meaning. 1 is a fault without a number, 2 is clap's (wrong
//! usage).

use std::fmt;

use crate::backing::SetupError;
use crate::fuse::{MountError, SessionError, UnmountError};
use crate::metrics::BindError;

/// The table, for `--help`.
pub(super) const HELP: &str = "\
Exit status:
  0 success, 1 other faults, 2 wrong usage
  Backings:    10 none given, 11 duplicate, 12 nested, 13 not a directory, 14 not writable,
               15 read-only file system, 16 overlaps the mount point, 17 too many,
               18 in use by another mount, 19 marker damaged or the same twice, 24 missing
  Mount point: 20 missing, 21 not empty, 22 already mounted, 23 not a directory
  System:      30 no /dev/fuse, 31 not permitted, 32 passthrough required but not available,
               35 metrics can't be served there
  Options:     40 unknown policy, 41 bad value
  umount:      50 not a kvfs mount, 51 busy
  backing, rebalance: 52 refused, 53 ended before all was done
  status:      60 the daemon doesn't answer
  fsck:        as fsck(8): see kvfs fsck --help
  upgrade:     70 refused, 71 the new daemon didn't come up";

/// The status of an option's value that can't be.
pub(super) const BAD_VALUE: u8 = 41;

/// The status of a backing that another mount has.
pub(super) const IN_USE: u8 = 18;
/// The status of a backing of the set that isn't there.
pub(super) const MISSING: u8 = 24;

/// The status of a mount in which files are open.
pub(super) const BUSY: u8 = 51;

/// What went wrong: a sentence for people and a number for scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// One sentence.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// A fault without a number of its own.
    pub(super) fn other(message: impl fmt::Display) -> Failure {
        Failure { status: 1, message: message.to_string() }
    }

    /// An option's value that can't be.
    pub(super) fn bad_value(message: impl fmt::Display) -> Failure {
        Failure { status: BAD_VALUE, message: message.to_string() }
    }

    /// A command line that clap doesn't take.
    pub(super) fn usage(e: &clap::Error) -> Failure {
        Failure { status: of_usage(e), message: one_sentence(e) }
    }

    /// The daemon of a mount can't be asked.
    pub(super) fn no_answer(message: impl fmt::Display) -> Failure {
        Failure { status: 60, message: message.to_string() }
    }
}

/// The status of a command line that clap doesn't take (or that asks for help).
pub(super) fn of_usage(e: &clap::Error) -> u8 {
    use clap::error::ErrorKind;
    match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => BAD_VALUE,
        _ => 2,
    }
}

/// clap's error as the one line that all our faults are.
pub(super) fn one_sentence(e: &clap::Error) -> String {
    let text = e.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("For more"));
    lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
}

/// An error that has an exit status.
pub trait ExitStatus {
    /// The status.
    fn status(&self) -> u8;
}

/// The status of an error.
pub fn exit_status(error: &impl ExitStatus) -> u8 {
    error.status()
}

impl<E: ExitStatus + fmt::Display> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure { status: e.status(), message: e.to_string() }
    }
}

impl ExitStatus for SetupError {
    fn status(&self) -> u8 {
        match self {
            SetupError::None => 10,
            SetupError::Duplicate(..) => 11,
            SetupError::Nested(..) => 12,
            SetupError::NotADirectory(_) | SetupError::FoldsCase(_) => 13,
            SetupError::NotWritable(..) => 14,
            SetupError::ReadOnly(_) => 15,
            SetupError::MountPoint { .. } => 16,
            SetupError::TooMany(_) | SetupError::NoSlot => 17,
            SetupError::InUse(..) => IN_USE,
            SetupError::BadMarker(..) | SetupError::SameIdentity(..) => 19,
            SetupError::Missing { .. } | SetupError::NotIt(..) => MISSING,
            SetupError::Sick(..) | SetupError::Io(..) => 1,
        }
    }
}

impl ExitStatus for BindError {
    fn status(&self) -> u8 {
        35
    }
}

impl ExitStatus for MountError {
    fn status(&self) -> u8 {
        match self {
            MountError::Missing(_) => 20,
            MountError::NotEmpty(_) => 21,
            MountError::AlreadyMounted(_) => 22,
            MountError::NotADirectory(_) => 23,
            MountError::NoDevice => 30,
            MountError::NotPermitted(..) => 31,
            MountError::Io(..) => 1,
        }
    }
}

impl ExitStatus for SessionError {
    fn status(&self) -> u8 {
        match self {
            SessionError::Mount(e) => e.status(),
            SessionError::NoPassthrough(_) => 32,
            SessionError::NoResend(_) => 33,
            SessionError::NoUring(_) => 34,
            SessionError::Handshake(_) | SessionError::Uring(_) => 1,
        }
    }
}

impl ExitStatus for UnmountError {
    fn status(&self) -> u8 {
        match self {
            UnmountError::NotMounted(_) => 50,
            UnmountError::Busy(_) => BUSY,
            UnmountError::Io(..) => 1,
        }
    }
}

impl ExitStatus for crate::placement::UnknownPolicy {
    fn status(&self) -> u8 {
        40
    }
}
