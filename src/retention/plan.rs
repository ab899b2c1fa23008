//! Which files would go, in which order.
//!
//! What always holds: a pass over the index holds its lock for a few thousand names at a time; files that
//! are no regular files are never chosen, and a file's class is judged by the record alone, without the disk.

use std::collections::{BinaryHeap, HashMap};

use parking_lot::RwLock;

use super::creators::{ANYONE, GONE};
use super::{BackingPlan, Evict, Retention, Store, metadata_of, pair, place};
use crate::backing::Backing;
use crate::index::{
    CreatorCode, DirId, EntryId, FileRef, Index, Kind, MAX_BACKINGS, Moment, NodeId, Slot, SlotSet, What,
};

/// How little a file is missed. The order is that of eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The only process that could have found it is gone.
    Orphan = 0,
    /// Any process can find it again, or store it anew.
    Found = 1,
    /// A living process has it in its memory, and may take its absence badly.
    Remembered = 2,
}

impl Class {
    /// All, in order.
    pub const ALL: [Class; 3] = [Class::Orphan, Class::Found, Class::Remembered];

    fn of(creator: CreatorCode) -> Class {
        match creator {
            GONE => Class::Orphan,
            ANYONE => Class::Found,
            _ => Class::Remembered,
        }
    }

    /// Its name, as status and log show it.
    pub fn name(self) -> &'static str {
        match self {
            Class::Orphan => "orphan",
            Class::Found => "least recently used",
            Class::Remembered => "least recently used, its creator lives",
        }
    }
}

/// A file that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its name's entry.
    pub entry: EntryId,
    /// What the name stood for.
    pub file: FileRef,
    /// Its directory.
    pub dir: DirId,
    /// Its name.
    pub name: Vec<u8>,
    /// Why it may go.
    pub class: Class,
    /// Who made it.
    pub creator: CreatorCode,
    /// When it was last used, as far as that is known: if it's used again, it stays.
    pub used: Moment,
}

/// Victims of a plan for people.
const PLANNED: usize = 1 << 17;
/// Names looked at while the index is locked.
const AT_A_TIME: u32 = 8192;

/// Where victims are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// On a backing.
    Backing(Slot),
    /// In a directory and below it, on these backings.
    Below(DirId, SlotSet),
}

impl From {
    /// `known` keeps which directories are below.
    fn has(self, index: &Index, entry: EntryId, file: FileRef, known: &mut HashMap<DirId, bool>) -> bool {
        match self {
            From::Backing(slot) => file.slot == slot,
            From::Below(top, slots) => {
                let dir = index.place(entry).0;
                slots.has(file.slot) && *known.entry(dir).or_insert_with(|| index.is_within(dir, top))
            }
        }
    }
}

/// Which files are to be chosen.
pub(super) struct Choice<'a> {
    /// Of these.
    pub(super) from: From,
    /// By this rule.
    pub(super) evict: Evict,
    /// At most so many.
    pub(super) most: usize,
    /// Files from before the mount that nobody has looked at yet can't be judged, from this entry on.
    pub(super) unseen_from: Option<u32>,
    /// Files that are to stay.
    pub(super) stays: &'a dyn Fn(EntryId, NodeId) -> bool,
}

/// The files that go first, in order.
pub(super) fn choose(index: &RwLock<Index>, choice: &Choice<'_>) -> Vec<Victim> {
    let Choice { from, evict, most, unseen_from, stays } = *choice;
    let last = match evict {
        Evict::Never => return Vec::new(),
        Evict::Orphans => Class::Orphan,
        Evict::Lru => Class::Remembered,
    };
    // The largest of the kept ones is on top, to be thrown out.
    let mut kept: BinaryHeap<(Class, Moment, u32)> = BinaryHeap::new();
    let mut next = 0;
    loop {
        let index = index.read();
        let end = index.end().min(next + AT_A_TIME);
        // Directories may be moved as soon as the index isn't locked.
        let mut below = HashMap::new();
        for number in next..end {
            let Some((entry, file)) = index.file_entry(number) else { continue };
            if file.kind != Kind::File || !from.has(&index, entry, file, &mut below) {
                continue;
            }
            let (creator, used) = index.use_of(entry);
            let class = Class::of(creator);
            let key = (class, used, number);
            let is_better = kept.len() < most || kept.peek().is_some_and(|worst| key < *worst);
            let is_unseen = used == Moment(0) && unseen_from.is_some_and(|from| number >= from);
            if class <= last && is_better && !is_unseen && !stays(entry, file.node()) {
                kept.push(key);
                if kept.len() > most {
                    kept.pop();
                }
            }
        }
        if end == index.end() {
            break;
        }
        next = end;
    }
    let chosen = kept.into_sorted_vec();
    let index = index.read();
    let mut below = HashMap::new();
    let victim = |(class, used, number): (Class, Moment, u32)| {
        let (entry, file) = index.file_entry(number)?;
        let (dir, name) = place(&index, entry);
        // Metadata goes with its data.
        if let Some((data, metadata)) = pair(&name)
            && metadata == name
            && matches!(index.find(dir, &data), Some((_, What::File(_))))
        {
            return None;
        }
        let creator = index.use_of(entry).0;
        let is_there = from.has(&index, entry, file, &mut below);
        is_there.then_some(Victim { entry, file, dir, name, class, creator, used })
    };
    chosen.into_iter().filter_map(victim).collect()
}

