//! Attributes as clients see them: the backing's own, with kvfs's node id as the inode number.
//!
//! What always holds: they are read from the backing each time. The generation is made of the time of birth,
//! so that a new file in a reused inode is another node for the kernel (`fuse_stale_inode` in
//! fs/fuse/fuse_i.h), also after a restart of the daemon.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp, statx};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::index::{Kind, NodeId};

/// A point in time, as the kernel counts: seconds since the epoch (negative before it) and nanoseconds
/// upwards from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub secs: i64,
    /// 0 to 999 999 999.
    pub nanos: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(t: StatxTimestamp) -> Time {
        Time { secs: t.tv_sec, nanos: t.tv_nsec }
    }
}

/// A node's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The node, shown as `st_ino`.
    pub node: NodeId,
    /// Tells apart the files that have had this node id.
    pub generation: u64,
    /// Type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub perm: u16,
    /// Size in bytes.
    pub size: u64,
    /// Room taken, in units of 512 bytes.
    pub blocks: u64,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding (`new_encode_dev`).
    pub rdev: u32,
    /// The preferred unit of I/O.
    pub blksize: u32,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
}

impl Attr {
    /// Whether it's an evicted file's ghost: nothing of it is to be kept.
    pub fn is_ghost(&self) -> bool {
        self.node.0 >> 48 == super::ghost::NODES >> 48
    }

    /// From what a backing says.
    pub(super) fn new(node: NodeId, stat: &Statx) -> Attr {
        let mode = u32::from(stat.stx_mode);
        Attr {
            node,
            generation: generation(stat),
            kind: Kind::from_mode(mode),
            perm: (mode & 0o7777) as u16,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: encode_dev(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            atime: stat.stx_atime.into(),
            mtime: stat.stx_mtime.into(),
            ctime: stat.stx_ctime.into(),
        }
    }

    /// What is known of a node without asking its backing.
    pub(super) fn unknown(node: NodeId, kind: Kind) -> Attr {
        let (time, perm) = (Time::default(), 0);
        Attr {
            node,
            kind,
            perm,
            generation: 0,
            size: 0,
            blocks: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    /// The same node gone from its last name.
    pub(super) fn unlinked(self) -> Attr {
        Attr { nlink: 0, ..self }
    }
}

/// Asks a backing for `name` in `dir`; a symbolic link is asked about itself.
pub(super) fn stat_at(dir: impl AsFd, name: impl Arg) -> Result<Statx, Errno> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Asks for an open file, whatever way it was opened.
pub(super) fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Whether the node is a mount's or volume's root: not part of a backing.
pub(super) fn is_mount_root(stat: &Statx) -> bool {
    stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn generation(stat: &Statx) -> u64 {
    if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return 0;
    }
    (stat.stx_btime.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(u64::from(stat.stx_btime.tv_nsec))
}

/// `new_encode_dev` of include/linux/kdev_t.h.
fn encode_dev(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The other way, for mknod.
pub(super) fn decode_dev(rdev: u32) -> u64 {
    rustix::fs::makedev((rdev & 0xfff00) >> 8, rdev & 0xff | (rdev >> 12) & 0xfff00)
}
