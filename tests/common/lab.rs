//! A test's own corner: a scratch directory and volumes of each file system mounted in it.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::mount::Builder;
use super::{ns, sys};

/// What a volume is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FsKind {
    Ext4,
    Xfs,
    Tmpfs,
}

/// Owns everything a test leaves on the machine; dropping it takes all of it away, also while
/// a panic unwinds. Declare it before the mounts so that they go first.
pub(crate) struct Lab {
    dir: TempDir,
    next: Cell<usize>,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        ns::enter_private();
        let dir = tempfile::Builder::new()
            .prefix("kvfs-test-")
            // Ordinary users of the tests have to get through.
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("make a scratch directory");
        Lab { dir, next: Cell::new(0) }
    }

    /// The scratch directory, as the kernel names it in mountinfo.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("scratch directory")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A new directory of this name.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("make a directory");
        path
    }

    /// `n` new directories, to be used as backings.
    pub(crate) fn dirs(&self, n: usize) -> Vec<PathBuf> {
        (0..n).map(|i| self.dir(&format!("backing{i}"))).collect()
    }

    /// A new file system of `mib` MiB; returns where it is mounted.
    pub(crate) fn volume(&self, kind: FsKind, mib: u64) -> PathBuf {
        self.volume_with(kind, mib, &[])
    }

    /// The same with extra words for mkfs.
    pub(crate) fn volume_with(&self, kind: FsKind, mib: u64, mkfs: &[&str]) -> PathBuf {
        let i = self.next.replace(self.next.get() + 1);
        let point = self.dir(&format!("vol{i}"));
        if kind == FsKind::Tmpfs {
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0755"), "kvfs-test"])
                .arg(&point));
            return point;
        }
        let image = self.path(&format!("vol{i}.img"));
        let file = fs::File::create(&image).expect("make an image");
        file.set_len(mib << 20).expect("size the image");
        let mut format = match kind {
            FsKind::Ext4 => {
                let mut c = Command::new("mkfs.ext4");
                c.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
                c
            }
            _ => {
                let mut c = Command::new("mkfs.xfs");
                c.args(["-q", "-f", "-K"]);
                c
            }
        };
        run(format.args(mkfs).arg(&image));
        // `-o loop` marks the loop device so that it goes with the mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point));
        point
    }

    /// Lets ordinary users open /dev/fuse, as udev does everywhere, in this test's namespace only.
    pub(crate) fn fuse_for_everyone(&self) {
        let node = self.path("fuse-device");
        if sys::stat("/dev/fuse").is_ok_and(|st| st.st_mode & 0o666 == 0o666) || node.exists() {
            return;
        }
        sys::mknod(&node, libc::S_IFCHR | 0o666, libc::makedev(10, 229)).expect("make a device node");
        sys::chmod(&node, 0o666).expect("open it to everyone");
        run(Command::new("mount").arg("--bind").arg(&node).arg("/dev/fuse"));
    }

    /// A mount over these backings, at `mnt` of the scratch directory.
    pub(crate) fn mount(&self, backings: &[PathBuf]) -> Builder {
        Builder::new(self, self.dir("mnt"), backings)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        ns::unmount_below(&self.root());
    }
}

/// Runs a tool of the system; the test can't go on without it.
pub(crate) fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Every entry directly in `dir`, sorted; kvfs's own files left out.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("list {}: {e}", dir.display()))
        .map(|e| e.expect("directory entry").file_name().to_string_lossy().into_owned())
        .filter(|n| !n.starts_with(".kvfs-") && n != "lost+found")
        .collect();
    names.sort();
    names
}

/// Every path below `root`, kvfs's own files too: what a refused command must not change.
pub(crate) fn everything(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display())) {
            let entry = entry.expect("directory entry");
            if entry.file_type().expect("file type").is_dir() {
                todo.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all.sort();
    all
}

/// Joins paths with commas, as `--backing` takes them.
pub(crate) fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.to_str().expect("a printable path")).collect::<Vec<_>>().join(",")
}