/// How many files of a backing are in each class.
pub(super) fn count(index: &RwLock<Index>, slots: usize) -> Vec<[u64; 3]> {
    let mut counts = vec![[0; 3]; slots];
    let mut from = 0;
    loop {
        let index = index.read();
        let end = index.end().min(from + AT_A_TIME);
        for number in from..end {
            if let Some((entry, file)) = index.file_entry(number)
                && file.kind == Kind::File
                && let Some(of_slot) = counts.get_mut(file.slot.index())
            {
                of_slot[Class::of(index.use_of(entry).0) as usize] += 1;
            }
        }
        if end == index.end() {
            return counts;
        }
        from = end;
    }
}

impl Retention {
    /// What would go, and in what order, to free so many bytes on a backing; `None` for what the marks say.
    pub fn plan(&self, store: &dyn Store, backing: &Backing, bytes: Option<u64>) -> BackingPlan {
        let level = self.options.marks.level(backing).unwrap_or_default();
        let wanted = bytes.unwrap_or(0).max(level.missing());
        let mut plan = BackingPlan::new(backing, level, wanted);
        if !backing.evictable || wanted == 0 {
            return plan;
        }
        self.bury_creators(store, true);
        let stays = |_, node| store.is_open(node);
        let (from, evict) = (From::Backing(backing.slot), self.options.evict);
        let choice = Choice { from, evict, most: PLANNED, unseen_from: None, stays: &stays };
        for victim in choose(store.index(), &choice) {
            if plan.bytes >= wanted {
                break;
            }
            for victim in [metadata_of(store, &victim), Some(victim)].into_iter().flatten() {
                let seen = store.look(victim.dir, &victim.name, victim.file);
                if let Some(seen) = seen.filter(|seen| seen.links == 1 && seen.bytes > 0) {
                    let path = store.index().read().path_of(victim.dir, &victim.name);
                    let used = (victim.used > Moment(0)).then(|| self.clock.time(victim.used)).flatten();
                    plan.add(&path, &victim, seen.bytes, used);
                }
            }
        }
        plan
    }

