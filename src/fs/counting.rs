//! What files take: told to the index, which adds it up for quotas and for the room of backings.
//!
//! What always holds: a file counts with what it took when it was last closed, cut off or extended, with one of
//! its names alone; a file that was there before sizes were counted is counted when it's looked up, or in the
//! background. Nothing is asked of a disk where nothing is counted.

use rustix::fs::Statx;

use super::attr::stat_fd;
use super::open::OpenNode;
use super::{Fs, Node};
use crate::index::{DirId, EntryId, FileRef, Kind, PackedIno, Slot, What};

/// Names that are counted under one lock of the index.
const BATCH: usize = 256;

/// What a file takes, in bytes: preallocated room behind its end doesn't count. A network file system says how
/// much it takes only when it has been written out.
pub(super) fn taken(stat: &Statx, shared: bool) -> u64 {
    let size = stat.stx_size.saturating_add(4095) & !4095;
    if shared { size } else { size.min(stat.stx_blocks.saturating_mul(512)) }
}

impl Fs {
    /// Counts what an open file takes now, where sizes are counted.
    pub(super) fn count_size(&self, open: &OpenNode) {
        if !self.index.read().is_counting() {
            return;
        }
        let Some(Node::File(slot, ino)) = open.node.node() else { return };
        let Ok(stat) = stat_fd(&open.fd) else { return };
        if stat.stx_nlink > 0 {
            let (bytes, backing) = (taken(&stat, self.is_shared(slot)), self.backing(slot));
            let index = self.index.read();
            index.count_changed(slot, ino, stat.stx_nlink, bytes);
            if let Ok(backing) = backing {
                backing.space.set_used(|| index.bytes_on(slot));
            }
        }
    }

    /// Counts a file whose size was set.
    pub(super) fn count_truncated(&self, slot: Slot, ino: PackedIno, stat: &Statx) {
        let index = self.index.read();
        if index.is_counting() && stat.stx_nlink > 0 {
            index.count_changed(slot, ino, stat.stx_nlink, taken(stat, self.is_shared(slot)));
        }
    }

    /// The name that a file was counted with has gone: it counts with another, if it has one.
    pub(super) fn count_by_other_name(&self, open: &OpenNode) {
        if !self.index.read().is_counting() {
            return;
        }
        let Some(Node::File(slot, ino)) = open.node.node() else { return };
        let Ok(stat) = stat_fd(&open.fd) else { return };
        let index = self.index.read();
        if stat.stx_nlink > 0 {
            index.count_by_any_name(slot, ino, taken(&stat, self.is_shared(slot)));
        } else {
            index.count_no_more(open.node);
        }
    }

    /// Counts a file that was just asked about, if it hasn't been yet.
    pub(super) fn count_found(&self, entry: EntryId, file: FileRef, stat: &Statx) {
        let index = self.index.read();
        if index.is_counting() && index.live(entry) == Some(What::File(file)) && index.size(entry) == 0 {
            index.count_found(entry, stat.stx_nlink, taken(stat, self.is_shared(file.slot)));
        }
    }

    /// Counts the files in a directory and below that have no size yet.
    pub(super) fn count_below(&self, top: DirId) {
        let mut todo = vec![top];
        while let Some(dir) = todo.pop() {
            let mut from = 0;
            loop {
                let batch: Vec<_> = {
                    let index = self.index.read();
                    let entry =
                        |entry| (entry, index.what(entry), index.size(entry), index.place(entry).1.to_vec());
                    index.children(dir, from).take(BATCH).map(entry).collect()
                };
                let Some((last, ..)) = batch.last() else { break };
                from = last.number().saturating_add(1);
                for (entry, what, size, name) in batch {
                    match what {
                        What::Dir(below) => todo.push(below),
                        What::File(file) if file.kind == Kind::File && size == 0 => {
                            let Ok((stat, _)) = self.statx_entry(dir, &name, file) else { continue };
                            self.count_found(entry, file, &stat);
                        }
                        What::File(_) => {}
                    }
                }
            }
        }
    }
}
