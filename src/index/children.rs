//! The entries of one directory, in an order that stays put while the directory changes.
//!
//! What always holds: entries are kept by their number in the index, and a reader's cookie is the number
//! it saw last. An entry keeps its number for as long as it lives, so a reader sees every entry that was
//! there throughout exactly once, whatever is created and removed meanwhile (POSIX `readdir`).

use roaring::RoaringBitmap;

/// Up to this many entries a sorted list is smaller and faster than a bitmap.
const SMALL: usize = 256;

/// A set of entry numbers, ascending.
pub(super) enum Children {
    Few(Vec<u32>),
    Many(Box<RoaringBitmap>),
}

impl Default for Children {
    fn default() -> Self {
        Children::Few(Vec::new())
    }
}

impl Children {
    pub(super) fn insert(&mut self, entry: u32) {
        match self {
            Children::Few(list) => {
                match list.last() {
                    Some(last) if *last >= entry => {
                        if let Err(at) = list.binary_search(&entry) {
                            list.insert(at, entry);
                        }
                    }
                    _ => list.push(entry),
                }
                if list.len() > SMALL {
                    *self = Children::Many(Box::new(list.iter().copied().collect()));
                }
            }
            Children::Many(set) => {
                set.insert(entry);
            }
        }
    }

    /// Inserts the entries from `first` to `last`.
    pub(super) fn insert_run(&mut self, first: u32, last: u32) {
        if let Children::Few(list) = self
            && list.len() + (last - first) as usize >= SMALL
        {
            *self = Children::Many(Box::new(list.iter().copied().collect()));
        }
        match self {
            Children::Few(_) => (first..=last).for_each(|entry| self.insert(entry)),
            Children::Many(set) => {
                set.insert_range(first..=last);
            }
        }
    }

    pub(super) fn remove(&mut self, entry: u32) {
        match self {
            Children::Few(list) => {
                if let Ok(at) = list.binary_search(&entry) {
                    list.remove(at);
                }
            }
            Children::Many(set) => {
                set.remove(entry);
                if set.is_empty() {
                    *self = Children::default();
                }
            }
        }
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Children::Few(list) => list.len() as u64,
            Children::Many(set) => set.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Children::Few(list) => list.is_empty(),
            Children::Many(set) => set.is_empty(),
        }
    }

    /// The entries from number `from` on, ascending.
    pub(super) fn from(&self, from: u32) -> Box<dyn Iterator<Item = u32> + '_> {
        match self {
            Children::Few(list) => Box::new(list[list.partition_point(|e| *e < from)..].iter().copied()),
            Children::Many(set) => Box::new(set.range(from..)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_sets_agree() {
        let mut children = Children::default();
        for entry in (0..1000).rev() {
            children.insert(entry);
        }
        assert!(matches!(children, Children::Many(_)));
        for entry in (0..1000).step_by(2) {
            children.remove(entry);
        }
        assert_eq!(children.from(0).count(), 500);
        assert_eq!(children.from(500).next(), Some(501));
        for entry in 0..1000 {
            children.remove(entry);
        }
        assert!(children.is_empty() && matches!(children, Children::Few(_)));
        children.insert_run(3, 5);
        children.insert_run(1000, 2000);
        assert!(matches!(children, Children::Many(_)));
        assert_eq!(children.from(4).take(3).collect::<Vec<_>>(), [4, 5, 1000]);
        assert_eq!((children.from(0).count(), children.len()), (3 + 1001, 3 + 1001));
        let mut children = Children::default();
        for entry in [5, 1, 9, 5] {
            children.insert(entry);
        }
        assert_eq!(children.from(0).collect::<Vec<_>>(), [1, 5, 9]);
        assert_eq!(children.from(6).collect::<Vec<_>>(), [9]);
    }
}
