//! The kernel's table of backing files: what it may read and write by itself (FUSE passthrough).
//!
//! What always holds: an id is registered once per inode and lives while a [`Registered`] does, which must
//! be as long as any open of the inode: an inode that is open with one id can't be opened with another
//! (EIO; fs/fuse/iomode.c). The kernel reopens the backing file with the client's flags and with the
//! credentials of the thread that registered it (fs/fuse/passthrough.c).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::supervise::{NodeRecord, State};

/// `struct fuse_backing_map` (include/uapi/linux/fuse.h).
#[repr(C)]
struct FuseBackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

mod ioctl {
    //! `FUSE_DEV_IOC_BACKING_OPEN` and `_CLOSE` (include/uapi/linux/fuse.h, 7.40).
    #![allow(missing_docs, clippy::undocumented_unsafe_blocks)]
    nix::ioctl_write_ptr!(backing_open, 229, 1, super::FuseBackingMap);
    nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
}

/// A session's `/dev/fuse`, as far as backing files go.
#[derive(Debug)]
pub struct BackingRegistry {
    device: OwnedFd,
    /// Where the ids of inodes are written down for a daemon after this one.
    state: Option<Arc<State>>,
}

/// A backing file that the kernel knows.
#[derive(Debug)]
pub struct Registered {
    id: i32,
    /// Where it's written down.
    kept: Option<u32>,
    registry: Arc<BackingRegistry>,
}

impl BackingRegistry {
    /// For the session whose `/dev/fuse` this is.
    pub fn new(device: OwnedFd, state: Option<Arc<State>>) -> Arc<BackingRegistry> {
        Arc::new(BackingRegistry { device, state })
    }

    /// Registers a regular file; any descriptor of it will do.
    ///
    /// EPERM: no CAP_SYS_ADMIN, or the session didn't negotiate passthrough. ELOOP: the file's file system
    /// is stacked deeper than negotiated. EOPNOTSUPP, EINVAL: this file can't be passed through.
    pub fn register(self: &Arc<Self>, file: BorrowedFd<'_>) -> io::Result<Registered> {
        let map = FuseBackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the descriptor is /dev/fuse and the struct is what this ioctl reads.
        let id = unsafe { ioctl::backing_open(self.device.as_raw_fd(), &map) }?;
        Ok(Registered { id, kept: None, registry: self.clone() })
    }

    /// The same for the file of a node, whose id outlives this daemon.
    pub fn register_node(self: &Arc<Self>, file: BorrowedFd<'_>, node: u64) -> io::Result<Registered> {
        let mut registered = self.register(file)?;
        registered.kept = self.state.as_ref().and_then(|state| state.keep_node(node, registered.id()));
        Ok(registered)
    }

    /// What a daemon before has registered with this session.
    pub fn adopt(self: &Arc<Self>, record: NodeRecord) -> Registered {
        Registered { id: record.backing_id as i32, kept: Some(record.at), registry: self.clone() }
    }
}

impl Registered {
    /// The number for `fuse_open_out.backing_id`.
    pub fn id(&self) -> u32 {
        self.id as u32
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let id = self.id as u32;
        // First: an id that is written down and closed would be taken for a good one.
        if let (Some(state), Some(at)) = (&self.registry.state, self.kept) {
            state.drop_node(at);
        }
        // SAFETY: the descriptor is /dev/fuse and the ioctl reads a u32.
        // It fails only when the connection is gone, and the ids with it.
        let _ = unsafe { ioctl::backing_close(self.registry.device.as_fd().as_raw_fd(), &id) };
    }
}
