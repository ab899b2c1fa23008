//! Listing directories.
//!
//! What always holds: an entry that is there throughout is listed once, whatever changes meanwhile; a cookie
//! is good for as long as the mount lives. What a listing says was in the index, not asked of the disk (but for
//! shared backings, which are read again where a listing begins); the attributes that go with it are asked of
//! the disk.

use std::time::Duration;

use rustix::io::Errno;

use super::attr::Attr;
use super::{Fs, NodeId, Result};
use crate::index::{DirId, Kind, What};

/// An entry as a listing shows it.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Its node.
    pub node: NodeId,
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: &'a [u8],
    /// Where to go on after it.
    pub next: u64,
}

/// An entry with its attributes.
#[derive(Clone, Debug)]
pub struct DirEntryPlus {
    /// The attributes. Only node and type are right where `known` is false.
    pub attr: Attr,
    /// Whether the backing could be asked. `.` and `..` aren't asked about.
    pub known: bool,
    /// Its name.
    pub name: Vec<u8>,
    /// Where to go on after it.
    pub next: u64,
}

/// `.` and `..` come before the first entry.
const DOTS: u64 = 2;
/// After the last entry, where a listing `ends` at the same position whatever is in it: no entry has the number for it.
const END: u64 = (1 << 32) + DOTS;
/// An eviction, or the last step of a move, takes less.
const MOMENT: Duration = Duration::from_secs(1);
/// So many entries have their attributes at a directory's beginning. The kernel asks for all that there's room for,
/// and later on only if somebody looks them up.
const FIRST: usize = 16;
/// Entries whose attributes are asked for at a time.
const BATCH: usize = 64;

impl Fs {
    /// Lists what is `shown` from cookie `offset` on, until `add` says (by true) that it has no room for the entry.
    pub(super) fn readdir(
        &self,
        node: NodeId,
        offset: u64,
        ends: bool,
        shown: impl FnMut(NodeId) -> bool,
        mut add: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let dir = self.dir_of(node)?;
        if offset == 0 && self.others_change() {
            self.reconcile(dir);
        }
        let index = self.index.read();
        let parent = NodeId::dir(index.parent(dir));
        for (at, (name, node)) in [(&b"."[..], node), (b"..", parent)].into_iter().enumerate() {
            let at = at as u64;
            if offset <= at && add(DirEntry { node, kind: Kind::Dir, name, next: at + 1 }) {
                return Ok(());
            }
        }
        let Ok(from) = u32::try_from(offset.saturating_sub(DOTS)) else { return Ok(()) };
        let mut shown = shown;
        let mut entries = index
            .children(dir, from)
            .map(|entry| (entry, index.what(entry)))
            .filter(|(_, what)| shown(what.node()))
            .peekable();
        while let Some((entry, what)) = entries.next() {
            let next = match ends && entries.peek().is_none() {
                true => END,
                false => u64::from(entry.number()) + 1 + DOTS,
            };
            if add(DirEntry { node: what.node(), kind: what.kind(), name: index.place(entry).1, next }) {
                break;
            }
        }
        Ok(())
    }

    /// The same with attributes. Every entry that was added, but for `.` and `..`, counts as looked up.
    pub(super) fn readdirplus(
        &self,
        node: NodeId,
        offset: u64,
        ends: bool,
        mut shown: impl FnMut(NodeId) -> bool,
        mut add: impl FnMut(&DirEntryPlus) -> bool,
    ) -> Result<()> {
        let dir = self.dir_of(node)?;
        let room = if offset == 0 { FIRST } else { BATCH };
        let (begins, mut offset) = (offset == 0, offset);
        loop {
            let mut batch: Vec<DirEntryPlus> = Vec::with_capacity(room);
            self.readdir(node, offset, ends, &mut shown, |e| {
                let full = batch.len() == room;
                if !full {
                    let attr = Attr::unknown(e.node, e.kind);
                    batch.push(DirEntryPlus { attr, known: false, name: e.name.to_vec(), next: e.next });
                }
                full
            })?;
            let last = batch.len() < room;
            for mut entry in batch {
                let at = std::mem::replace(&mut offset, entry.next);
                if at >= DOTS {
                    match self.attr_of_listed(dir, &entry.name) {
                        Ok(listed) => (entry.attr, entry.known) = listed,
                        // Removed meanwhile.
                        Err(e) if matches!(e.errno(), Errno::STALE | Errno::NOENT) => continue,
                        // It's there, on a backing that can't tell more.
                        Err(_) => {}
                    }
                }
                if add(&entry) {
                    self.untold(&entry);
                    return Ok(());
                }
            }
            if last || begins {
                return Ok(());
            }
        }
    }

    /// The kernel isn't told of an entry after all.
    pub(super) fn untold(&self, entry: &DirEntryPlus) {
        if entry.known {
            self.forget(entry.attr.node, 1);
        }
    }

    /// The attributes of an entry, and whether the kernel may keep them.
    fn attr_of_listed(&self, dir: DirId, name: &[u8]) -> Result<(Attr, bool)> {
        let mut last = None;
        loop {
            let found = self.index.read().find(dir, name).ok_or(Errno::NOENT)?;
            let stat = match found {
                (_, What::Dir(id)) => return Ok((self.stat_dir(id)?, true)),
                (entry, What::File(file)) => match self.still.using_within(file.node(), MOMENT) {
                    Some(using) => {
                        self.stat_and_remember(entry, dir, name, file, &using).map(|attr| (attr, true))
                    }
                    // It's being evicted or moved, by a drive that hangs: that keeps no listing waiting.
                    None => self.stat_entry(dir, name, file).map(|(attr, _)| (attr, false)),
                },
            };
            match stat {
                // Moved or replaced meanwhile: once more. The same as before has gone behind the mount's back.
                Err(e) if e.errno() == Errno::STALE && last != Some(found) => last = Some(found),
                result => return result,
            }
        }
    }
}
