//! The marker in each backing: who it is, whatever its path, and who uses it now.
//!
//! What always holds: a backing's identity is made once and stays with the directory, so neither the order
//! of `--backing` nor a renamed path changes where a name hashes to; and a backing serves one mount at a
//! time, or only mounts that share it (`flock` on the marker, given back by the kernel when the daemon ends in
//! whatever way).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
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

/// The identity in a directory's marker, if it has one that can be read. Nothing is locked.
pub(super) fn identity_of(dir: impl AsFd) -> Result<Uuid, MarkerError> {
    let mut text = String::new();
    let mut file = open_existing(&dir)?.take(4096);
    file.read_to_string(&mut text).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => MarkerError::Damaged(e.to_string()),
        _ => e.into(),
    })?;
    parse(&text)
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
        match open_existing(&root) {
            Ok(file) => Marker::read(file, false, shared),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create(path)?;
                Marker::read(open_existing(&root)?, true, shared)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The same of a backing that has one.
    pub fn open_again(root: impl AsFd, shared: bool) -> Result<Marker, MarkerError> {
        Marker::read(open_existing(&root)?, false, shared)
    }

    /// The same, with the lock that was `kept` of it, unless another file is there by now.
    pub fn open_kept(root: impl AsFd, shared: bool, kept: BorrowedFd<'_>) -> Result<Marker, MarkerError> {
        let file = open_existing(&root)?;
        let kept = File::from(kept.try_clone_to_owned()?);
        let (there, ours) = (file.metadata()?, kept.metadata()?);
        if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) {
            return Marker::read(file, false, shared);
        }
        Ok(Marker { id: identity(&kept)?, created: false, locked: true, file: kept })
    }

    /// For a backing whose drive isn't there: `file` is no file of it.
    pub fn stand_in(id: Uuid, file: File) -> Marker {
        Marker { id, created: false, locked: false, file }
    }

    fn read(file: File, created: bool, shared: bool) -> Result<Marker, MarkerError> {
        let locked = lock(&file, shared)?;
        Ok(Marker { id: identity(&file)?, created, locked, file })
    }

    /// The marker's file: a regular file of the backing that is always there, to probe the backing with.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// The identity in a marker, from its beginning, wherever a daemon before has read to.
fn identity(file: &File) -> Result<Uuid, MarkerError> {
    let mut bytes = [0; 4096];
    let len = file.read_at(&mut bytes, 0)?;
    parse(std::str::from_utf8(&bytes[..len]).map_err(|e| MarkerError::Damaged(e.to_string()))?)
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
        assert!(matches!(Marker::open_again(&root, false), Err(MarkerError::InUse)));
        let again = Marker::open_kept(&root, false, kept.as_fd()).unwrap();
        drop(kept);
        assert!(again.locked && again.id == id && matches!(open(dir.path()), Err(MarkerError::InUse)));
        // Another file is there by now: what was kept is no lock of it.
        std::fs::rename(dir.path().join(MARKER), dir.path().join("old")).unwrap();
        std::fs::copy(dir.path().join("old"), dir.path().join(MARKER)).unwrap();
        let new = Marker::open_kept(&root, false, again.file().as_fd()).unwrap();
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
