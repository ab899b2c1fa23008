//! Taking over from a daemon that died: the files that are open.
//!
//! What always holds: a handle that the kernel has keeps its number, and a file that is passed through its id in
//! the kernel, for as long as it's open. A handle whose file can't be found (removed while nobody kept it)
//! answers ESTALE; what the kernel does by itself with such a file goes on.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::open::{Handle, OpenNode, birth_of};
use super::open_table::place;
use super::paging::Way;
use super::{Data, Fs, NodeId, Opened, Result};
use crate::index::{Node, Slot};
use crate::io::{BackingRegistry, Registered};
use crate::supervise::{HandleRecord, Tag, unique};

/// What is left of a daemon before this one.
#[derive(Default)]
pub(super) struct Left {
    /// Handles by the request that made them: it may come again.
    by_request: Mutex<HashMap<u64, u64>>,
    /// Handles whose file wasn't found.
    lost: Mutex<HashMap<u64, NodeId>>,
    /// What the kernel passes through of lost files, each with its handles.
    lost_ids: Mutex<HashMap<NodeId, (Registered, usize)>>,
}

/// What came of taking over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovered {
    /// Handles that go on.
    pub handles: usize,
    /// Handles whose file wasn't found.
    pub lost: usize,
}

impl Left {
    /// Whether the handle's file wasn't found.
    pub(super) fn is_lost(&self, fh: u64) -> bool {
        self.lost.lock().contains_key(&fh)
    }

    /// A lost handle is closed. False if it isn't one.
    fn release(&self, fh: u64) -> bool {
        let Some(node) = self.lost.lock().remove(&fh) else { return false };
        let mut ids = self.lost_ids.lock();
        if let Some((_, handles)) = ids.get_mut(&node) {
            *handles -= 1;
            if *handles == 0 {
                ids.remove(&node);
            }
        }
        true
    }
}

impl Fs {
    /// Takes up what a daemon before had open: `nameless` are the files that were kept because they have no
    /// name. To be called once the registry is set, and before the first request.
    pub fn recover(&self, registry: &Arc<BackingRegistry>, nameless: Vec<(u64, OwnedFd)>) -> Recovered {
        let Some(state) = self.state.clone().filter(|state| state.is_recovered()) else {
            return Recovered::default();
        };
        let mut ids: HashMap<u64, Registered> = HashMap::new();
        for record in state.nodes() {
            ids.insert(record.node, registry.adopt(record));
        }
        let mut nameless: HashMap<u64, OwnedFd> = nameless.into_iter().collect();
        let mut nodes: HashMap<u64, Option<Arc<OpenNode>>> = HashMap::new();
        let mut handles = Vec::new();
        let (mut recovered, mut requests) = (Recovered::default(), HashMap::new());
        for (at, record) in state.handles() {
            let node = nodes.entry(record.node).or_insert_with(|| {
                let kept = nameless.remove(&record.node);
                let found = self.find_open(&record, kept);
                found.map(|(slot, fd, kept)| {
                    let registered = ids.remove(&record.node);
                    Arc::new(OpenNode::restored(NodeId(record.node), slot, fd, registered, kept))
                })
            });
            let restored = node.clone().and_then(|node| self.restore_handle(node, &record).ok());
            requests.insert(record.unique, record.fh);
            match restored {
                Some(handle) => {
                    self.restored_writer(&handle, record.flags);
                    handles.push((record.fh, handle));
                }
                None => self.lose(record, &mut ids),
            }
            debug_assert_eq!(at, place(record.fh));
        }
        recovered.handles = handles.len();
        recovered.lost = self.open.left.lost.lock().len();
        self.open.restore(handles.into_iter());
        *self.open.left.by_request.lock() = requests;
        // What is left in `ids` was kept for a next open: their registrations end here.
        for node in nameless.into_keys() {
            self.keeper.release(Tag::File(node));
        }
        recovered
    }

    /// The file of a handle: by its name, or as it was kept.
    fn find_open(&self, record: &HandleRecord, kept: Option<OwnedFd>) -> Option<(Slot, OwnedFd, bool)> {
        let Some(Node::File(slot, ino)) = NodeId(record.node).node() else { return None };
        if let Some(fd) = kept {
            return Some((slot, fd, true));
        }
        let (fd, _) = self.open_path(slot, ino).ok()?;
        (birth_of(&fd) == record.birth).then_some((slot, fd, false))
    }

    fn restore_handle(&self, node: Arc<OpenNode>, record: &HandleRecord) -> Result<Handle> {
        let flags = record.flags as i32 & !libc::O_TRUNC;
        let open = self.open.hold(&node);
        let data = self.data_of(&open);
        let io = match data {
            Data::Passthrough(_) => None,
            _ => match self.open_io(&open, flags) {
                Ok(io) => Some(Arc::new(io)),
                Err(e) => {
                    self.unpin(open);
                    return Err(e);
                }
            },
        };
        let way = (data == Data::Daemon).then(|| Way::restored(open.clone(), record.flags));
        Ok(Handle::new(open, flags, io, way, self.open.taken(record.user)))
    }

    fn lose(&self, record: HandleRecord, ids: &mut HashMap<u64, Registered>) {
        let (left, node) = (&self.open.left, NodeId(record.node));
        left.lost.lock().insert(record.fh, node);
        let mut lost = left.lost_ids.lock();
        if let Some(registered) = ids.remove(&record.node) {
            lost.insert(node, (registered, 0));
        }
        if let Some((_, handles)) = lost.get_mut(&node) {
            *handles += 1;
        }
    }

    /// Whether the kernel may know what another daemon has told it.
    pub(super) fn is_recovered(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.is_recovered())
    }

    /// A lost handle is closed. False if it isn't one.
    pub(super) fn release_lost(&self, fh: u64) -> bool {
        let released = self.open.left.release(fh);
        if released && let Some(state) = &self.state {
            state.drop_handle(place(fh));
        }
        released
    }

    /// The handle that the request at work was given by a daemon that died before it could say so.
    pub(super) fn opened_before(&self, node: NodeId) -> Option<Opened> {
        let fh = {
            let mut requests = self.open.left.by_request.lock();
            if requests.is_empty() {
                return None;
            }
            requests.remove(&unique())?
        };
        let handle = self.open.handle(fh).ok().filter(|handle| handle.node.node == node)?;
        let flush = self.says_closed(handle.node.slot, handle.access);
        let data = handle.way.as_ref().map_or_else(|| self.data_of(&handle.node), Way::data);
        Some(Opened { fh, data, flush })
    }
}
