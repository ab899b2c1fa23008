//! How long requests take: from the moment one was read to its answer.
//!
//! What always holds: a request is timed once, by whoever answers it, and by one look at the clock beside the one that
//! the watch needs anyway. What nobody waits for (FORGET) isn't timed.

use std::cell::Cell;
use std::time::Instant;

use crate::fs::{Fs, Op, place};
use crate::index::{Node, NodeId, Slot};

thread_local!(static UNDER_WAY: Cell<Option<(Instant, Option<Op>)>> = const { Cell::new(None) });

/// The calling thread begins with a request.
pub(super) fn begin(at: Instant) {
    UNDER_WAY.set(Some((at, None)));
}

/// The request that the calling thread is at asks for this.
pub(super) fn asks_for(op: Op) {
    if let Some((at, _)) = UNDER_WAY.get() {
        UNDER_WAY.set(Some((at, Some(op))));
    }
}

/// The request that the calling thread is at was answered, unless somebody else will.
pub(super) fn answered(fs: &Fs, about: NodeId) {
    if let Some((at, Some(op))) = UNDER_WAY.take() {
        Timed { at: Some(at), op }.answered(fs, about);
    }
}

/// A request that somebody else than the calling thread answers, or later.
pub(super) struct Timed {
    at: Option<Instant>,
    op: Op,
}

/// Somebody else than the calling thread answers its request, which asks for this.
pub(super) fn hand_on(op: Op) -> Timed {
    Timed { at: UNDER_WAY.take().map(|(at, _)| at), op }
}

impl Timed {
    /// It's answered, by a thread that did what it asks for. It counts for the backing that the thread was at, or else
    /// for the file's own.
    pub(super) fn answered(self, fs: &Fs, about: NodeId) {
        self.answered_at(fs, place().or_else(|| slot_of(about)));
    }

    /// It's answered; it counts for this backing.
    pub(super) fn answered_at(self, fs: &Fs, slot: Option<Slot>) {
        if let Some(at) = self.at {
            fs.metrics.request(self.op as usize, slot, at.elapsed());
        }
    }
}

/// The backing of a file.
pub(super) fn slot_of(node: NodeId) -> Option<Slot> {
    match node.node() {
        Some(Node::File(slot, _)) => Some(slot),
        _ => None,
    }
}
