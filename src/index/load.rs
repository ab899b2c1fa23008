//! Filling an empty index with very many names at once: the scan at the start.
//!
//! What always holds: while a [`Loader`] is at work the files that it was given can be listed but not found;
//! `finish` makes them found, and tells which names were there already. Entering the names of one table after
//! the other, each made in its final size, is several times faster than one name after the other.

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    AddError, DirId, EntryId, FileRef, Index, Names, SHARDS, What, hash_in, hash_name, shard, spread,
};
use crate::index::entry::Entry;

/// A name that is not in its table yet: its hash and its entry.
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

    /// What hashes names for this index.
    pub(super) fn hasher(index: &Index) -> impl Fn(&[u8]) -> u64 + Clone + Send + 'static + use<> {
        let hasher: DefaultHashBuilder = index.hasher.clone();
        move |name| hash_name(&hasher, name)
    }

    /// Adds a file whose name has this hash.
    pub(super) fn add(
        &mut self,
        index: &mut Index,
        dir: DirId,
        name: &[u8],
        hash: u64,
        file: FileRef,
    ) -> Result<(), AddError> {
        let entry = index.new_entry(dir, name, What::File(file))?;
        index.files[file.slot.index()] += 1;
        match &mut self.run {
            Some((same, _, last)) if *same == dir && *last + 1 == entry.0 => *last = entry.0,
            _ => {
                self.end_run(index);
                self.run = Some((dir, entry.0, entry.0));
            }
        }
        let hash = hash_in(dir, hash);
        self.pending[shard(hash)].push((hash, entry.0));
        Ok(())
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
        let (entries, names, hasher) = (&index.entries, &index.names, &index.hasher);
        let mut work: Vec<(&mut HashTable<u32>, Pending)> =
            index.by_name.iter_mut().zip(self.pending).collect();
        let part = work.len().div_ceil(threads);
        std::thread::scope(|scope| {
            let running: Vec<_> = work
                .chunks_mut(part)
                .map(|part| {
                    scope.spawn(move || {
                        let mut taken = Vec::new();
                        for (table, pending) in part {
                            enter(table, std::mem::take(pending), entries, names, hasher, &mut taken);
                        }
                        taken
                    })
                })
                .collect();
            running.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        })
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

fn enter(
    table: &mut HashTable<u32>,
    pending: Pending,
    entries: &[Entry],
    names: &Names,
    hasher: &DefaultHashBuilder,
    taken: &mut Vec<Taken>,
) {
    let rehash = |e: &u32| {
        let e = &entries[*e as usize];
        spread(hash_in(e.dir, hash_name(hasher, names.get(e.name))))
    };
    table.reserve(pending.len(), rehash);
    for (hash, number) in pending {
        let new = &entries[number as usize];
        let same = |e: &u32| {
            let e = &entries[*e as usize];
            e.dir == new.dir && names.get(e.name) == names.get(new.name)
        };
        match table.find(spread(hash), same) {
            Some(by) => taken.push(Taken { entry: EntryId(number), by: EntryId(*by) }),
            None => {
                table.insert_unique(spread(hash), number, rehash);
            }
        }
    }
}
