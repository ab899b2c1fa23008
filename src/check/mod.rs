//! Checking backings: what a mount wouldn't say of them, and what can be put right.
//!
//! What always holds: looking changes nothing (not even times of access); a repair is one finding's alone, looks
//! once more before it changes anything, and never removes the newest copy of a path.

mod census;
mod compare;
mod finding;
mod look;
mod own;
mod read;
mod repair;

pub use census::{Census, Group, UNKNOWN, census};
pub use finding::{Finding, Fix, Kind};
pub use look::{Item, Looked, Options, look};
pub use own::check_own;
pub use read::{Reading, read};
pub use repair::{RepairError, repair};

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::index::Slot;

/// A backing that is looked at. Its place in the list is its slot, unless a mount gave it another.
#[derive(Debug)]
pub struct Root {
    /// Its slot.
    pub slot: Slot,
    /// Its path.
    pub path: PathBuf,
    /// Its directory.
    pub dir: OwnedFd,
}

/// Opens something beneath a directory: through no symbolic link, into no other mount.
fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    openat2(dir, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn root(roots: &[Root], slot: Slot) -> Result<&Root, Errno> {
    roots.iter().find(|root| root.slot == slot).ok_or(Errno::NODEV)
}
