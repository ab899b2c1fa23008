//! What the kernel keeps of files whose data comes to the daemon: which handles go by its pages, which go around
//! them, and which find the pages there that others have left.
//!
//! Who writes a new file, or opens one for writing alone, goes around the pages: what is written comes to the daemon
//! straight from the client's memory. What always holds: an open finds no page that isn't what the file has. The
//! kernel drops a range's pages before a write that goes around them, but up to Linux 6.18 not after it (`fuse_direct_io`
//! in fs/fuse/file.c): who reads by pages meanwhile could get old ones, and keep them. So an inode that's open has no
//! handles of both kinds. With asynchronous writes by O_DIRECT it's the same (`fuse_aio_complete`): pages that were there with such
//! a handle aren't there for the next open. Nor are those of a file that somebody else than the kernel has written, that was
//! away with its drive, or that this daemon doesn't know of.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::open::{Data, OpenNode};
use super::open_table::OpenTable;
use crate::index::{Node, NodeId, Slot};

/// Files whose pages are trusted at most: some 6 MiB of memory.
const TRUSTED: usize = 1 << 16;

/// In the record of a handle: it goes around the pages. No flag of open(2) is that high.
const AROUND: u32 = 1 << 30;

/// Files of whose pages, if the kernel has any, it's known that they're what the file has.
#[derive(Default)]
pub(super) struct Trusted(Mutex<Option<LruCache<NodeId, ()>>>);

/// Handles of an open inode, by how they go.
#[derive(Debug, Default)]
pub(super) struct Ways {
    by_pages: usize,
    /// How many of those write with `O_DIRECT`.
    direct: usize,
    around: usize,
    /// How often its pages have become doubtful.
    doubts: u64,
}

/// How one handle goes, until it's dropped.
pub(super) struct Way {
    open: Arc<OpenNode>,
    around: bool,
    direct: bool,
    /// The doubts there were when it was opened.
    doubts: u64,
}

impl Trusted {
    fn with<T>(&self, act: impl FnOnce(&mut LruCache<NodeId, ()>) -> T) -> T {
        act(self.0.lock().get_or_insert_with(LruCache::unbounded))
    }

    fn has(&self, node: NodeId) -> bool {
        self.with(|trusted| trusted.get(&node).is_some())
    }

    fn add(&self, node: NodeId) {
        self.with(|trusted| {
            trusted.push(node, ());
            while trusted.len() > TRUSTED {
                trusted.pop_lru();
            }
        });
    }

    /// The next open finds no pages of the file.
    pub(super) fn remove(&self, node: NodeId) {
        self.with(|trusted| trusted.pop(&node));
    }

    /// Nor of any on a backing.
    pub(super) fn leave(&self, slot: Slot) {
        let on = |node: &NodeId| matches!(node.node(), Some(Node::File(at, _)) if at == slot);
        self.with(|trusted| {
            let gone: Vec<NodeId> = trusted.iter().map(|(node, ())| *node).filter(on).collect();
            for node in gone {
                trusted.pop(&node);
            }
        });
    }
}

impl Ways {
    fn open(&mut self, around: bool, direct: bool) {
        *(if around { &mut self.around } else { &mut self.by_pages }) += 1;
        self.direct += usize::from(direct);
        self.doubts += u64::from(around || direct);
    }
}

impl Way {
    /// How it's written down, beside the flags of open(2).
    pub(super) fn recorded(&self) -> u32 {
        if self.around { AROUND } else { 0 }
    }

    /// One that a daemon before has chosen, by what it wrote down.
    pub(super) fn restored(open: Arc<OpenNode>, recorded: u32) -> Way {
        let around = recorded & AROUND != 0;
        let direct = !around && writes_direct(recorded as i32);
        open.ways.lock().open(around, direct);
        // What that knew of the pages isn't known any more.
        Way { open, around, direct, doubts: u64::MAX }
    }

    /// How the kernel is told of it, without pages of before.
    pub(super) fn data(&self) -> Data {
        if self.around { Data::Around } else { Data::Daemon }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let mut ways = self.open.ways.lock();
        *(if self.around { &mut ways.around } else { &mut ways.by_pages }) -= 1;
        ways.direct -= usize::from(self.direct);
    }
}

impl OpenTable {
    /// How a new handle goes. `may_go_around`: the kernel can map what goes around the pages. `new`: it's that of
    /// a file's creator.
    pub(super) fn choose_way(
        &self,
        open: &Arc<OpenNode>,
        flags: i32,
        new: bool,
        may_go_around: bool,
    ) -> (Way, Data) {
        let direct = writes_direct(flags);
        let only_writes = new || flags & libc::O_ACCMODE == libc::O_WRONLY;
        let mut ways = open.ways.lock();
        let around = may_go_around
            && (ways.around > 0 || ways.by_pages == 0 && only_writes && flags & libc::O_DIRECT == 0);
        let direct = direct && !around;
        ways.open(around, direct);
        if around || direct {
            self.trusted.remove(open.node);
        }
        let keeps = !around && ways.direct == 0 && self.trusted.has(open.node);
        let way = Way { open: open.clone(), around, direct, doubts: ways.doubts };
        drop(ways);
        let data = if keeps { Data::Kept } else { way.data() };
        (way, data)
    }

    /// A handle is closed: what pages it has left can be trusted if nothing has made them doubtful.
    pub(super) fn leave_pages(&self, way: &Way) {
        let ways = way.open.ways.lock();
        if !way.around && ways.direct == 0 && ways.doubts == way.doubts && self.is_here(&way.open) {
            self.trusted.add(way.open.node);
            // Whoever has the drive leave comes before this, or after the above.
            if !self.is_here(&way.open) {
                self.trusted.remove(way.open.node);
            }
        }
    }

    /// Somebody else than the kernel has written the file, or may have.
    pub(super) fn doubt(&self, node: NodeId) {
        if let Some(open) = self.find(node) {
            let mut ways = open.ways.lock();
            ways.doubts += 1;
            self.trusted.remove(node);
        } else {
            self.trusted.remove(node);
        }
    }
}

fn writes_direct(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_DIRECT != 0
}
