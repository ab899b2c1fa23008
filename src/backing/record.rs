//! The set of a mount's backings as it's written down for a daemon after this one, which has to have the same:
//! node ids have slots in them, and the operator may have changed the set since the mount was started.
//!
//! What always holds: a slot is one identity's for the mount's life, also when its backing has gone. A backing
//! that comes is in the record before anyone can see anything of it, and one that goes until nobody can.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::reopen::Marking;
use super::setup::open_backing;
use super::{Backing, Defaults, Limit, Made, MinFree, SetupError, Spec, State};
use crate::index::Slot;

/// The set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SetRecord(Vec<SlotRecord>);

/// A slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SlotRecord {
    id: Uuid,
    /// `None` when it has gone.
    there: Option<BackingRecord>,
}

/// All of its files leave a backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Bytes a second at most.
    pub bandwidth: Option<u64>,
}

/// A backing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct BackingRecord {
    path: Vec<u8>,
    shared: bool,
    evict: bool,
    /// Without a drain; of one that's drained what it was before.
    state: State,
    drain: Option<Drain>,
    min_free: Option<MinFree>,
    capacity: Option<Limit>,
    /// 0 where its drive hasn't been there.
    weight: u64,
    /// The kernel hasn't heard of all that it has brought.
    joining: bool,
    /// It's being taken out, with or without force.
    leaving: Option<bool>,
}

impl SetRecord {
    /// Those that a mount begins with.
    pub fn of(backings: &[Backing]) -> SetRecord {
        let mut set = SetRecord::default();
        backings.iter().for_each(|backing| set.enter(backing, false));
        set
    }

    /// As it was written down. `None` if it can't be understood.
    pub fn parse(bytes: &[u8]) -> Option<SetRecord> {
        postcard::from_bytes(bytes).ok()
    }

    /// To be written down.
    pub fn bytes(&self) -> Vec<u8> {
        // It fails on what can't be counted beforehand, of which there is none here.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    fn enter(&mut self, backing: &Backing, joining: bool) {
        // Of a drain that its drive has written down that's what counts.
        let (state, drain) = match backing.state() {
            State::Draining => (State::ReadWrite, Some(Drain { bandwidth: None })),
            state => (state, None),
        };
        let there = BackingRecord {
            path: backing.path.as_os_str().as_bytes().to_owned(),
            shared: backing.shared,
            evict: backing.spec.evict,
            state,
            drain,
            min_free: backing.spec.min_free,
            capacity: backing.spec.capacity,
            weight: backing.weight,
            joining,
            leaving: None,
        };
        let slot = SlotRecord { id: backing.id(), there: Some(there) };
        match self.0.get_mut(backing.slot.index()) {
            Some(place) => *place = slot,
            None => self.0.push(slot),
        }
    }

    /// A backing is about to join, in the slot that its identity has or in the next.
    pub fn joins(&mut self, backing: &Backing) {
        self.enter(backing, true);
    }

    /// A drive that wasn't there has come, with this identity.
    pub fn came(&mut self, backing: &Backing) {
        if let Some(place) = self.0.get_mut(backing.slot.index()) {
            place.id = backing.id();
        }
        self.change(backing.slot, |there| there.weight = backing.weight);
    }

    /// All have heard of it.
    pub fn joined(&mut self, slot: Slot) {
        self.change(slot, |backing| backing.joining = false);
    }

    /// A backing is about to be taken out, with or without force.
    pub fn leaves(&mut self, slot: Slot, force: bool) {
        self.change(slot, |backing| backing.leaving = Some(force));
    }

    /// It stays.
    pub fn stays(&mut self, slot: Slot) {
        self.change(slot, |backing| backing.leaving = None);
    }

    /// It has gone.
    pub fn left(&mut self, slot: Slot) {
        if let Some(place) = self.0.get_mut(slot.index()) {
            place.there = None;
        }
    }

    /// A backing takes something else from now on; a drain of it has begun, or is called off.
    pub fn takes(&mut self, slot: Slot, state: State, drain: Option<Drain>) {
        self.change(slot, |backing| (backing.state, backing.drain) = (state, drain));
    }

    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut BackingRecord)) {
        if let Some(backing) = self.0.get_mut(slot.index()).and_then(|slot| slot.there.as_mut()) {
            change(backing);
        }
    }

    /// Identities by slot.
    pub fn ids(&self) -> Vec<Uuid> {
        self.0.iter().map(|slot| slot.id).collect()
    }

    fn find<T>(&self, of: impl Fn(&BackingRecord) -> Option<T>) -> Vec<(Slot, T)> {
        let all = self.0.iter().enumerate();
        all.filter_map(|(at, slot)| Some((Slot(at as u8), of(slot.there.as_ref()?)?))).collect()
    }

    /// Drains that haven't been called off.
    pub fn drains(&self) -> Vec<(Slot, Drain)> {
        self.find(|backing| backing.drain)
    }

    /// Backings that were being taken out when the daemon died, with or without force.
    pub fn leaving(&self) -> Vec<(Slot, bool)> {
        self.find(|backing| backing.leaving)
    }

    /// Backings that were joining when the daemon died.
    pub fn joining(&self) -> Vec<Slot> {
        self.find(|backing| backing.joining.then_some(())).into_iter().map(|(slot, ())| slot).collect()
    }
}

