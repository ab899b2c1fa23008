//! What the index says of names, for the operator's tools.
//!
//! What always holds: no disk is touched, and the index's lock is held for one part of a directory at a time.

use rustix::io::Errno;

use super::{Error, Fs, NodeId, Result};
use crate::backing::is_reserved;
use crate::index::{DirId, EntryId, Index, Kind, Slot, SlotSet, What};
use crate::placement::Reason;

/// Entries that are looked at while the index is locked.
const PART: usize = 1024;

/// What a path is.
#[derive(Clone, Copy, Debug)]
pub enum SeenKind {
    /// A directory.
    Directory(DirId),
    /// Something else.
    File(Kind),
}

/// A name of the index.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The path in the mount.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: SeenKind,
    /// The backings that have it: a file's own, or all of a directory.
    pub slots: SlotSet,
    /// The backings with older copies.
    pub shadows: SlotSet,
    /// Somebody has it open.
    pub is_open: bool,
    /// It's being written, and nobody else sees it yet.
    pub is_hidden: bool,
    /// Why it's there, if that was asked for.
    pub placement: Option<String>,
}

impl Fs {
    /// What a path is; `None` where it isn't there.
    pub fn seen(&self, path: &[u8], placement: bool) -> Option<Seen> {
        let index = self.index.read();
        match find(&index, path)? {
            None => Some(Seen {
                path: Vec::new(),
                kind: SeenKind::Directory(DirId::ROOT),
                slots: index.slots(DirId::ROOT).unwrap_or_default(),
                shadows: SlotSet::EMPTY,
                is_open: false,
                is_hidden: false,
                placement: None,
            }),
            Some(entry) => Some(self.see(&index, entry, path.to_vec(), placement)),
        }
    }

    /// A part of a directory, and where to go on.
    pub fn seen_in(&self, dir: DirId, path: &[u8], from: u32, placement: bool) -> (Vec<Seen>, Option<u32>) {
        let index = self.index.read();
        let mut seen = Vec::with_capacity(PART);
        let mut entries = index.children(dir, from);
        for entry in entries.by_ref().take(PART) {
            let name = index.place(entry).1;
            let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            seen.push(self.see(&index, entry, path, placement));
        }
        let next = entries.next().map(EntryId::number);
        (seen, next)
    }

    fn see(&self, index: &Index, entry: EntryId, path: Vec<u8>, placement: bool) -> Seen {
        match index.what(entry) {
            What::Dir(dir) => Seen {
                path,
                kind: SeenKind::Directory(dir),
                slots: index.slots(dir).unwrap_or_default(),
                shadows: SlotSet::EMPTY,
                is_open: false,
                is_hidden: false,
                placement: None,
            },
            What::File(file) => {
                let node = file.node();
                Seen {
                    path,
                    kind: SeenKind::File(file.kind),
                    slots: SlotSet::one(file.slot),
                    shadows: index.shadows(entry),
                    is_open: self.open.is_open(node),
                    is_hidden: self.publish.is_hidden(node),
                    placement: placement.then(|| self.why(node, file.reason)),
                }
            }
        }
    }

    fn why(&self, node: NodeId, reason: u8) -> String {
        match self.decisions.lock().peek(&node) {
            Some(decision) => decision.detail.to_string(),
            None => Reason::from_code(reason).map_or_else(|| "unknown".into(), |reason| reason.to_string()),
        }
    }

    /// Removes the copy of a path that a backing has beside the file; ENOENT where there's none.
    pub fn drop_shadow(&self, path: &[u8], slot: Slot) -> Result<()> {
        let place = {
            let index = self.index.read();
            find(&index, path)
                .flatten()
                .map(|entry| index.place(entry))
                .map(|(dir, name)| (dir, name.to_vec()))
        };
        let (dir, name) = place.ok_or(Errno::NOENT)?;
        let _lock = self.locks.lock(dir, &name);
        let (entry, file, shadows) = {
            let index = self.index.read();
            match index.find(dir, &name) {
                Some((entry, What::File(file))) => (entry, file, index.shadows(entry)),
                _ => return Err(Errno::NOENT.into()),
            }
        };
        if !shadows.has(slot) {
            return Err(Errno::NOENT.into());
        }
        self.changeable(slot)?;
        // The file is there, or nothing goes.
        let fd = self.dir_fd(file.slot, dir)?;
        super::attr::stat_at(&fd, &name).map_err(Error::on(file.slot))?;
        self.remove_copy(dir, &name, slot)?;
        self.index.write().set_shadows(entry, shadows.without(slot));
        Ok(())
    }

    /// The file that a name in a directory stands for: its backing. For those who look on.
    pub fn slot_of_name(&self, parent: NodeId, name: &[u8]) -> Option<Slot> {
        let dir = self.dir_of(parent).ok()?;
        match self.index.read().find(dir, name)?.1 {
            What::File(file) => Some(file.slot),
            What::Dir(_) => None,
        }
    }

    /// The path of a node that the kernel knows, or of a name in it. For those who look on.
    pub fn path_of_node(&self, node: NodeId, name: Option<&[u8]>) -> Option<Vec<u8>> {
        use crate::index::Node;
        let index = self.index.read();
        match (node.node()?, name) {
            (Node::Dir(dir), Some(name)) => Some(index.path_of(dir, name)),
            (Node::Dir(dir), None) => Some(index.path(dir)),
            (Node::File(slot, ino), _) => {
                let (dir, name) = index.place(index.known(slot, ino)?);
                Some(index.path_of(dir, name))
            }
        }
    }
}

/// The entry of a path: `Some(None)` is the root.
fn find(index: &Index, path: &[u8]) -> Option<Option<EntryId>> {
    let (mut dir, mut found) = (DirId::ROOT, None);
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        if is_reserved(name) {
            return None;
        }
        // Nothing is in a file.
        if found.is_some_and(|at| matches!(index.what(at), What::File(_))) {
            return None;
        }
        let (entry, what) = index.find(dir, name)?;
        if let What::Dir(id) = what {
            dir = id;
        }
        found = Some(entry);
    }
    Some(found)
}
