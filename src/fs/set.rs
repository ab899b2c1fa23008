//! The set of backings, written down for a daemon after this one.
//!
//! What always holds: what a client or the operator has seen of a change of the set, the next daemon knows. A
//! change that was cut off goes on: a backing that was coming has come, and who knows the kernel to have old
//! answers tells it; one that was going is taken out by the daemon that finds it.

use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Fs;
use super::open::OpenNode;
use crate::backing::{Backing, Drain, SetRecord, State};
use crate::index::{DirId, Slot};
use crate::supervise::{self, Tag};

/// The record, and where it's kept.
pub(super) struct Set {
    record: Mutex<SetRecord>,
    state: Option<Arc<supervise::State>>,
}

impl Set {
    /// The record that a daemon before has left, else one of these backings.
    pub(super) fn new(state: Option<Arc<supervise::State>>, backings: &[Backing]) -> Set {
        let left = state.as_ref().and_then(|state| SetRecord::parse(&state.set()?));
        let is_new = left.is_none();
        let set = Set { record: Mutex::new(left.unwrap_or_else(|| SetRecord::of(backings))), state };
        if is_new {
            set.change(|_| ());
        }
        set
    }

    /// Identities by slot.
    pub(super) fn ids(&self) -> Vec<uuid::Uuid> {
        self.record.lock().ids()
    }

    fn change(&self, change: impl FnOnce(&mut SetRecord)) {
        let mut record = self.record.lock();
        change(&mut record);
        if let Some(state) = &self.state
            && !state.keep_set(&record.bytes())
        {
            tracing::error!(
                "the set of backings is too long to be written down: if the daemon dies, the next one has the set that was"
            );
        }
    }
}

impl Fs {
    /// The mount is there: its backings' locks are held over a crash, so that no other mount takes them meanwhile.
    pub fn keep_locks(&self) {
        self.backings().iter().for_each(|backing| backing.keep_lock(&self.keeper));
    }

    /// The mount has ended: nothing is kept any more.
    pub fn end_keeping(&self) {
        let locks: Vec<Tag> = self.backings().iter().map(|backing| Tag::Lock(backing.slot.0)).collect();
        let lifeline = self.state.as_ref().map(|state| Tag::Lifeline(state.starts()));
        self.keeper.end(locks.into_iter().chain(lifeline));
    }

    /// A backing is about to join.
    pub(super) fn record_joining(&self, backing: &Backing) {
        self.set.change(|set| set.joins(backing));
        backing.keep_lock(&self.keeper);
    }

    /// A drive that was away is there again.
    pub(super) fn record_return(&self, backing: &Backing) {
        self.set.change(|set| set.came(backing));
        backing.keep_lock(&self.keeper);
    }

    /// All have heard of a backing that has joined.
    pub(crate) fn record_joined(&self, slot: Slot) {
        self.set.change(|set| set.joined(slot));
    }

    /// A backing is about to be taken out.
    pub(super) fn record_leaving(&self, slot: Slot, force: bool) {
        self.set.change(|set| set.leaves(slot, force));
    }

    /// It stays after all.
    pub(super) fn record_staying(&self, slot: Slot) {
        self.set.change(|set| set.stays(slot));
    }

    /// A backing has gone, and nobody has an answer of it. Its lock is free.
    pub(crate) fn record_left(&self, slot: Slot) {
        super::fault::first_point("set left before", &self.state);
        self.set.change(|set| set.left(slot));
        super::fault::first_point("set left after", &self.state);
        self.keeper.release(Tag::Lock(slot.0));
        self.keeper.sync();
    }

    /// A backing takes something else from now on, by the operator's word.
    pub(crate) fn record_state(&self, slot: Slot, state: State, drain: Option<Drain>) {
        super::fault::first_point("set state before", &self.state);
        self.set.change(|set| set.takes(slot, state, drain));
        super::fault::first_point("set state after", &self.state);
    }

    /// Drains that a daemon before had begun.
    pub(crate) fn unfinished_drains(&self) -> Vec<(Slot, Drain)> {
        self.set.record.lock().drains()
    }

    /// Removals that it had begun, with or without force.
    pub(crate) fn unfinished_removals(&self) -> Vec<(Slot, bool)> {
        self.set.record.lock().leaving()
    }

    /// Tells the kernel of what backings have brought that were joining when a daemon before died.
    pub(crate) fn tell_joined(&self) {
        let joining = self.set.record.lock().joining();
        for slot in joining {
            let mut from = Some(0);
            while let Some(at) = from {
                let (items, next) = self.items_on(slot, at);
                from = next;
                items.iter().for_each(|item| self.tell_changed(item.dir, &item.name));
            }
            let dirs = self.index.read().dirs_on(slot);
            for dir in dirs {
                self.tell_changed(dir.parent, &dir.name);
                self.tell_listing(dir.id);
            }
            self.tell_listing(DirId::ROOT);
            self.record_joined(slot);
        }
    }

    /// Has the open files of a backing kept for a daemon after this one, which won't find them by name.
    pub(super) fn keep_open_of(&self, slot: Slot) {
        self.open.open_on(slot).iter().for_each(|open| self.keep_nameless(open));
    }

    /// The same for an open file whose name will be another's.
    pub(super) fn keep_open(&self, open: &OpenNode) {
        if self.keeper.is_there() && open.begin_keeping() {
            self.keeper.keep(Tag::File(open.node.0), open.fd.as_fd());
        }
    }
}