/// Opens the backings of a set again; `kept` are the locks of their markers. Something stands in for those that
/// can't be: refusing would take the other drives' files, too.
pub fn restore(
    set: &SetRecord,
    mut kept: impl FnMut(Slot) -> Option<OwnedFd>,
) -> Result<Vec<Backing>, SetupError> {
    let (mut backings, mut last) = (Vec::new(), None);
    for (at, slot) in set.0.iter().enumerate() {
        let (Some(there), at) = (&slot.there, Slot(at as u8)) else { continue };
        let kept = kept(at);
        let opened = there.open(at, slot.id, kept.as_ref());
        backings.push(opened.or_else(|e| {
            tracing::warn!("{e}; going on without it");
            let absent = Backing::absent(at, slot.id, there.spec());
            let absent = absent.map_err(|e| SetupError::Io(there.spec().path, e));
            last = Some(e);
            absent
        })?);
    }
    if backings.iter().any(|backing| !backing.is_stand_in) {
        return Ok(backings);
    }
    Err(last.unwrap_or(SetupError::None))
}

impl BackingRecord {
    fn spec(&self) -> Spec {
        let path: &Path = OsStr::from_bytes(&self.path).as_ref();
        Spec {
            shared: self.shared,
            evict: self.evict,
            // What is about to go, or is being emptied, gets no new files.
            state: match (self.drain, self.leaving) {
                (None, None) => self.state,
                _ => State::Draining,
            },
            min_free: self.min_free,
            capacity: self.capacity,
            ..Spec::from(PathBuf::from(path))
        }
    }

    fn open(&self, slot: Slot, id: Uuid, kept: Option<&OwnedFd>) -> Result<Backing, SetupError> {
        let marking = match kept {
            Some(kept) => Marking::Kept(id, kept.as_fd()),
            None => Marking::Again(id),
        };
        let (spec, defaults) = (self.spec(), Defaults::default());
        let backing =
            open_backing(|_| Some(slot), &spec.path, &spec, defaults, marking, &mut Made::default())?;
        // As it was counted when it joined: names hash by it.
        let weight = if self.weight > 0 { self.weight } else { backing.weight };
        Ok(Backing { weight, ..backing })
    }
}

#[cfg(test)]
mod tests {
    use super::super::prepare;
    use super::*;

    fn backings(root: &Path, names: &[&str]) -> Vec<Backing> {
        let _ = std::fs::create_dir(root.join("mnt"));
        let specs: Vec<Spec> = names.iter().map(|name| Spec::from(root.join(name))).collect();
        let (backings, made) = prepare(&specs, &root.join("mnt"), Defaults::default()).unwrap();
        made.keep();
        backings
    }

    #[test]
    fn a_set_is_opened_as_it_was_written_down() {
        let tmp = tempfile::tempdir().unwrap();
        let mut all = backings(tmp.path(), &["a", "b", "c", "d"]);
        let d = all.pop().unwrap();
        let mut set = SetRecord::of(&all);
        set.joins(&d);
        set.left(Slot(1));
        set.takes(Slot(2), State::ReadWrite, Some(Drain { bandwidth: Some(7) }));
        set.takes(Slot(0), State::ReadOnly, None);
        set.leaves(Slot(3), true);
        let ids: Vec<Uuid> = all.iter().chain([&d]).map(Backing::id).collect();
        drop((all, d));
        let set = SetRecord::parse(&set.bytes()).unwrap();
        assert_eq!(set.ids(), ids);
        assert_eq!(set.drains(), [(Slot(2), Drain { bandwidth: Some(7) })]);
        assert_eq!((set.leaving(), set.joining()), (vec![(Slot(3), true)], vec![Slot(3)]));
        let again = restore(&set, |_| None).unwrap();
        let seen: Vec<_> = again.iter().map(|b| (b.slot, b.state(), b.id())).collect();
        let expected = [(0, State::ReadOnly), (2, State::Draining), (3, State::Draining)];
        assert_eq!(seen, expected.map(|(at, state)| (Slot(at), state, ids[usize::from(at)])));
        drop(again);
        // Something stands in for what isn't there, and nothing is made in its place.
        std::fs::remove_file(tmp.path().join("a").join(super::super::MARKER)).unwrap();
        let again = restore(&set, |_| None).unwrap();
        let away: Vec<_> = again.iter().map(|b| (b.is_stand_in, b.id())).collect();
        assert_eq!(away, [(true, ids[0]), (false, ids[2]), (false, ids[3])]);
        assert_eq!(std::fs::read_dir(tmp.path().join("a")).unwrap().count(), 0);
        assert_eq!(SetRecord::parse(b"\xff\xff"), None);
    }

    #[test]
    fn one_that_comes_back_has_its_slot() {
        let tmp = tempfile::tempdir().unwrap();
        let all = backings(tmp.path(), &["a", "b"]);
        let mut set = SetRecord::of(&all);
        set.left(Slot(0));
        set.joins(&all[0]);
        set.joined(Slot(0));
        assert_eq!(set, SetRecord::of(&all));
        set.leaves(Slot(1), false);
        set.stays(Slot(1));
        assert_eq!(set, SetRecord::of(&all));
    }
}
