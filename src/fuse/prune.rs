//! Having the kernel drop the names of a node that it knows, or look up all names again, without the lock of
//! their directories: a client that waits for an answer of ours may hold that lock.
//!
//! What always holds: one write to `/dev/fuse`; a kernel that can't do it (before Linux 6.18, and 6.16) is asked
//! once.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::Errno;

/// `FUSE_NOTIFY_PRUNE` (include/uapi/linux/fuse.h, 7.45).
const FUSE_NOTIFY_PRUNE: u32 = 9;
/// `FUSE_NOTIFY_INC_EPOCH` (the same, 7.44).
const FUSE_NOTIFY_INC_EPOCH: u32 = 8;

/// A session's `/dev/fuse`, as far as this goes.
#[derive(Debug)]
pub(super) struct Pruner {
    device: OwnedFd,
    no_prune: AtomicBool,
    no_epoch: AtomicBool,
}

impl Pruner {
    pub(super) fn new(device: OwnedFd) -> Pruner {
        Pruner { device, no_prune: AtomicBool::new(false), no_epoch: AtomicBool::new(false) }
    }

    /// Has the names dropped that nobody uses this moment. False where the kernel can't.
    pub(super) fn prune(&self, node: u64) -> bool {
        self.write(&notice(node), &self.no_prune)
    }

    /// Has all names looked up again that the kernel knows now, when they are next used. False where it can't.
    pub(super) fn age_all(&self) -> bool {
        let mut bytes = [0; 16];
        bytes[0..4].copy_from_slice(&16u32.to_ne_bytes());
        bytes[4..8].copy_from_slice(&FUSE_NOTIFY_INC_EPOCH.to_ne_bytes());
        self.write(&bytes, &self.no_epoch)
    }

    fn write(&self, notice: &[u8], refused: &AtomicBool) -> bool {
        if refused.load(Relaxed) {
            return false;
        }
        match rustix::io::write(&self.device, notice) {
            // The connection is gone, and with it the names.
            Ok(_) | Err(Errno::NODEV | Errno::NOTCONN) => true,
            Err(e) => {
                tracing::debug!("the kernel doesn't drop names without a lock: {}", io::Error::from(e));
                refused.store(true, Relaxed);
                false
            }
        }
    }
}

/// `struct fuse_out_header`, `struct fuse_notify_prune_out` and one node id.
fn notice(node: u64) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[0..4].copy_from_slice(&40u32.to_ne_bytes());
    bytes[4..8].copy_from_slice(&FUSE_NOTIFY_PRUNE.to_ne_bytes());
    // A notice answers no request (8..16), and is of one node (16..20).
    bytes[16..20].copy_from_slice(&1u32.to_ne_bytes());
    bytes[32..40].copy_from_slice(&node.to_ne_bytes());
    bytes
}
