//! kvfs's own files in the backings' roots.
//!
//! What always holds: of these only what work that was cut off has left is ever removed.

use std::collections::HashSet;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Finding, Fix, Kind, Root, open_beneath};
use crate::backing::unclosed::{self, Which};
use crate::backing::{Claimed, MarkerError, is_reserved};
use crate::index::Slot;
use crate::printable::printable;

/// What a mount keeps in a backing's root.
const KNOWN: &[&[u8]] =
    &[b".kvfs-backing", b".kvfs-members", b".kvfs-job", b".kvfs-recency", b".kvfs-unclosed"];

/// Files that were being written, by slot and inode number.
pub(super) type Unclosed = HashSet<(Slot, u64)>;

/// Checks the markers of claimed backings.
pub fn check_own(claimed: &[Claimed]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (n, backing) in claimed.iter().enumerate() {
        let mut tell = |detail: String| {
            let (path, backing) = (crate::backing::MARKER.to_owned(), backing.path.clone());
            found.push(Finding { kind: Kind::Marker, backing, path, detail, fix: Fix::None });
        };
        match &backing.marker {
            // No kvfs has used it yet: the next mount makes one.
            Err(MarkerError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => tell(e.to_string()),
            Ok(marker) => {
                let same = |other: &&Claimed| other.marker.as_ref().is_ok_and(|there| there.id == marker.id);
                if let Some(twin) = claimed[..n].iter().find(same) {
                    tell(format!(
                        "the same identity as {}: one is a copy of the other; remove the marker from the copy",
                        twin.path.display()
                    ));
                }
            }
        }
    }
    found
}

/// Files that were being written when the mounts of these backings ended.
pub(super) fn unclosed(roots: &[Root], found: &mut Vec<Finding>) -> Unclosed {
    let mut all = Unclosed::new();
    for root in roots {
        let mut tell = |kind, path: String, detail: String| {
            found.push(Finding { kind, backing: root.path.clone(), path, detail, fix: Fix::None });
        };
        let left = match unclosed::left(std::os::fd::AsFd::as_fd(&root.dir)) {
            Ok(left) => left.unwrap_or_default(),
            Err(e) => {
                tell(
                    Kind::Own,
                    ".kvfs-unclosed".into(),
                    format!("{e}: files that weren't closed can't be told"),
                );
                continue;
            }
        };
        for begun in left.begun {
            match begun.which {
                Which::Inode { ino, .. } => drop(all.insert((root.slot, ino))),
                Which::Named { name, .. } => {
                    tell(Kind::Unclosed, printable(&name), "was about to be made".into());
                }
            }
        }
    }
    all
}

/// A name of kvfs's own that was met: what it is, if it shouldn't be there.
pub(super) fn reserved(root: &Root, path: &[u8]) -> Option<Finding> {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    let in_root = name.len() == path.len();
    if !is_reserved(name) || (in_root && KNOWN.contains(&name)) {
        return None;
    }
    // As `tempfile` and ourselves name what becomes one of those that are known.
    let was_new = in_root
        && KNOWN.iter().any(|known| {
            let rest = name.strip_prefix(*known).unwrap_or_default();
            rest == b".new" || (rest.len() == 7 && rest[0] == b'-')
        });
    let is_probe = in_root && name.starts_with(b".kvfs-probe");
    let is_leftover = crate::fs::is_temporary(name) || was_new || is_probe;
    let stat =
        open_beneath(std::os::fd::AsFd::as_fd(&root.dir), path, OFlags::PATH).and_then(rustix::fs::fstat);
    let (kind, fix, detail) = match stat {
        Err(Errno::NOENT) => return None,
        Ok(stat) if is_leftover && stat.st_mode & libc::S_IFMT == libc::S_IFREG => {
            let fix = Fix::Remove { path: path.to_owned(), slot: root.slot, ino: stat.st_ino };
            (Kind::Leftover, fix, format!("{} bytes", stat.st_size))
        }
        _ => (Kind::Reserved, Fix::None, "nothing that kvfs makes; rename it, or remove it yourself".into()),
    };
    Some(Finding { kind, backing: root.path.clone(), path: printable(path), detail, fix })
}
