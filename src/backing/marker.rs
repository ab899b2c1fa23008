//! The marker in each backing: who it is, whatever its path, and who uses it now.
//!
//! What always holds: a backing's identity is made once and stays with the directory, so neither the order
//! of `--backing` nor a renamed path changes where a name hashes to; and a backing serves one mount at a
//! time, or only mounts that share it (`flock` on the marker, given back by the kernel when the daemon ends in
//! whatever way).

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use uuid::Uuid;

/// Names that start with this are kvfs's own: not visible in the mount, not to be made by clients.
pub const RESERVED_PREFIX: &[u8] = b".kvfs-";

/// The marker's name in a backing's root.
pub const MARKER: &str = ".kvfs-backing";

const FIRST_LINE: &str = "kvfs backing v1";

/// Whether a name is kvfs's own.
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(RESERVED_PREFIX)
}

/// What can be wrong with a marker.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// It's there, but not one that we wrote.
    #[error(
        "its marker {MARKER} is damaged ({0}); restore it, or remove it to give the backing a new identity"
    )]
    Damaged(String),
    /// It was there when the mount began, and isn't any more.
    #[error("its marker {MARKER} is missing; is its drive mounted? mount it there again")]
    Missing,
    /// The backing that the mount has there is another one.
    #[error(
        "its marker {MARKER} is another backing's than {0}, which the mount has there; mount its own drive there again"
    )]
    Other(Uuid),
    /// Another daemon holds it.
    #[error("another kvfs mount is using it; unmount that one first (`kvfs status` lists mounts)")]
    InUse,
    /// Others share it, and this mount wants it alone.
    #[error("other kvfs mounts share it; share it here as well (add :shared to its path), or unmount those")]
    InSharedUse,
    /// Another daemon has it alone, and this mount would share it.
    #[error("another kvfs mount uses it alone; mount it there with :shared as well, or unmount that one")]
    InSoleUse,
    /// The disk said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A backing's marker, locked for this process.
#[derive(Debug)]
pub struct Marker {
    /// The backing's identity.
    pub id: Uuid,
    /// Whether this call made it.
    pub created: bool,
    /// Whether it's locked.
    pub locked: bool,
    file: File,
}

impl Marker {
    /// Reads the marker of the backing `path`, whose directory is open as `root`, or makes one; and locks it, for
    /// this mount alone or with others that share it.
    pub fn open(path: &Path, root: impl AsFd, shared: bool) -> Result<Marker, MarkerError> {
        let mut created = false;
        let file = match open_existing(&root) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                created = true;
                create(path)?;
                open_existing(&root)?
            }
            Err(e) => return Err(e.into()),
        };
        let locked = lock(&file, shared)?;
        Ok(Marker { id: read(&file)?, created, locked, file })
    }

    /// The marker of a backing that a daemon before had, with the lock that was `kept` for this one if there is
    /// one. It's never made anew.
    pub fn reopen(
        root: impl AsFd,
        id: Uuid,
        shared: bool,
        kept: Option<OwnedFd>,
    ) -> Result<Marker, MarkerError> {
        let file = match open_existing(&root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MarkerError::Missing),
            file => file?,
        };
        let same = |kept: &File| match (kept.metadata(), file.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        let (file, locked) = match kept.map(File::from).filter(same) {
            Some(kept) => (kept, true),
            None => {
                let locked = lock(&file, shared)?;
                (file, locked)
            }
        };
        if read(&file)? != id {
            return Err(MarkerError::Other(id));
        }
        Ok(Marker { id, created: false, locked, file })
    }

    /// The marker's file: a regular file of the backing that is always there, to probe the backing with.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Whether it could be locked. Network file systems may have no locks: a backing that's shared anyway goes
/// without.
fn lock(file: &File, shared: bool) -> Result<bool, MarkerError> {
    use rustix::io::Errno;
    let wanted =
        if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match flock(file, wanted) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) if shared => Err(MarkerError::InSoleUse),
        // Whoever lets this one share it, shares it.
        Err(Errno::WOULDBLOCK) => match flock(file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Err(MarkerError::InSharedUse),
            Err(_) => Err(MarkerError::InUse),
        },
        Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) if shared => Ok(false),
        Err(e) => Err(io::Error::from(e).into()),
    }
}

/// The identity in it.
fn read(file: &File) -> Result<Uuid, MarkerError> {
    let mut bytes = [0; 4096];
    let damaged = |e: &dyn fmt::Display| MarkerError::Damaged(e.to_string());
    // From its beginning, wherever a daemon before has read to.
    let len = file.read_at(&mut bytes, 0).map_err(|e| damaged(&e))?;
    parse(std::str::from_utf8(&bytes[..len]).map_err(|e| damaged(&e))?)
}

