//! Reading backings that aren't mounted, as a mount would.
//!
//! What always holds: it's the mount's own scan, so what it shows is what a mount would show; it removes nothing.

use std::os::fd::AsFd;

use super::{Finding, Fix, Item, Kind, Root, own};
use crate::backing::is_reserved;
use crate::index::{self, AddError, DirId, EntryId, Index, Progress, Slot, What};
use crate::placement::Reason;
use crate::printable::printable;

/// What was read.
pub struct Reading {
    index: Index,
    /// What couldn't be read, or shouldn't be there.
    pub found: Vec<Finding>,
    /// How many more there were than are kept.
    pub more: u64,
}

/// Reads these backings.
pub fn read(roots: &[Root], progress: impl FnMut(Progress)) -> Result<Reading, AddError> {
    let sources: Vec<_> = roots
        .iter()
        .map(|root| index::Source {
            slot: root.slot,
            root: root.dir.as_fd(),
            is_reserved,
            is_leftover: |_| true,
            reason: Reason::FoundAtScan.code(),
            sieve: None,
        })
        .collect();
    let (index, report) = index::scan(&sources, None, progress)?;
    let at = |slot| roots.iter().find(|root| root.slot == slot);
    let problems = report.problems.iter().filter_map(|problem| {
        let backing = at(problem.slot)?.path.clone();
        let kind = if problem.is_hidden { Kind::Hidden } else { Kind::Unreadable };
        let (path, detail) = (printable(&problem.path), problem.what.clone());
        Some(Finding { kind, backing, path, detail, fix: Fix::None })
    });
    let reserved = report.leftovers.iter().filter_map(|(slot, path)| own::reserved(at(*slot)?, path));
    let found = problems.chain(reserved).collect();
    Ok(Reading { index, found, more: report.more_problems })
}

impl Reading {
    /// Names that aren't directories, and directories.
    pub fn counts(&self) -> (u64, u64) {
        (self.index.files(), self.index.directories())
    }

    /// Calls with every file, and every directory that several backings have; until it says (by false) that it
    /// wants no more.
    pub fn each(&self, mut act: impl FnMut(Item) -> bool) {
        let mut todo = vec![(DirId::ROOT, Vec::new())];
        while let Some((dir, at)) = todo.pop() {
            for entry in self.index.children(dir, 0) {
                let path = join(&at, self.index.place(entry).1);
                let item = match self.index.what(entry) {
                    What::File(_) => self.file(entry, path),
                    What::Dir(id) => {
                        let slots = self.index.slots(id).unwrap_or_default();
                        todo.push((id, path.clone()));
                        Item::Directory { path, slots }
                    }
                };
                if !act(item) {
                    return;
                }
            }
        }
    }

    /// The directory that has the file of a path.
    pub(super) fn slot_of(&self, path: &[u8]) -> Option<Slot> {
        let mut dir = DirId::ROOT;
        let mut names = path.split(|b| *b == b'/').peekable();
        while let Some(name) = names.next() {
            match self.index.find(dir, name)?.1 {
                What::Dir(id) => dir = id,
                What::File(file) => return names.peek().is_none().then_some(file.slot),
            }
        }
        None
    }

    fn file(&self, entry: EntryId, path: Vec<u8>) -> Item {
        let What::File(file) = self.index.what(entry) else {
            return Item::Directory { path, slots: Default::default() };
        };
        let (slot, ino, others) = (file.slot, self.index.ino(file.ino), self.index.shadows(entry));
        Item::File { path, slot, kind: file.kind, ino, others }
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
