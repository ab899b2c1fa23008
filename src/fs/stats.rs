//! Numbers: what `statfs` answers, and what was done how often.
//!
//! What always holds: backings on one file system count once; a backing that can't be asked counts nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Fs, NodeId};
use crate::backing::Room;
use crate::index::{MAX_BACKINGS, Slot};

/// What `statfs` tells, in units of `bsize` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Unit of all counts, and `f_bsize`: the largest alignment that direct I/O needs on any backing, at
    /// least 4096. LMCache decides by it whether a chunk can go by `O_DIRECT`.
    pub bsize: u32,
    /// Size.
    pub blocks: u64,
    /// Free.
    pub bfree: u64,
    /// Free for ordinary users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
}

impl Fs {
    /// The sum of the backings; in a directory with a quota no more than that, as project quotas of XFS have it.
    pub fn statfs(&self, node: NodeId) -> StatFs {
        let mut seen = Vec::new();
        let mut sum = Room::default();
        let backings = self.backings();
        for backing in backings.iter() {
            if backing.health.is_out() || seen.contains(&backing.device) {
                continue;
            }
            seen.push(backing.device);
            if let Ok(room) = backing.room() {
                sum.total = sum.total.saturating_add(room.total);
                sum.free = sum.free.saturating_add(room.free);
                sum.available = sum.available.saturating_add(room.available);
                sum.inodes = sum.inodes.saturating_add(room.inodes);
                sum.inodes_free = sum.inodes_free.saturating_add(room.inodes_free);
            }
        }
        let bsize = backings.iter().map(|b| b.dio_align).fold(4096, u32::max);
        let unit = u64::from(bsize);
        if let Some((limit, used)) = self.quota_at(node) {
            let left = limit.saturating_sub(used);
            sum.total = sum.total.min(limit);
            sum.free = sum.free.min(left);
            sum.available = sum.available.min(left);
        }
        StatFs {
            bsize,
            blocks: sum.total / unit,
            bfree: sum.free / unit,
            bavail: sum.available / unit,
            files: sum.inodes,
            ffree: sum.inodes_free,
        }
    }

    /// Names, directories and shadows in the index, and the files on each backing.
    pub fn index_counts(&self) -> IndexCounts {
        let index = self.index.read();
        IndexCounts {
            files: index.files(),
            dirs: index.directories(),
            shadows: index.shadow_count(),
            per_backing: (0..MAX_BACKINGS as u8).map(|slot| index.files_on(Slot(slot))).collect(),
        }
    }
}

/// How many of what the index has.
#[derive(Clone, Debug)]
pub struct IndexCounts {
    /// Names that aren't directories.
    pub files: u64,
    /// Directories, the root included.
    pub dirs: u64,
    /// Copies behind another backing's file.
    pub shadows: u64,
    /// `files`, by slot.
    pub per_backing: Vec<u64>,
}

macro_rules! ops {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// An operation that the kernel asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        #[allow(missing_docs)]
        pub enum Op { $($variant),* }

        impl Op {
            const NAMES: &'static [&'static str] = &[$($name),*];

            /// The operation with this number.
            pub fn from_number(number: usize) -> Option<Op> {
                [$(Op::$variant),*].get(number).copied()
            }

            /// The names of all.
            pub fn names() -> &'static [&'static str] {
                Op::NAMES
            }

            /// Its name, as `status` and the log show it.
            pub fn name(self) -> &'static str {
                Op::NAMES[self as usize]
            }
        }

        pub(super) const OPS: usize = Op::NAMES.len();
    };
}

ops! {
    Lookup "lookup", Forget "forget", Getattr "getattr", Setattr "setattr", Readlink "readlink",
    Mknod "mknod", Mkdir "mkdir", Unlink "unlink", Rmdir "rmdir", Symlink "symlink", Rename "rename",
    Link "link", Open "open", Create "create", Read "read", Write "write", Flush "flush", Release "release",
    Fsync "fsync", Fsyncdir "fsyncdir", Opendir "opendir", Releasedir "releasedir", Readdir "readdir",
    Readdirplus "readdirplus", Statfs "statfs",
    Setxattr "setxattr", Getxattr "getxattr", Listxattr "listxattr", Removexattr "removexattr",
    Ioctl "ioctl", Fallocate "fallocate", Lseek "lseek", CopyFileRange "copy_file_range",
}

/// How often each operation was asked for, and how many handlers panicked.
#[derive(Debug)]
pub struct Counters {
    ops: [AtomicU64; OPS],
    panics: AtomicU64,
    passed_through: AtomicU64,
    by_daemon: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        let (panics, passed_through, by_daemon) = Default::default();
        Counters { ops: std::array::from_fn(|_| AtomicU64::new(0)), panics, passed_through, by_daemon }
    }
}

impl Counters {
    /// One more.
    pub fn count(&self, op: Op) {
        self.ops[op as usize].fetch_add(1, Relaxed);
    }

    /// One panic more.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// One more open whose data the kernel passes through.
    pub fn count_passthrough(&self) {
        self.passed_through.fetch_add(1, Relaxed);
    }

    /// One more open whose data goes through the daemon.
    pub fn count_by_daemon(&self) {
        self.by_daemon.fetch_add(1, Relaxed);
    }

    /// Everything, by name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let ops = Op::NAMES.iter().zip(&self.ops).map(|(name, n)| (*name, n.load(Relaxed)));
        ops.chain([
            ("opens_passed_through", self.passed_through.load(Relaxed)),
            ("opens_by_daemon", self.by_daemon.load(Relaxed)),
            ("panics", self.panics.load(Relaxed)),
        ])
    }
}
