//! Which backing each thread is at: so that whoever looks on from outside knows which drive a request waits for.
//!
//! What always holds: it says no more than that the thread was about to ask that backing for something. A thread that
//! waits for another one is nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::index::Slot;

/// Where a thread is: a slot's number and 1, or 0.
#[derive(Debug, Default)]
pub struct Place(AtomicU8);

impl Place {
    /// The backing that the thread is at.
    pub fn slot(&self) -> Option<Slot> {
        self.0.load(Relaxed).checked_sub(1).map(Slot)
    }
}

thread_local!(static HERE: Arc<Place> = Arc::default());

/// Where the calling thread is, now and later.
pub fn here() -> Arc<Place> {
    HERE.with(Arc::clone)
}

/// The backing that the calling thread is at.
pub fn place() -> Option<Slot> {
    HERE.with(|here| here.slot())
}

/// The calling thread is about to ask a backing.
pub(super) fn at(slot: Slot) {
    HERE.with(|here| here.0.store(slot.0 + 1, Relaxed));
}

/// The calling thread is about to wait for another one, or begins anew.
pub fn nowhere() {
    HERE.with(|here| here.0.store(0, Relaxed));
}
