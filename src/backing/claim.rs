//! Claiming backings that no mount uses, to look at them or to put something right.
//!
//! What always holds: nothing is made, not even a marker; who has a claim has what a mount alone would have, so no
//! mount begins meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::setup::resolve;
use super::{Marker, MarkerError, SetupError, overlap};

/// A directory that is or may become a backing.
#[derive(Debug)]
pub struct Claimed {
    /// Its path, without symbolic links.
    pub path: PathBuf,
    root: OwnedFd,
    /// Its marker, locked, or what's wrong with it.
    pub marker: Result<Marker, MarkerError>,
}

impl Claimed {
    /// Its root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Opens these directories, and claims those that have a marker. An error where a mount uses one.
pub fn claim(paths: &[PathBuf]) -> Result<Vec<Claimed>, SetupError> {
    let open = |path: PathBuf| {
        let root = open_root(&path)?;
        let marker = match Marker::open_again(&root, false) {
            Err(e @ (MarkerError::InUse | MarkerError::InSharedUse | MarkerError::InSoleUse)) => {
                return Err(SetupError::InUse(path, e));
            }
            marker => marker,
        };
        Ok(Claimed { path, root, marker })
    };
    distinct(paths)?.into_iter().map(open).collect()
}

/// Opens a backing's directory to look at it.
pub fn open_root(path: &Path) -> Result<OwnedFd, SetupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::NOTDIR => SetupError::NotADirectory(path.to_owned()),
        e => SetupError::Io(path.to_owned(), e.into()),
    })
}

/// The paths without symbolic links. An error where two overlap.
pub fn distinct(paths: &[PathBuf]) -> Result<Vec<PathBuf>, SetupError> {
    if paths.is_empty() {
        return Err(SetupError::None);
    }
    if paths.len() > crate::index::MAX_BACKINGS {
        return Err(SetupError::TooMany(paths.len()));
    }
    let real: Vec<PathBuf> = paths.iter().map(|path| resolve(path)).collect::<Result<_, _>>()?;
    overlap::check_each_other(&real)?;
    Ok(real)
}
