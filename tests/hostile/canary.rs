//! A tree beside the backings that nobody but root can get to: a change of it, or a byte of it somewhere else, is the
//! daemon's doing.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::{lab, sys};

/// What its files hold, and those of the backings.
pub(super) const OUTSIDE: &[u8] = b"OUTSIDE: nobody reads this";
pub(super) const INSIDE: &[u8] = b"inside";

/// Everything that can be told of a file without reading it.
type Seen = (PathBuf, [u64; 5], [i64; 6], Vec<u8>);

pub(super) struct Canary {
    pub(super) root: PathBuf,
    before: Vec<Seen>,
}

impl Canary {
    /// Makes it, with files of these names and a directory that has them too.
    pub(super) fn new(root: PathBuf, names: &[&str]) -> Canary {
        for at in [root.clone(), root.join("d")] {
            fs::create_dir_all(&at).unwrap();
            for name in names {
                fs::write(at.join(name), OUTSIDE).unwrap();
                fs::set_permissions(at.join(name), PermissionsExt::from_mode(0o666)).unwrap();
                sys::setxattr(at.join(name), "user.canary", b"sings", 0).unwrap();
                // Older than its change, so that reading it shows (relatime).
                sys::utimens(at.join(name), (1, 0), (1_000_000, 0), 0).unwrap();
            }
        }
        // Its own permissions would let everybody in; the way to it doesn't.
        fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
        let before = look(&root);
        Canary { root, before }
    }

    /// Nothing of it was changed or read.
    #[track_caller]
    pub(super) fn is_untouched(&self) {
        assert_eq!(look(&self.root), self.before, "the tree outside of the backings");
    }
}

fn look(root: &Path) -> Vec<Seen> {
    let mut all = lab::everything(root);
    all.push(root.to_owned());
    let seen = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        let facts = [meta.ino(), meta.nlink(), meta.mode().into(), meta.uid().into(), meta.len()];
        // A listing by this very function changes the time of reading of directories.
        let read = if meta.is_dir() { [0, 0] } else { [meta.atime(), meta.atime_nsec()] };
        let times = [read[0], read[1], meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        let content = if meta.is_file() {
            let mut open = fs::File::options();
            let mut file = open.read(true).custom_flags(libc::O_NOATIME).open(&path).unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut content).unwrap();
            content
        } else {
            assert!(!meta.file_type().is_fifo());
            path.as_os_str().as_bytes().to_vec()
        };
        (path, facts, times, content)
    };
    all.into_iter().map(seen).collect()
}
