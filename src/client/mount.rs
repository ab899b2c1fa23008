//! A mount: whether it has the fast path, and what it can do.
//!
//! What always holds: a [`Mount`] that could be opened is kvfs, speaks a version this client knows, and sees
//! this process; the buffers registered with it belong to the process and not to the [`Mount`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::call::call;
use super::error::{Call, Error};
use crate::direct::abi;

/// `FUSE_SUPER_MAGIC` (include/uapi/linux/magic.h).
const FUSE_MAGIC: i64 = 0x6573_5546;

/// What a mount can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Abilities {
    /// Buffers in host memory.
    pub host: bool,
    /// Buffers in CUDA memory by an IPC handle.
    pub cuda_ipc: bool,
    /// Buffers in CUDA memory by the descriptor of a VMM allocation.
    pub cuda_vmm: bool,
    /// GPU buffers that the daemon allocates.
    pub daemon_alloc: bool,
    /// Many transfers in one call.
    pub batch: bool,
    /// To say where a file really is.
    pub locate: bool,
    /// To take descriptors through the socket in the mount.
    pub socket: bool,
    /// To look up many names in one call.
    pub lookup_prefix: bool,
}

impl Abilities {
    fn of(bits: u64) -> Abilities {
        use abi::feature::*;
        let has = |bit| bits & bit != 0;
        Abilities {
            host: has(MEMFD),
            cuda_ipc: has(CUDA_IPC),
            cuda_vmm: has(CUDA_VMM_FD),
            daemon_alloc: has(DAEMON_ALLOC),
            batch: has(BATCH),
            locate: has(LOCATE),
            socket: has(FD_SOCKET),
            lookup_prefix: has(LOOKUP_PREFIX),
        }
    }
}

/// How the bytes of a transfer move now, and why no better way: `KVFS_PATH_*` and `KVFS_WHY_*` of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Transport {
    /// `KVFS_PATH_*`; 0 when transfers aren't possible.
    pub path: u32,
    /// `KVFS_WHY_*`; 0 when it's the best there is.
    pub reason: u32,
}

impl Transport {
    /// Whether transfers are possible.
    pub fn possible(self) -> bool {
        self.path != abi::Path::None as u32
    }
}

/// What QUERY says of the mount and of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What the mount can do.
    pub abilities: Abilities,
    /// Transfers of one call.
    pub max_batch_ops: u32,
    /// Buffers of one user.
    pub max_buffers: u32,
    /// Bytes of one call, all its transfers together.
    pub max_io_bytes: u64,
    /// Bytes of one user's buffers.
    pub max_buffer_bytes: u64,
    /// File offsets and lengths in multiples of this need no page cache.
    pub offset_align: u32,
    /// The same for offsets in a buffer.
    pub memory_align: u32,
    /// Bytes of one transfer from which on more brings little.
    pub optimal_io: u32,
    /// The slot of the backing that the file is on; `None` for a directory.
    pub backing: Option<u32>,
    /// Transfers to and from GPU buffers.
    pub gpu: Transport,
    /// Transfers to and from host buffers.
    pub host: Transport,
    /// The NUMA node of the backing, if known.
    pub numa_node: Option<u32>,
    /// This process as the daemon sees it; `None` if it doesn't.
    pub seen_as: Option<u32>,
    /// The open file in transfers issued on another; `None` for a directory.
    pub token: Option<u64>,
    /// Another number for each mount: buffers and tokens are gone when it changes. The same for all daemons of one.
    pub session: u64,
}

/// Asks QUERY of an open file or directory.
pub(super) fn query(fd: impl AsFd) -> Result<Facts, Error> {
    let mut q = abi::Query { abi: abi::VERSION, ..Default::default() };
    call(fd, Call::Query, &mut q)?;
    if q.abi != abi::VERSION {
        return Err(Error::Version { spoken: q.abi, known: abi::VERSION });
    }
    Ok(Facts {
        abilities: Abilities::of(q.features),
        max_batch_ops: q.max_batch_ops,
        max_buffers: q.max_buffers,
        max_io_bytes: q.max_io_bytes,
        max_buffer_bytes: q.max_buffer_bytes,
        offset_align: q.dio_off_align,
        memory_align: q.dio_mem_align,
        optimal_io: q.optimal_io,
        backing: (q.backing_id != abi::NO_BACKING).then_some(q.backing_id),
        gpu: Transport { path: q.path_gpu, reason: q.gpu_reason },
        host: Transport { path: q.path_host, reason: q.host_reason },
        numa_node: u32::try_from(q.numa_node).ok(),
        seen_as: (q.seen_tgid != 0).then_some(q.seen_tgid),
        token: (q.file_token != 0).then_some(q.file_token),
        session: q.session,
    })
}

/// A kvfs mount, opened by one of its directories.
#[derive(Clone, Debug)]
pub struct Mount {
    dir: Arc<OwnedFd>,
    path: PathBuf,
    facts: Facts,
}

impl Mount {
    /// Opens the mount that `directory` is in, and asks it what it can do.
    pub fn open(directory: impl AsRef<Path>) -> Result<Mount, Error> {
        let path = directory.as_ref().to_path_buf();
        let failed = |errno: Errno| match errno {
            Errno::NOTCONN => Error::Dead { path: path.clone() },
            errno => Error::Open { path: path.clone(), source: errno.into() },
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed)?;
        let kind = rustix::fs::fstatfs(&dir).map_err(failed)?.f_type;
        // Its type differs between architectures.
        #[allow(clippy::unnecessary_cast)]
        if kind as i64 != FUSE_MAGIC {
            return Err(Error::NotFuse { path });
        }
        let facts = match query(&dir) {
            Err(Error::Refused { errno: Errno::NOTTY | Errno::NOSYS | Errno::INVAL, .. }) => {
                return Err(Error::NotKvfs { path });
            }
            Err(Error::Refused { errno: Errno::NOTCONN, .. }) => return Err(Error::Dead { path }),
            other => other?,
        };
        if facts.seen_as.is_none() {
            return Err(Error::Unseen);
        }
        Ok(Mount { dir: Arc::new(dir), path, facts })
    }

    /// The directory it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it said when it was opened.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What it says now.
    pub fn query(&self) -> Result<Facts, Error> {
        query(&*self.dir)
    }

    /// Where it's mounted: the topmost directory of its file system.
    fn root(&self) -> std::io::Result<PathBuf> {
        let mut root = self.path.canonicalize()?;
        let device = rustix::fs::fstat(&*self.dir)?.st_dev;
        if rustix::fs::stat(&root)?.st_dev != device {
            // Something else has been mounted there since.
            return Err(Errno::XDEV.into());
        }
        while let Some(above) = root.parent()
            && rustix::fs::stat(above)?.st_dev == device
        {
            root = above.to_owned();
        }
        Ok(root)
    }

    /// Hands `fd` to the daemon through the socket in the mount's root.
    pub(super) fn send(&self, fd: BorrowedFd<'_>) -> Result<u64, Error> {
        let sent = || {
            let point = self.root()?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(&point, flags, Mode::empty())?;
            super::socket::send(&point, root.as_fd(), fd)
        };
        sent().map_err(|source| Error::Socket { source })
    }
}

impl AsFd for Mount {
    /// The directory it was opened by.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