fn open_existing(root: impl AsFd) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(openat(root, MARKER, flags, Mode::empty())?))
}

/// Writes a new marker so that it's either whole or not there, and never replaces one.
fn create(path: &Path) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".kvfs-backing-").tempfile_in(path)?;
    write!(
        file,
        "{FIRST_LINE}\nid={}\n# The identity of this kvfs backing. Keep it with the directory; never copy it to another one.\n",
        Uuid::new_v4()
    )?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path.join(MARKER)) {
        Ok(_) => Ok(()),
        // Someone was faster: theirs is the marker.
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e.error),
    }
}

fn parse(text: &str) -> Result<Uuid, MarkerError> {
    let mut lines = text.lines();
    match lines.next() {
        Some(FIRST_LINE) => {}
        Some(other) => {
            return Err(MarkerError::Damaged(format!(
                "it starts with {:?}",
                other.get(..40).unwrap_or(other)
            )));
        }
        None => return Err(MarkerError::Damaged("it is empty".into())),
    }
    let id = lines.find_map(|line| line.strip_prefix("id="));
    id.and_then(|id| Uuid::parse_str(id.trim()).ok())
        .ok_or_else(|| MarkerError::Damaged("it has no valid line `id=`".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Result<Marker, MarkerError> {
        Marker::open(dir, File::open(dir).unwrap(), false)
    }

    #[test]
    fn an_identity_is_made_once_and_used_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        assert!(first.created);
        assert!(matches!(open(dir.path()), Err(MarkerError::InUse)));
        let id = first.id;
        drop(first);
        let again = open(dir.path()).unwrap();
        assert_eq!((again.id, again.created), (id, false));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the marker");
    }

    #[test]
    fn those_who_share_it_let_each_other_in_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let share = || Marker::open(dir.path(), File::open(dir.path()).unwrap(), true);
        let (one, other) = (share().unwrap(), share().unwrap());
        assert!(one.locked && other.locked);
        assert!(matches!(open(dir.path()), Err(MarkerError::InSharedUse)));
        drop((one, other));
        let alone = open(dir.path()).unwrap();
        assert!(matches!(share(), Err(MarkerError::InSoleUse)));
        drop(alone);
    }

    #[test]
    fn a_lock_that_was_kept_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let first = open(dir.path()).unwrap();
        let (id, kept) = (first.id, first.file().as_fd().try_clone_to_owned().unwrap());
        drop(first);
        assert!(matches!(open(dir.path()), Err(MarkerError::InUse)), "whoever keeps it has it");
        let mine = || kept.try_clone().unwrap();
        let other = Uuid::new_v4();
        assert!(matches!(Marker::reopen(&root, other, false, Some(mine())), Err(MarkerError::Other(_))));
        assert!(matches!(Marker::reopen(&root, id, false, None), Err(MarkerError::InUse)));
        let again = Marker::reopen(&root, id, false, Some(mine())).unwrap();
        drop(kept);
        assert!(again.locked && matches!(open(dir.path()), Err(MarkerError::InUse)));
        // Another file is there by now: what was kept is no lock of it.
        std::fs::rename(dir.path().join(MARKER), dir.path().join("old")).unwrap();
        assert!(matches!(Marker::reopen(&root, id, false, None), Err(MarkerError::Missing)));
        std::fs::copy(dir.path().join("old"), dir.path().join(MARKER)).unwrap();
        let kept = again.file().as_fd().try_clone_to_owned().unwrap();
        let new = Marker::reopen(&root, id, false, Some(kept)).unwrap();
        assert!(new.locked && matches!(open(dir.path()), Err(MarkerError::InUse)));
    }

    #[test]
    fn a_damaged_marker_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [&b""[..], b"hello", b"kvfs backing v1\n", b"kvfs backing v1\nid=7\n", &[0xff; 64]] {
            std::fs::write(dir.path().join(MARKER), bad).unwrap();
            assert!(matches!(open(dir.path()), Err(MarkerError::Damaged(_))), "{bad:?}");
            assert_eq!(std::fs::read(dir.path().join(MARKER)).unwrap(), bad);
        }
    }

    #[test]
    fn a_symbolic_link_is_no_marker() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(MARKER)).unwrap();
        assert!(open(dir.path()).is_err());
    }
}
