//! What moves bytes between a backing file and a registered buffer.
//!
//! What always holds: an engine ends every op it's given, once; it moves all of the op up to the end of the
//! file, or fails it; while it works the op keeps the file open, its truncations away and the buffer's memory
//! alive.

use std::sync::Arc;

use super::abi::Path;
use super::buffer::Use;
use super::call::Ticket;
use crate::fs::{Passage, Pinned};

/// Moves bytes.
pub(crate) trait Engine: Send + Sync {
    /// The path it is.
    fn path(&self) -> Path;
    /// Takes ops; returns without waiting for them. What an engine can't take it ends with an error.
    fn submit(&self, ops: Vec<Op>);
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Direction {
    /// From the file to the buffer.
    Read,
    /// From the buffer to the file.
    Write,
}

/// One transfer on its way. Authorised: the buffer's bounds and the open mode were checked.
pub(crate) struct Op {
    /// The file; open until the op has ended.
    pub(crate) file: Arc<Pinned>,
    /// The buffer, likewise.
    pub(crate) buffer: Use,
    /// Which way.
    pub(crate) direction: Direction,
    /// Where in the buffer, in bytes from its registered start.
    pub(crate) buf_off: u64,
    /// Where in the file.
    pub(crate) file_off: u64,
    /// How many bytes; not 0.
    pub(crate) len: u64,
    pub(super) passage: Passage,
    pub(super) ticket: Ticket,
}

impl Op {
    /// Ends it: bytes moved, `-errno`, or `-(cuFile code)`.
    pub(crate) fn end(self, result: i64, path: Path) {
        let Op { file, buffer, direction, file_off, len, passage, ticket, .. } = self;
        // What waits for the op to end finds it ended when the client does.
        drop((passage, buffer));
        if direction == Direction::Write && result != 0 {
            // After an error too: a part may have been written.
            ticket.changed(file, file_off, u64::try_from(result).unwrap_or(len));
        }
        ticket.end(result, path);
    }

    /// Ends it with an errno.
    pub(crate) fn fail(self, errno: i32) {
        self.end(-i64::from(errno), Path::None);
    }
}
