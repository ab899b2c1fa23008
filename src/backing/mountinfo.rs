//! The kernel's list of mounts, read from `/proc/self/mountinfo` (format: proc(5)).
//!
//! What always holds: nothing here touches a mount itself, so a hung or dead mount hangs nobody who asks
//! about it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's own number, which no other has as long as anything of it is open.
    pub id: u64,
    /// `major:minor` of the file system (`st_dev`); for FUSE the minor is the connection's number in
    /// `/sys/fs/fuse/connections`.
    pub device: (u32, u32),
    /// Which part of the file system is mounted here; `/` but for bind mounts and subvolumes.
    pub root: PathBuf,
    /// Where it's mounted.
    pub point: PathBuf,
    /// How: `rw,nosuid,noexec`, for instance.
    pub options: String,
    /// Type, with the subtype: `xfs`, `fuse.kvfs`.
    pub fs_type: String,
    /// What was mounted, as the file system tells it.
    pub source: OsString,
}

/// All mounts of this process's mount namespace, in mount order.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(std::fs::read("/proc/self/mountinfo")?.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// The mount at exactly `point` (an absolute path without symbolic links): the topmost one.
pub fn mounted_at(point: &Path) -> io::Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rev().find(|mount| mount.point == point))
}

/// The mount that an open file is in, if this process can see it.
pub fn of(file: impl AsFd) -> Option<Mount> {
    // STATX_MNT_ID, Linux 5.8 (include/uapi/linux/stat.h).
    let wanted = StatxFlags::from_bits_retain(0x1000);
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, wanted).ok()?;
    let is_told = stat.stx_mask & wanted.bits() != 0;
    mounts().ok()?.into_iter().find(|mount| is_told && mount.id == stat.stx_mnt_id)
}

/// The mount that somebody means by `path`: at that place, or where a symbolic link leads. Looks at the place
/// itself only when nothing is mounted at the path as it's written.
pub fn named(path: &Path) -> io::Result<Option<Mount>> {
    let absolute = std::path::absolute(path)?;
    let place = match (absolute.parent().map(std::fs::canonicalize), absolute.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => absolute,
    };
    match mounted_at(&place)? {
        None => place.canonicalize().map_or(Ok(None), |real| mounted_at(&real)),
        found => Ok(found),
    }
}

/// The mount that `path` (absolute, without symbolic links) is in, and the path inside that file system.
pub fn inside(path: &Path) -> io::Result<Option<(Mount, PathBuf)>> {
    let deepest = mounts()?
        .into_iter()
        .enumerate()
        .filter(|(_, mount)| path.starts_with(&mount.point))
        .max_by_key(|(order, mount)| (mount.point.components().count(), *order));
    Ok(deepest.map(|(_, mount)| {
        let below = path.strip_prefix(&mount.point).unwrap_or(Path::new(""));
        let inner = mount.root.join(below);
        (mount, inner)
    }))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        point: point.into(),
        options,
        fs_type: String::from_utf8_lossy(after.next()?).into_owned(),
        source: unescape(after.next()?),
    })
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = &more[3..];
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    OsString::from_vec(out)
}

/// The path as the kernel writes it in a mount option: commas and backslashes escaped.
pub fn escape_option(value: &Path) -> OsString {
    let mut out = Vec::new();
    for byte in value.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/ro\134ot rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.device), (36, (98, 0)));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.point, Path::new("/mnt 2"));
        assert_eq!(mount.options, "rw,noatime");
        assert_eq!(mount.fs_type, "ext3");
        assert_eq!(mount.source, r"/dev/ro\ot");
        assert_eq!(parse(b"garbage"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
        assert_eq!(inside(Path::new("/")).unwrap().unwrap().0.point, Path::new("/"));
    }
}
