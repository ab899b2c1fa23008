//! What a directory holds, in a form that two of them can be compared by.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{dir, sys};

/// One line per name under `root`: type, mode, owner, size, links, target, attributes, content.
/// Inode numbers, times and a directory's size and links are the file system's own affair.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut out = BTreeMap::new();
    walk(root, Path::new(""), &mut out);
    out
}

fn walk(root: &Path, below: &Path, out: &mut BTreeMap<PathBuf, String>) {
    let here = root.join(below);
    let entries = match dir::list(&here) {
        Ok(e) => e,
        Err(e) => {
            out.insert(below.join("(listing)"), format!("{e:?}"));
            return;
        }
    };
    for (name, kind) in entries.into_iter().filter(|(n, _)| !own(n)) {
        let (path, rel) = (here.join(&name), below.join(&name));
        out.insert(rel.clone(), format!("d_type={kind} {}", line(&path)));
        if sys::lstat(&path).is_ok_and(|st| st.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            walk(root, &rel, out);
        }
    }
}

fn own(name: &OsString) -> bool {
    name.to_string_lossy().starts_with(".kvfs-") || name == "lost+found"
}

/// The visible state of one name.
pub(crate) fn line(path: &Path) -> String {
    let st = match sys::lstat(path) {
        Ok(st) => st,
        Err(e) => return format!("lstat: {e:?}"),
    };
    let kind = st.st_mode & libc::S_IFMT;
    let mut text = describe(&st);
    if kind == libc::S_IFLNK {
        text += &format!(" -> {:?}", sys::readlink(path));
    }
    if kind == libc::S_IFREG {
        text += &format!(" content={}", content(path));
    }
    match sys::listxattr(path) {
        Ok(names) => {
            // What kvfs keeps with a file, and shows nobody.
            for name in names.iter().filter(|name| !name.starts_with("user.kvfs.")) {
                text += &format!(" {name}={:?}", sys::getxattr(path, name).map(|v| digest(&v)));
            }
        }
        Err(e) => text += &format!(" listxattr: {e:?}"),
    }
    text
}

/// What `stat` says that doesn't depend on the file system's own bookkeeping.
pub(crate) fn describe(st: &libc::stat) -> String {
    let kind = st.st_mode & libc::S_IFMT;
    let mut text =
        format!("type={:o} mode={:o} uid={} gid={}", kind, st.st_mode & 0o7777, st.st_uid, st.st_gid);
    if kind != libc::S_IFDIR {
        text += &format!(" size={} nlink={}", st.st_size, st.st_nlink);
    }
    if kind == libc::S_IFCHR || kind == libc::S_IFBLK {
        text += &format!(" rdev={:x}", st.st_rdev);
    }
    text
}

fn content(path: &Path) -> String {
    match std::fs::read(path) {
        Ok(data) => digest(&data),
        Err(e) => format!("{:?}", e.raw_os_error()),
    }
}

/// Short data as it is, long data as length and checksum.
pub(crate) fn digest(data: &[u8]) -> String {
    if data.len() <= 32 {
        return format!("{:?}", String::from_utf8_lossy(data));
    }
    let hash =
        data.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("{}:{hash:016x}", data.len())
}
