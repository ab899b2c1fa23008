//! Putting right what was found on backings that are claimed.
//!
//! What always holds: what is removed is what was found, by its inode number or by another look at both copies.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, unlinkat};
use rustix::io::Errno;

use super::{Fix, Root, open_beneath, root};
use crate::index::Slot;

/// Why something wasn't put right.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// It isn't what was found any more.
    #[error("it has changed since it was found; check again")]
    Changed,
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] Errno),
}

/// Repairs one finding.
pub fn repair(roots: &[Root], fix: &Fix) -> Result<(), RepairError> {
    match fix {
        Fix::None => Ok(()),
        Fix::Remove { path, slot, ino } => remove(roots, path, *slot, |found| found.st_ino == *ino),
        Fix::Copy { path, slot, file } => {
            let stat = |slot| -> Result<_, Errno> {
                fstat(open_beneath(root(roots, slot)?.dir.as_fd(), path, OFlags::PATH)?)
            };
            let newest = stat(*file).map_err(|_| RepairError::Changed)?;
            let changed = |stat: &rustix::fs::Stat| (stat.st_ctime, stat.st_ctime_nsec);
            let of = |stat: &rustix::fs::Stat| (stat.st_dev, stat.st_ino);
            remove(roots, path, *slot, |old| changed(old) <= changed(&newest) && of(old) != of(&newest))
        }
        Fix::Directory { path, slots } => {
            let mut first = None;
            for slot in slots.iter() {
                let dir =
                    open_beneath(root(roots, slot)?.dir.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                let stat = fstat(&dir)?;
                let Some((mode, uid, gid)) = first else {
                    first = Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid));
                    continue;
                };
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                chownat(&dir, c"", uid, gid, AtFlags::EMPTY_PATH)?;
                chmodat(&dir, c".", Mode::from_raw_mode(mode), AtFlags::empty())?;
            }
            Ok(())
        }
    }
}

fn remove(
    roots: &[Root],
    path: &[u8],
    slot: Slot,
    is_it: impl Fn(&rustix::fs::Stat) -> bool,
) -> Result<(), RepairError> {
    let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    let root: BorrowedFd<'_> = root(roots, slot)?.dir.as_fd();
    let dir = open_beneath(root, dir, OFlags::PATH | OFlags::DIRECTORY)?;
    let found = open_beneath(dir.as_fd(), name, OFlags::PATH).and_then(fstat)?;
    if !is_it(&found) {
        return Err(RepairError::Changed);
    }
    Ok(unlinkat(&dir, name, AtFlags::empty())?)
}
