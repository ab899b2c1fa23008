//! Why backings can't be used.
//!
//! What always holds: each message is one sentence that names the value and the way out.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{Health, MarkerError, is_fault};
use crate::index::MAX_BACKINGS;

/// Why a list of backings can't be used. Each message is one sentence that names the value and the way out.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No backing was named.
    #[error("no backing given; name at least one directory: --backing /nvme0/kv,/nvme1/kv")]
    None,
    /// More than a mount can have.
    #[error("{0} backings given; a mount can have at most {MAX_BACKINGS}")]
    TooMany(usize),
    /// All slots of the mount were used.
    #[error("this mount has had {MAX_BACKINGS} backings, and can't have another; unmount and mount it again")]
    NoSlot,
    /// The same directory twice.
    #[error("backing {0} is the same directory as backing {1}; name each directory once")]
    Duplicate(PathBuf, PathBuf),
    /// One inside another.
    #[error("backing {0} lies inside backing {1}; choose directories that don't contain each other")]
    Nested(PathBuf, PathBuf),
    /// It overlaps with the mount point.
    #[error("backing {backing} {relation} mount point {point}; choose a mount point outside all backings")]
    MountPoint {
        /// The backing.
        backing: PathBuf,
        /// How they overlap, as a verb.
        relation: &'static str,
        /// The mount point.
        point: PathBuf,
    },
    /// Something else is at that path.
    #[error("backing {0} is not a directory; name a directory, or a path that doesn't exist yet")]
    NotADirectory(PathBuf),
    /// It can't be written.
    #[error("backing {0} is not writable for this user ({1}); change its owner or mode, or mount as root")]
    NotWritable(PathBuf, io::Error),
    /// Its file system is mounted read-only.
    #[error("backing {0} is on a read-only file system; remount it read-write (mount -o remount,rw)")]
    ReadOnly(PathBuf),
    /// Another daemon has it.
    #[error("backing {0}: {1}")]
    InUse(PathBuf, MarkerError),
    /// Two names of a client's may be one there, or one of ours.
    #[error(
        "backing {0} takes upper and lower case for the same, so names that differ to clients would be one file; use a directory that doesn't (ext4: without the casefold attribute)"
    )]
    FoldsCase(PathBuf),
    /// Its identity can't be told.
    #[error("backing {0}: {1}")]
    BadMarker(PathBuf, MarkerError),
    /// Two backings say they are the same one.
    #[error("backings {0} and {1} have the same identity in their markers, so one is a copy of the other; remove {marker} from the copy", marker = super::MARKER)]
    SameIdentity(PathBuf, PathBuf),
    /// It was there, and isn't.
    #[error("backing {path} is missing: {why}; mount its drive, or leave it out for now with --degraded{or}")]
    Missing {
        /// The backing.
        path: PathBuf,
        /// What is there instead, and how it's known that the backing was.
        why: String,
        /// Another way out.
        or: String,
    },
    /// Something else is in its place.
    #[error("{0} is not this backing: {1}")]
    NotIt(PathBuf, &'static str),
    /// It's there, and doesn't work.
    #[error("backing {0} can't be used: {1}")]
    Sick(PathBuf, Health),
    /// It couldn't be made or opened.
    #[error("backing {0} can't be used: {1}")]
    Io(PathBuf, io::Error),
}

impl SetupError {
    /// Whether the drive is at fault, and not the operator.
    pub(super) fn is_of_the_drive(&self) -> bool {
        match self {
            SetupError::ReadOnly(_) | SetupError::Sick(..) => true,
            SetupError::NotWritable(_, e) | SetupError::Io(_, e) => {
                Errno::from_io_error(e).is_some_and(is_fault)
            }
            _ => false,
        }
    }
}

/// What it means that something there can't be written.
pub(super) fn not_writable(path: &Path, e: io::Error) -> SetupError {
    match e.raw_os_error() {
        Some(libc::EROFS) => SetupError::ReadOnly(path.to_owned()),
        Some(libc::EACCES | libc::EPERM) => SetupError::NotWritable(path.to_owned(), e),
        _ => SetupError::Io(path.to_owned(), e),
    }
}
