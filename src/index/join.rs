//! What is below a directory that appeared while the mount lives: one that somebody made behind its back, or a
//! whole backing that joins.
//!
//! What always holds: what is known stays the file, a copy that comes is its shadow: clients may have the
//! known one open. Whoever joins learns of all such copies, and judges. Nothing that others are using is
//! taken out of the index, so it may be done in pieces.

use std::sync::mpsc;

use super::report::Report;
use super::scan::{Batch, Files, Merge, Reader, duplicate};
use super::source::Source;
use super::{AddError, DirId, EntryId, FileRef, Index};

/// What is below one directory of one backing, read but not yet part of an index.
#[derive(Default)]
pub struct Subtree(Vec<Batch>);

impl Subtree {
    /// Names in it that aren't directories, and what could not be read.
    pub fn files(&self) -> u64 {
        self.0.iter().map(Batch::files).sum()
    }
}

/// Reads what is below a directory. `source.root` is that directory. Touches the disk and no index.
pub fn read_subtree(source: &Source<'_>) -> Subtree {
    let (send, receive) = mpsc::channel();
    // Its names are hashed when they are entered, one by one.
    Reader::new(
        0,
        source,
        |_: &[u8]| 0,
        move |batch| {
            // The receiver outlives the reader.
            let _ = send.send(batch);
            None
        },
    )
    .read();
    Subtree(receive.into_iter().collect())
}

/// What came of joining.
#[derive(Debug, Default)]
pub struct Joined {
    /// What was read.
    pub report: Report,
    /// Names that were taken, with the copies that came.
    pub taken: Vec<(EntryId, FileRef)>,
    /// New names in directories that were there before.
    pub appeared: Vec<(DirId, Vec<u8>)>,
    /// All directories that were read.
    pub dirs: Vec<DirId>,
    /// The first directory that wasn't.
    first_new: Option<DirId>,
}

impl Joined {
    pub(super) fn appeared(&mut self, dir: DirId, name: &[u8]) {
        if self.first_new.is_some_and(|new| dir < new) {
            self.appeared.push((dir, name.to_vec()));
        }
    }
}

/// Makes a subtree part of the index, a piece at a time.
pub struct Joining<'a> {
    source: &'a Source<'a>,
    batches: std::vec::IntoIter<Batch>,
    dirs: Vec<DirId>,
    joined: Joined,
}

impl<'a> Joining<'a> {
    /// The subtree becomes `dir`'s.
    pub fn new(dir: DirId, source: &'a Source<'a>, subtree: Subtree) -> Joining<'a> {
        Joining { source, batches: subtree.0.into_iter(), dirs: vec![dir], joined: Joined::default() }
    }

    /// Enters some thousand names. False when there are none left.
    pub fn step(&mut self, index: &mut Index) -> Result<bool, AddError> {
        self.joined.first_new.get_or_insert(index.next_dir());
        let Some(mut batch) = self.batches.next() else { return Ok(false) };
        let mut report = std::mem::take(&mut self.joined.report);
        let before = self.joined.taken.len();
        let mut merge = Merge { index, source: self.source, dirs: &mut self.dirs };
        let merged = merge.batch(&mut batch, Files::Enter(&mut self.joined), &mut report);
        for (entry, file) in &self.joined.taken[before..] {
            duplicate(index, *file, *entry, None, &mut report);
        }
        self.joined.report = report;
        merged.map(|()| true)
    }

    /// What came of it.
    pub fn finish(self) -> Joined {
        Joined { dirs: self.dirs, ..self.joined }
    }
}

/// Makes a whole subtree part of the index at once.
pub fn merge_subtree(
    index: &mut Index,
    dir: DirId,
    source: &Source<'_>,
    subtree: Subtree,
) -> Result<Joined, AddError> {
    let mut joining = Joining::new(dir, source, subtree);
    while joining.step(index)? {}
    Ok(joining.finish())
}
