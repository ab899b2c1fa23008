//! An op as the worker's keeper sees it: where the bytes are, and whom to tell.
//!
//! What always holds: a job is ended once; one that's dropped tells nobody by itself, but drops what was to be
//! told, and that knows (an op's ticket does).

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::direct::abi::Path;
use crate::direct::engine::{self, Direction};
use crate::fs::{self, Pinned};
use crate::index::Slot;

/// A file that descriptors can be had of.
pub(super) trait Source: Send + Sync {
    /// The one for direct I/O, where the backing takes it, and the one through the page cache; or an errno.
    fn descriptors(&self) -> Result<(Option<BorrowedFd<'_>>, BorrowedFd<'_>), i32>;
}

impl Source for Pinned {
    fn descriptors(&self) -> Result<(Option<BorrowedFd<'_>>, BorrowedFd<'_>), i32> {
        let errno = |e: fs::Error| e.errno().raw_os_error();
        Ok((self.direct().map_err(errno)?, self.buffered().map_err(errno)?))
    }
}

/// Told how a job ended: bytes, `-errno` or `-(cuFile code)`.
pub(super) type Told = Box<dyn FnOnce(i64, Path) + Send>;

/// One transfer.
pub(super) struct Job {
    pub(super) file: Arc<dyn Source>,
    /// The file's number, which no other has.
    pub(super) serial: u64,
    /// What direct I/O has to be a multiple of, in bytes.
    pub(super) align: u64,
    /// Whether the file's backing is one that cuFile can read.
    pub(super) cufile: bool,
    pub(super) direction: Direction,
    pub(super) buf_off: u64,
    pub(super) file_off: u64,
    pub(super) len: u64,
    /// When its client stops waiting.
    pub(super) deadline: Instant,
    pub(super) told: Told,
}

impl Job {
    /// `cufile` says whether cuFile can read a backing.
    pub(super) fn new(op: engine::Op, cufile: impl FnOnce(Slot) -> bool) -> Job {
        Job {
            file: op.file.clone(),
            serial: op.file.serial(),
            align: op.file.align(),
            cufile: cufile(op.file.slot()),
            direction: op.direction,
            buf_off: op.buf_off,
            file_off: op.file_off,
            len: op.len,
            deadline: op.ticket.deadline(),
            told: Box::new(move |result, path| op.end(result, path)),
        }
    }

    /// Ends it.
    pub(super) fn end(self, result: i64, path: Path) {
        // What is told may be what keeps the file open.
        drop(self.file);
        (self.told)(result, path);
    }

    /// Ends it with an errno.
    pub(super) fn fail(self, errno: i32) {
        self.end(-i64::from(errno), Path::None);
    }
}
