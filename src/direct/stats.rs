//! What the fast path has done, and what it holds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::engine::Direction;
use super::gpu::GpuStatus;

/// Counts since the mount.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    calls: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    pub(crate) fn call(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    /// A call that was answered with an errno.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// An op that has ended.
    pub(crate) fn op(&self, direction: Direction, result: i64) {
        let Ok(bytes) = u64::try_from(result) else {
            self.failed.fetch_add(1, Relaxed);
            return;
        };
        let (ops, moved) = match direction {
            Direction::Read => (&self.reads, &self.bytes_read),
            Direction::Write => (&self.writes, &self.bytes_written),
        };
        ops.fetch_add(1, Relaxed);
        moved.fetch_add(bytes, Relaxed);
    }

    /// All counts.
    pub(crate) fn read(&self) -> OpCounts {
        OpCounts {
            calls: self.calls.load(Relaxed),
            refused: self.refused.load(Relaxed),
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            failed: self.failed.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
        }
    }
}

/// What was done since the mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OpCounts {
    /// ioctls of ours.
    pub calls: u64,
    /// Of them answered with an errno.
    pub refused: u64,
    /// Ops that moved data from a file to a buffer.
    pub reads: u64,
    /// Ops that moved data from a buffer to a file.
    pub writes: u64,
    /// Ops that failed.
    pub failed: u64,
    /// Bytes from files to buffers.
    pub bytes_read: u64,
    /// Bytes from buffers to files.
    pub bytes_written: u64,
}

/// The fast path in `kvfs status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DirectStatus {
    /// Whether ioctls are answered at all.
    pub on: bool,
    /// How host memory is served: `uring_host`, or why it isn't.
    pub host: String,
    /// Registered buffers.
    pub buffers: u64,
    /// Bytes in them.
    pub buffer_bytes: u64,
    /// Calls under way.
    pub in_flight: u64,
    /// Whether descriptors can be sent through the socket in the mount.
    pub fd_socket: bool,
    /// What was done.
    pub counts: OpCounts,
    /// GPUs: how data moves between each backing and their memory, and by which processes.
    pub gpu: GpuStatus,
}
