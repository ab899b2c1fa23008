//! Backings that belong to a set and aren't there when it's mounted.
//!
//! What always holds: an empty directory, or none, where others of the set know a backing is never taken for it, nor
//! made into one, unless the operator says that it's new. Nothing is written here.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use uuid::Uuid;

use super::members::Known;
use super::setup::resolve;
use super::{MARKER, SetupError, Spec, is_fault};

/// What is done about a backing that belongs to the set and isn't there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// Nothing is mounted.
    #[default]
    Refused,
    /// Something stands in its slot until it's there.
    LeftOut,
}

/// A backing that belongs to the set and isn't there.
pub(super) struct Away {
    /// Nil where nobody knows.
    pub(super) id: Uuid,
    pub(super) error: SetupError,
}

/// Which of the backings are missing: a drive that fails, or nothing where others of the set say that there
/// was a backing.
pub(super) fn find_missing(specs: &[Spec]) -> Result<Vec<Option<Away>>, SetupError> {
    let place = |spec: &Spec| resolve(&spec.path);
    let dirs: Vec<PathBuf> = specs.iter().filter_map(|spec| place(spec).ok()).collect();
    let known = Known::ask(&dirs);
    let away = |spec: &Spec| {
        let path = place(spec).or_else(|e| match e {
            SetupError::Io(_, e) if is_broken(&e) => Ok(std::path::absolute(&spec.path).unwrap_or_default()),
            e => Err(e),
        })?;
        let was = known.missing_at(&path);
        let missing = |why, or| SetupError::Missing { path: path.clone(), why, or };
        let found = fs::symlink_metadata(path.join(MARKER));
        Ok(match (found, was) {
            (Err(e), was) if is_broken(&e) => {
                let (why, or) = (format!("it can't be read ({e})"), String::new());
                Some(Away { id: was.map_or(Uuid::nil(), |(id, _)| id), error: missing(why, or) })
            }
            (Err(e), Some((id, by))) if e.kind() == io::ErrorKind::NotFound && !spec.new => {
                let what = if path.is_dir() { "the directory there isn't it" } else { "nothing is there" };
                let why = format!("{what}, but {} knows it as one of the set", by.display());
                let or = format!(" (a new drive in its place is {}:new)", path.display());
                Some(Away { id, error: missing(why, or) })
            }
            _ => None,
        })
    };
    specs.iter().map(away).collect()
}

/// Whether that's what a dead drive says.
fn is_broken(e: &io::Error) -> bool {
    Errno::from_io_error(e).is_some_and(is_fault)
}
