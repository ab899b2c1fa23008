//! Filling an empty index with very many names at once: the scan at the start.
//!
//! What always holds: while a [`Loader`] is at work the files that it was given can be listed but not found;
//! `finish` makes them found, and tells which names were there already. Entering the names of one table after
//! the other, each made in its final size, is several times faster than one name after the other.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

use super::hash::in_dir;
use super::{AddError, DirId, EntryId, FileRef, Index, NameRef, SHARDS, What, shard, spread};
use crate::index::entry::Entry;

/// Names that are not in their table yet: their hashes and their entries.
type Pending = Vec<(u32, u32)>;

/// A file whose name is another entry's.
pub(super) struct Taken {
    pub(super) entry: EntryId,
    pub(super) by: EntryId,
}

/// Fills an index.
pub(super) struct Loader {
    pending: Vec<Pending>,
    /// The last entries, of one directory and without a gap, that the directory doesn't have yet.
    run: Option<(DirId, u32, u32)>,
}

impl Loader {
    pub(super) fn new() -> Loader {
        Loader { pending: (0..SHARDS).map(|_| Vec::new()).collect(), run: None }
    }

    /// Adds a file whose name has this hash.
    pub(super) fn add(
        &mut self,
        index: &mut Index,
        dir: DirId,
        name: NameRef,
        hash: u64,
        file: FileRef,
    ) -> Result<(), AddError> {
        let hash = in_dir(dir, hash);
        let entry = index.new_entry(dir, name, hash, What::File(file))?;
        index.files[file.slot.index()] += 1;
        match &mut self.run {
            Some((same, _, last)) if *same == dir && *last + 1 == entry.0 => *last = entry.0,
            _ => {
                self.end_run(index);
                self.run = Some((dir, entry.0, entry.0));
            }
        }
        self.pending[shard(hash)].push((hash, entry.0));
        Ok(())
    }

    /// After some thousand names: what else has to know them is told.
    pub(super) fn pause(&mut self, index: &mut Index) {
        index.usage.cover(index.entries.len());
    }

    fn end_run(&mut self, index: &mut Index) {
        if let Some((dir, first, last)) = self.run.take()
            && let Some(dir) = index.dirs.get_mut(&dir)
        {
            dir.children.insert_run(first, last);
        }
    }

    /// Enters all names. Those that were taken are the caller's to judge and to `discard`.
    pub(super) fn finish(mut self, index: &mut Index) -> Vec<Taken> {
        self.end_run(index);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let mut tables = std::mem::take(&mut index.by_name);
        let mut work: Vec<(&mut HashTable<u32>, Pending)> = tables.iter_mut().zip(self.pending).collect();
        let (part, index_now) = (work.len().div_ceil(threads), &*index);
        let taken = std::thread::scope(|scope| {
            let running: Vec<_> = work
                .chunks_mut(part)
                .map(|part| {
                    scope.spawn(move || {
                        let mut taken = Vec::new();
                        for (table, pending) in part {
                            enter(table, std::mem::take(pending), index_now, &mut taken);
                        }
                        taken
                    })
                })
                .collect();
            running.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        });
        index.by_name = tables;
        taken
    }

    /// Takes a file away whose name was taken.
    pub(super) fn discard(index: &mut Index, entry: EntryId) {
        let Entry { dir, target, .. } = index.entries[entry.0 as usize];
        if let Some(dir) = index.dirs.get_mut(&dir) {
            dir.children.remove(entry.0);
        }
        if let What::File(file) = target.what() {
            index.files[file.slot.index()] -= 1;
        }
        index.free_entry(entry);
    }
}

/// Enters what is pending for a table. While that goes on, the table has places in `pending`: there the hashes are,
/// so that names are compared, each of which is somewhere else in memory, only where two have the same.
fn enter(table: &mut HashTable<u32>, mut pending: Pending, index: &Index, taken: &mut Vec<Taken>) {
    let files = pending.len();
    // Directories were entered as they were met, and come first.
    pending.extend(table.drain().map(|dir| (index.hash_of(EntryId(dir)), dir)));
    let rehash = |at: &u32| spread(pending[*at as usize].0);
    table.reserve(pending.len(), rehash);
    for at in (files..pending.len()).chain(0..files) {
        let (hash, number) = pending[at];
        let same = |other: &u32| {
            let (its_hash, other) = pending[*other as usize];
            its_hash == hash && index.place(EntryId(other)) == index.place(EntryId(number))
        };
        match table.entry(spread(hash), same, rehash) {
            Place::Occupied(by) => {
                let by = EntryId(pending[*by.get() as usize].1);
                taken.push(Taken { entry: EntryId(number), by });
            }
            Place::Vacant(place) => drop(place.insert(at as u32)),
        }
    }
    table.iter_mut().for_each(|at| *at = pending[*at as usize].1);
}