    /// How many files of each class a backing has, by slot.
    pub(super) fn classes(&self, store: &dyn Store) -> Vec<[u64; Class::ALL.len()]> {
        count(store.index(), MAX_BACKINGS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::PackedIno;

    fn add(index: &mut Index, name: &str, slot: u8, creator: u8, used: u32) -> EntryId {
        let ino = PackedIno::plain(100 + u64::from(index.end())).unwrap();
        let file = FileRef { slot: Slot(slot), ino, kind: Kind::File, reason: 0 };
        let entry = index.add_file(DirId::ROOT, name.as_bytes(), file).unwrap().unwrap();
        index.set_creator(entry, CreatorCode(creator));
        index.used_at(entry, Moment(used));
        entry
    }

    fn from(index: &RwLock<Index>, from: From, evict: Evict, most: usize) -> Vec<Victim> {
        choose(index, &Choice { from, evict, most, unseen_from: None, stays: &|_, _| false })
    }

    fn all(index: &RwLock<Index>, slot: u8, evict: Evict, most: usize) -> Vec<Victim> {
        from(index, From::Backing(Slot(slot)), evict, most)
    }

    fn names(victims: &[Victim]) -> Vec<&str> {
        victims.iter().map(|v| std::str::from_utf8(&v.name).unwrap()).collect()
    }

    #[test]
    fn orphans_first_then_the_least_recently_used_then_what_somebody_remembers() {
        let mut index = Index::new(2);
        for (name, slot, creator, used) in [
            ("remembered", 0, 7, 1),
            ("undecided", 0, 2, 2),
            ("found late", 0, 0, 50),
            ("found early", 0, 0, 40),
            ("orphan late", 0, 1, 90),
            ("orphan early", 0, 1, 80),
            ("elsewhere", 1, 1, 1),
        ] {
            add(&mut index, name, slot, creator, used);
        }
        let index = RwLock::new(index);
        let lru = all(&index, 0, Evict::Lru, 100);
        let order = ["orphan early", "orphan late", "found early", "found late", "remembered", "undecided"];
        assert_eq!(names(&lru), order);
        assert_eq!(names(&all(&index, 0, Evict::Lru, 3)), order[..3]);
        assert_eq!(names(&all(&index, 0, Evict::Orphans, 100)), order[..2]);
        assert_eq!(all(&index, 0, Evict::Never, 100), []);
        assert_eq!(count(&index, 2), [[2, 2, 2], [1, 0, 0]]);
    }

    #[test]
    fn metadata_goes_with_its_data_alone() {
        let mut index = Index::new(1);
        add(&mut index, "k.kvcache.safetensors.metadata", 0, 0, 1);
        add(&mut index, "k.kvcache.safetensors", 0, 0, 5);
        add(&mut index, "left.kvcache.safetensors.metadata", 0, 0, 3);
        let index = RwLock::new(index);
        let chosen = all(&index, 0, Evict::Lru, 100);
        assert_eq!(names(&chosen), ["left.kvcache.safetensors.metadata", "k.kvcache.safetensors"]);
    }

    #[test]
    fn what_stays_makes_place_for_what_may_go() {
        let mut index = Index::new(1);
        let entries: Vec<_> = (0..9).map(|n| add(&mut index, &format!("f{n}"), 0, 0, n)).collect();
        let index = RwLock::new(index);
        let choice = |unseen_from, stays: &dyn Fn(EntryId, NodeId) -> bool| {
            let from = From::Backing(Slot(0));
            let choice = Choice { from, evict: Evict::Lru, most: 2, unseen_from, stays };
            names(&choose(&index, &choice)).join(" ")
        };
        assert_eq!(choice(None, &|_, _| false), "f0 f1");
        assert_eq!(choice(None, &|entry, _| entries[..5].contains(&entry)), "f5 f6");
        assert_eq!(choice(Some(0), &|_, _| false), "f1 f2", "nobody knows how old it is");
        assert_eq!(choice(Some(1), &|_, _| false), "f0 f1", "nobody will find out");
    }

    #[test]
    fn a_tenants_files_alone() {
        let mut index = Index::new(2);
        let tenant = index.add_dir(DirId::ROOT, b"t", SlotSet::first(2)).unwrap().unwrap();
        let inner = index.add_dir(tenant, b"in", SlotSet::first(2)).unwrap().unwrap();
        add(&mut index, "others", 0, 0, 1);
        for (name, slot, dir) in [("one", 0, tenant), ("two", 1, inner)] {
            let entry = add(&mut index, name, slot, 0, 5 + u32::from(slot));
            index.rename(entry, dir, name.as_bytes()).unwrap();
        }
        let index = RwLock::new(index);
        let below = |slots| {
            let chosen = from(&index, From::Below(tenant, slots), Evict::Lru, 9);
            names(&chosen).join(" ")
        };
        assert_eq!(below(SlotSet::first(2)), "one two");
        assert_eq!(below(SlotSet::one(Slot(1))), "two", "the other backing isn't evicted from");
    }

    #[test]
    fn a_pass_goes_through_all_names() {
        let mut index = Index::new(1);
        let entries: Vec<_> =
            (0..3 * AT_A_TIME).map(|n| add(&mut index, &format!("f{n}"), 0, 0, 1 + n)).collect();
        index.remove(entries[1]);
        let index = RwLock::new(index);
        assert_eq!(names(&all(&index, 0, Evict::Lru, 3)), ["f0", "f2", "f3"]);
        assert_eq!(count(&index, 1)[0][1], u64::from(3 * AT_A_TIME) - 1);
    }
}
