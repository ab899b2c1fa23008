//! What retention knows of each file: who made it, when it was last used, and how much it takes.
//!
//! What always holds: eight bytes a name, four of them only once sizes are counted; recording a use needs
//! the index for reading alone. The sums (by backing, and by directory with a quota) are those of the names'
//! own sizes at every moment, whatever is renamed or removed. Of several names of a file one has its size.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{DirId, EntryId, Index, MAX_BACKINGS, NodeId, PackedIno, Slot, What};

/// The process that made a file, as a number: retention knows what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CreatorCode(pub u8);

/// When a file was last used, as a number that grows with time: retention knows what it stands for. 0 is
/// not known; at most [`Moment::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u32);

impl Moment {
    /// The latest there can be.
    pub const MAX: Moment = Moment((1 << 24) - 1);
}

/// What a size is counted in: 4 KiB, so that 32 bits are 16 TiB.
const GRAIN: u64 = 4096;

/// A directory whose files may take so much.
#[derive(Debug)]
struct Quota {
    limit: u64,
    used: AtomicU64,
}

/// By entry number.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// The creator in the high 8 bits, the moment in the low 24.
    stamps: Vec<AtomicU32>,
    /// Sizes in grains. Empty while nothing is counted.
    sizes: Vec<AtomicU32>,
    counting: AtomicBool,
    by_slot: Vec<AtomicU64>,
    quotas: HashMap<DirId, Quota>,
    /// Files that had several names when they were counted: whoever meets one by another name leaves it.
    several: Mutex<HashSet<NodeId>>,
}

impl Usage {
    /// There's room for this many entries, which nothing is known of.
    pub(super) fn cover(&mut self, entries: usize) {
        if self.stamps.len() < entries {
            self.stamps.resize_with(entries, AtomicU32::default);
        }
    }

    /// The number stands for a new entry.
    pub(super) fn start(&mut self, number: u32) {
        let number = number as usize;
        self.cover(number + 1);
        *self.stamps[number].get_mut() = 0;
        if *self.counting.get_mut() {
            if self.sizes.len() <= number {
                self.sizes.resize_with(number + 1, AtomicU32::default);
            }
            *self.sizes[number].get_mut() = 0;
        }
    }

    fn size(&self, entry: EntryId) -> u64 {
        self.sizes.get(entry.0 as usize).map_or(0, |s| u64::from(s.load(Relaxed)) * GRAIN)
    }
}

impl Index {
    /// Who made the file, and when it was last used.
    pub fn use_of(&self, entry: EntryId) -> (CreatorCode, Moment) {
        let stamp = self.usage.stamps.get(entry.0 as usize).map_or(0, |s| s.load(Relaxed));
        (CreatorCode((stamp >> 24) as u8), Moment(stamp & Moment::MAX.0))
    }

    /// Says who made the file.
    pub fn set_creator(&self, entry: EntryId, creator: CreatorCode) {
        if let Some(stamp) = self.usage.stamps.get(entry.0 as usize) {
            let set = |old: u32| Some(old & Moment::MAX.0 | u32::from(creator.0) << 24);
            let _ = stamp.fetch_update(Relaxed, Relaxed, set);
        }
    }

    /// Says that the file was used; an earlier moment than the known one changes nothing.
    pub fn used_at(&self, entry: EntryId, at: Moment) {
        if let Some(stamp) = self.usage.stamps.get(entry.0 as usize) {
            let at = at.min(Moment::MAX).0;
            let later = |old: u32| (at > old & Moment::MAX.0).then_some(old & !Moment::MAX.0 | at);
            let _ = stamp.fetch_update(Relaxed, Relaxed, later);
        }
    }

    /// Says that a node which the kernel knows was used, and finds its name.
    pub fn touch(&self, slot: Slot, ino: PackedIno, at: Moment) -> Option<EntryId> {
        let found = self.known(slot, ino)?;
        self.used_at(found, at);
        Some(found)
    }

    /// Gives the files of these creators to another: all of them, in one pass.
    pub fn recode_creators(&self, from: &[CreatorCode], to: CreatorCode) {
        let mut is_from = [false; 256];
        from.iter().for_each(|code| is_from[usize::from(code.0)] = true);
        for (number, stamp) in self.usage.stamps.iter().enumerate() {
            if is_from[(stamp.load(Relaxed) >> 24) as usize] {
                self.set_creator(EntryId(number as u32), to);
            }
        }
    }

