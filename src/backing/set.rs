//! The backings of a mount, by slot; the set may change while it's mounted.
//!
//! What always holds: a slot is one backing's for the mount's life, also after that was removed: node ids
//! that the kernel still knows can't become another backing's files. Whoever took a [`List`] keeps what was
//! in it; whoever asks by slot for a backing that was removed gets nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use uuid::Uuid;

use super::Backing;
use crate::index::{MAX_BACKINGS, Slot, SlotSet};

/// The backings there are at one moment.
#[derive(Clone, Debug)]
pub struct List(Arc<Vec<Option<Arc<Backing>>>>);

impl List {
    /// They, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Backing>> {
        self.0.iter().flatten()
    }

    /// The backing with this slot, unless it was removed.
    pub fn get(&self, slot: Slot) -> Option<&Arc<Backing>> {
        self.0.get(slot.index()).and_then(Option::as_ref)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A mount's backings.
#[derive(Debug)]
pub struct Backings {
    list: ArcSwap<Vec<Option<Arc<Backing>>>>,
    /// Those that others change too, as bits of slots.
    shared: AtomicU64,
    /// Identities by slot, those of removed backings too.
    ever: Mutex<Vec<Uuid>>,
}

impl Backings {
    /// Those that a daemon starts with; `ever` are the identities of all slots that the mount has given so far.
    pub fn new(backings: Vec<Backing>, ever: Vec<Uuid>) -> Backings {
        let shared = backings.iter().filter(|b| b.shared).map(|b| b.slot).collect::<SlotSet>();
        let mut list = vec![None; ever.len()];
        for backing in backings {
            let at = backing.slot.index();
            list.resize(list.len().max(at + 1), None);
            list[at] = Some(Arc::new(backing));
        }
        let shared = AtomicU64::new(shared.bits());
        Backings { list: ArcSwap::from_pointee(list), shared, ever: Mutex::new(ever) }
    }

    /// Those there are now.
    pub fn list(&self) -> List {
        List(self.list.load_full())
    }

    /// The backing with this slot, unless it was removed.
    pub fn get(&self, slot: Slot) -> Option<Arc<Backing>> {
        self.list.load().get(slot.index()).and_then(Clone::clone)
    }

    /// Those that others change too.
    pub fn shared(&self) -> SlotSet {
        SlotSet::from_bits(self.shared.load(Relaxed))
    }

    /// The slot that a backing with this identity would get: the one that it had before, else a new one.
    /// `None` when all are used up.
    pub fn slot_for(&self, id: Uuid) -> Option<Slot> {
        let ever = self.ever.lock();
        let slot = ever.iter().position(|known| *known == id).unwrap_or(ever.len());
        (slot < MAX_BACKINGS).then_some(Slot(slot as u8))
    }

    /// Takes a backing in, whose slot is from [`Backings::slot_for`].
    pub fn enter(&self, backing: Backing) -> Arc<Backing> {
        let backing = Arc::new(backing);
        let at = backing.slot.index();
        let mut ever = self.ever.lock();
        if at == ever.len() {
            ever.push(backing.id());
        }
        let mut list = Vec::clone(&self.list.load());
        list.resize(list.len().max(at + 1), None);
        list[at] = Some(backing.clone());
        if backing.shared {
            self.shared.fetch_or(SlotSet::one(backing.slot).bits(), Relaxed);
        }
        self.list.store(Arc::new(list));
        backing
    }

    /// Puts something else into the slot of a backing, which is returned: its stand-in, or itself again. `None`,
    /// and nothing was done, if it was removed meanwhile.
    pub fn replace(&self, backing: Backing) -> Option<(Arc<Backing>, Arc<Backing>)> {
        let backing = Arc::new(backing);
        let at = backing.slot.index();
        let mut ever = self.ever.lock();
        let mut list = Vec::clone(&self.list.load());
        let before = list.get_mut(at)?.replace(backing.clone())?;
        ever[at] = backing.id();
        self.list.store(Arc::new(list));
        Some((backing, before))
    }

    /// Takes a backing out.
    pub fn remove(&self, slot: Slot) -> Option<Arc<Backing>> {
        let _ever = self.ever.lock();
        let mut list = Vec::clone(&self.list.load());
        let removed = list.get_mut(slot.index()).and_then(Option::take);
        self.shared.fetch_and(!SlotSet::one(slot).bits(), Relaxed);
        self.list.store(Arc::new(list));
        removed
    }
}