    /// Counts all moments from a later one on: each is so much less, but still known.
    pub fn age(&mut self, by: u32) {
        for stamp in &mut self.usage.stamps {
            let stamp = stamp.get_mut();
            let moment = *stamp & Moment::MAX.0;
            if moment > 0 {
                *stamp = *stamp & !Moment::MAX.0 | moment.saturating_sub(by).max(1);
            }
        }
    }

    /// The number that no entry has reached yet: for passes over all entries, in pieces.
    pub fn end(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The file entry with this number, if there is one.
    pub fn file_entry(&self, number: u32) -> Option<(EntryId, super::FileRef)> {
        match self.live(EntryId(number))? {
            What::File(file) => Some((EntryId(number), file)),
            What::Dir(_) => None,
        }
    }

    /// From now on sizes are counted. Those of names that are there already are 0 until they're told.
    pub fn start_counting(&mut self) {
        *self.usage.counting.get_mut() = true;
        let entries = self.entries.len();
        self.usage.sizes.resize_with(entries, AtomicU32::default);
        self.usage.by_slot.resize_with(MAX_BACKINGS, AtomicU64::default);
    }

    /// Whether sizes are counted.
    pub fn is_counting(&self) -> bool {
        self.usage.counting.load(Relaxed)
    }

    /// Says how much the file takes, in bytes.
    pub fn set_size(&self, entry: EntryId, bytes: u64) {
        let Some(size) = self.usage.sizes.get(entry.0 as usize) else { return };
        let grains = u32::try_from(bytes.div_ceil(GRAIN)).unwrap_or(u32::MAX);
        let old = u64::from(size.swap(grains, Relaxed)) * GRAIN;
        let Some(What::File(file)) = self.live(entry) else { return };
        self.account(entry, file.slot, u64::from(grains) * GRAIN, old);
    }

    /// Says how much a file takes, in bytes, that was met by a name without a size.
    pub fn count_found(&self, entry: EntryId, links: u32, bytes: u64) {
        let Some(What::File(file)) = self.live(entry) else { return };
        if links > 1 {
            let mut several = self.usage.several.lock();
            if !several.insert(file.node()) || self.sized_known(file.node()).is_some() {
                return;
            }
            self.set_size(entry, bytes);
        } else if self.size(entry) == 0 {
            self.set_size(entry, bytes);
        }
    }

    /// Says how much a file takes that was changed, in bytes. Of several names one counts: the one that did, else
    /// any.
    pub fn count_changed(&self, slot: Slot, ino: PackedIno, links: u32, bytes: u64) {
        let node = NodeId::file(slot, ino);
        if links > 1 {
            return self.count_by_any_name(slot, ino, bytes);
        }
        if let Some(entry) = self.sized_known(node).or_else(|| self.known(slot, ino)) {
            self.set_size(entry, bytes);
        }
    }

    /// The same, for a file that has or had several names.
    pub fn count_by_any_name(&self, slot: Slot, ino: PackedIno, bytes: u64) {
        let node = NodeId::file(slot, ino);
        let mut several = self.usage.several.lock();
        let was_met = !several.insert(node);
        // One that was met by a name that the kernel doesn't know may count with that one.
        let unknown =
            || was_met.then(|| self.names_of(slot, ino).find(|entry| self.size(*entry) > 0)).flatten();
        let counts = self.sized_known(node).or_else(unknown).or_else(|| self.find_node(slot, ino));
        if let Some(entry) = counts {
            self.set_size(entry, bytes);
        }
    }

    /// A file with no name left.
    pub fn count_no_more(&self, node: NodeId) {
        self.usage.several.lock().remove(&node);
    }

    /// The name with a size, of those that the kernel knows of a node.
    fn sized_known(&self, node: NodeId) -> Option<EntryId> {
        let names = self.by_node.iter_hash(self.hasher.hash_one(node)).map(|e| EntryId(*e));
        names.filter(|e| self.what(*e).node() == node).find(|e| self.size(*e) > 0)
    }

    /// What the file takes, as it was last told. 0 where sizes aren't counted.
    pub fn size(&self, entry: EntryId) -> u64 {
        self.usage.size(entry)
    }

    /// What the files on a backing take together. 0 where sizes aren't counted.
    pub fn bytes_on(&self, slot: Slot) -> u64 {
        self.usage.by_slot.get(slot.index()).map_or(0, |n| n.load(Relaxed))
    }

    /// Lets a directory's files take no more than `limit` bytes, or as much as they like. What they take is
    /// counted anew from the known sizes.
    pub fn set_quota(&mut self, dir: DirId, limit: Option<u64>) {
        let Some(limit) = limit else {
            self.usage.quotas.remove(&dir);
            return;
        };
        let below = |number: &u32| {
            let entry = EntryId(*number);
            self.live(entry).is_some() && self.is_within(self.place(entry).0, dir)
        };
        let used = (0..self.usage.sizes.len() as u32).filter(below).map(|n| self.size(EntryId(n))).sum();
        self.usage.quotas.insert(dir, Quota { limit, used: AtomicU64::new(used) });
    }

    /// The directory at or above `dir` that has a quota, with its limit and what its files take, in bytes:
    /// the innermost.
    pub fn quota_of(&self, dir: DirId) -> Option<(DirId, u64, u64)> {
        if self.usage.quotas.is_empty() {
            return None;
        }
        let mut at = dir;
        loop {
            if let Some(quota) = self.usage.quotas.get(&at) {
                return Some((at, quota.limit, quota.used.load(Relaxed)));
            }
            at = self.dir_place(at)?.0;
        }
    }

    /// All directories with a quota: limit and what their files take, in bytes.
    pub fn quotas(&self) -> impl Iterator<Item = (DirId, u64, u64)> {
        self.usage.quotas.iter().map(|(dir, q)| (*dir, q.limit, q.used.load(Relaxed)))
    }

    /// The entry is about to lose its place or its backing: its size leaves the sums.
    pub(super) fn uncount(&self, entry: EntryId) {
        if let Some(What::File(file)) = self.live(entry) {
            self.account(entry, file.slot, 0, self.size(entry));
        }
    }

    /// The entry has its new place or backing: its size joins the sums.
    pub(super) fn recount(&self, entry: EntryId) {
        if let Some(What::File(file)) = self.live(entry) {
            self.account(entry, file.slot, self.size(entry), 0);
        }
    }

    /// All quotas at or above the entry's directory count it, the inner ones too.
    fn account(&self, entry: EntryId, slot: Slot, more: u64, less: u64) {
        if more == less {
            return;
        }
        let change = |sum: &AtomicU64| {
            let _ = sum.fetch_update(Relaxed, Relaxed, |n| Some((n + more).saturating_sub(less)));
        };
        if let Some(sum) = self.usage.by_slot.get(slot.index()) {
            change(sum);
        }
        if self.usage.quotas.is_empty() {
            return;
        }
        let mut at = Some(self.place(entry).0);
        while let Some(dir) = at {
            if let Some(quota) = self.usage.quotas.get(&dir) {
                change(&quota.used);
            }
            at = self.dir_place(dir).map(|(parent, _)| parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FileRef, Kind, SlotSet};
    use super::*;

    fn file(slot: u8, ino: u64) -> FileRef {
        let ino = PackedIno::plain(ino).unwrap();
        FileRef { slot: Slot(slot), ino, kind: Kind::File, reason: 0 }
    }

    fn add(index: &mut Index, dir: DirId, name: &str, slot: u8, ino: u64) -> EntryId {
        index.add_file(dir, name.as_bytes(), file(slot, ino)).unwrap().unwrap()
    }

    #[test]
    fn a_number_that_is_used_again_starts_from_nothing() {
        let mut index = Index::new(2);
        index.start_counting();
        let entry = add(&mut index, DirId::ROOT, "a", 0, 7);
        index.set_creator(entry, CreatorCode(9));
        index.used_at(entry, Moment(5));
        index.used_at(entry, Moment(3));
        index.set_size(entry, 10_000);
        assert_eq!(index.use_of(entry), (CreatorCode(9), Moment(5)));
        assert_eq!((index.size(entry), index.bytes_on(Slot(0))), (12_288, 12_288));
        index.remove(entry);
        assert_eq!(index.bytes_on(Slot(0)), 0);
        let again = add(&mut index, DirId::ROOT, "b", 0, 8);
        assert_eq!(again, entry);
        assert_eq!((index.use_of(again), index.size(again)), Default::default());
    }

    #[test]
    fn of_several_names_one_counts() {
        let mut index = Index::new(1);
        index.start_counting();
        let [a, b] = ["a", "b"].map(|name| add(&mut index, DirId::ROOT, name, 0, 7));
        let ino = PackedIno::plain(7).unwrap();
        let sizes = |index: &Index| (index.size(a), index.size(b), index.bytes_on(Slot(0)));
        // Two passes over all files may meet it by a name each.
        index.count_found(a, 2, 4096);
        index.count_found(b, 2, 4096);
        assert_eq!(sizes(&index), (4096, 0, 4096));
        // The kernel may know another name than the one that counts.
        index.remember(b);
        index.count_changed(Slot(0), ino, 2, 8192);
        assert_eq!(sizes(&index), (8192, 0, 8192));
        index.remove(a);
        index.count_by_any_name(Slot(0), ino, 8192);
        assert_eq!((index.size(b), index.bytes_on(Slot(0))), (8192, 8192));
        let c = add(&mut index, DirId::ROOT, "c", 0, 7);
        index.count_found(c, 2, 8192);
        assert_eq!((index.size(c), index.bytes_on(Slot(0))), (0, 8192));
    }

    #[test]
    fn one_that_was_written_before_it_had_another_name_counts_once() {
        let mut index = Index::new(1);
        index.start_counting();
        let a = add(&mut index, DirId::ROOT, "a", 0, 7);
        index.remember(a);
        index.count_changed(Slot(0), PackedIno::plain(7).unwrap(), 1, 4096);
        let b = add(&mut index, DirId::ROOT, "b", 0, 7);
        index.count_found(b, 2, 4096);
        assert_eq!((index.size(a), index.size(b)), (4096, 0));
    }

    #[test]
    fn moments_age() {
        let mut index = Index::new(1);
        let [a, b, c] = ["a", "b", "c"].map(|name| add(&mut index, DirId::ROOT, name, 0, 7));
        index.set_creator(a, CreatorCode(9));
        index.used_at(a, Moment(1000));
        index.used_at(b, Moment(10));
        index.age(400);
        assert_eq!(index.use_of(a), (CreatorCode(9), Moment(600)));
        assert_eq!(index.use_of(b).1, Moment(1), "long ago, but known");
        assert_eq!(index.use_of(c).1, Moment(0), "not known");
    }

    #[test]
    fn files_get_another_creator() {
        let mut index = Index::new(1);
        let entries = [3, 4, 5].map(|code| {
            let entry = add(&mut index, DirId::ROOT, &code.to_string(), 0, code);
            index.set_creator(entry, CreatorCode(code as u8));
            index.used_at(entry, Moment(7));
            entry
        });
        index.recode_creators(&[CreatorCode(3), CreatorCode(5)], CreatorCode(1));
        assert_eq!(entries.map(|entry| index.use_of(entry).0.0), [1, 4, 1]);
        assert_eq!(index.use_of(entries[0]).1, Moment(7));
    }

    #[test]
    fn sums_follow_renames_and_moves() {
        let mut index = Index::new(2);
        index.start_counting();
        let tenant = index.add_dir(DirId::ROOT, b"t", SlotSet::first(2)).unwrap().unwrap();
        let inner = index.add_dir(tenant, b"in", SlotSet::first(2)).unwrap().unwrap();
        let (a, b) = (add(&mut index, DirId::ROOT, "a", 0, 1), add(&mut index, inner, "b", 1, 2));
        index.set_size(a, 4096);
        index.set_size(b, 8192);
        index.set_quota(tenant, Some(1 << 20));
        assert_eq!(index.quota_of(inner), Some((tenant, 1 << 20, 8192)));
        assert_eq!(index.quota_of(DirId::ROOT), None);
        index.rename(a, inner, b"a").unwrap();
        assert_eq!(index.quota_of(tenant).map(|q| q.2), Some(12_288));
        index.exchange(a, b);
        index.rename(a, DirId::ROOT, b"a").unwrap();
        assert_eq!(index.quota_of(tenant).map(|q| q.2), Some(8192));
        index.retarget(b, file(0, 9));
        assert_eq!((index.bytes_on(Slot(0)), index.bytes_on(Slot(1))), (12_288, 0));
        index.set_quota(tenant, None);
        assert_eq!(index.quota_of(inner), None);
    }
}
