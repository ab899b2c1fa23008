//! Names that were evicted and that a living process will remove some day: that succeeds once.
//!
//! LMCache's `local_disk` dies when a file that it removes isn't there (issue #1981: `os.remove` in
//! `LocalDiskBackend.remove`, on the way of a store). The kernel doesn't ask for a removal before it has found
//! the name, and doesn't say what it looks a name up for. So the name of an evicted file is found, as a *ghost*
//! whose attributes are never valid: a removal succeeds; whoever wants anything else has to ask for the
//! attributes, gets ESTALE, and with it the kernel looks the name up once more, for the same thread
//! (`retry_estale` in fs/namei.c): then it's absent.
//!
//! What always holds: only names that a client keeps in its memory become ghosts, only while the process that
//! made the file lives, and until it removes or makes the name again; there are at most [`MOST`].

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::{Attr, NodeId};
use crate::index::{CreatorCode, DirId, Kind};

/// How many evicted names are remembered; the oldest are forgotten.
const MOST: NonZeroUsize = NonZeroUsize::new(1 << 20).unwrap();

/// No backing has this slot: see `index/node.rs`.
pub(super) const NODES: u64 = 0xfffe << 48;

/// After ESTALE the kernel looks a name up twice: to see whether what it has still holds, and anew.
const LOOKS: u8 = 2;
/// And it does so at once.
const SOON: Duration = Duration::from_millis(500);

type Key = (DirId, Box<[u8]>);

#[derive(Debug)]
struct Ghost {
    creator: CreatorCode,
    number: u64,
    /// The thread that is to find it absent, how often, and until when.
    absent_for: Option<(u32, u8, Instant)>,
}

#[derive(Debug)]
struct Inner {
    by_name: LruCache<Key, Ghost>,
    by_number: std::collections::HashMap<u64, Key>,
    next: u64,
}

/// All ghosts.
#[derive(Debug)]
pub(super) struct Ghosts {
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

impl Ghosts {
    pub(super) fn new() -> Ghosts {
        let inner = Inner { by_name: LruCache::new(MOST), by_number: Default::default(), next: 1 };
        Ghosts { count: AtomicUsize::new(0), inner: Mutex::new(inner) }
    }

    /// The usual case costs one load.
    fn some(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// The name was evicted.
    pub(super) fn add(&self, dir: DirId, name: &[u8], creator: CreatorCode) {
        let mut inner = self.inner.lock();
        let number = inner.next;
        inner.next += 1;
        let key: Key = (dir, name.into());
        inner.by_number.insert(number, key.clone());
        let ghost = Ghost { creator, number, absent_for: None };
        if let Some((_, old)) = inner.by_name.push(key, ghost) {
            inner.by_number.remove(&old.number);
        }
        self.count.store(inner.by_name.len(), Relaxed);
    }

    /// A thread looks the name up, which isn't there.
    pub(super) fn look_up(&self, dir: DirId, name: &[u8], tid: u32) -> Option<Attr> {
        if !self.some() {
            return None;
        }
        let mut inner = self.inner.lock();
        let ghost = inner.by_name.peek_mut(&(dir, name.into()))?;
        if let Some((thread, looks, until)) = &mut ghost.absent_for
            && *thread == tid
        {
            let absent = *looks > 0 && Instant::now() < *until;
            *looks = looks.saturating_sub(1);
            if absent {
                return None;
            }
        }
        ghost.absent_for = None;
        let mut attr = Attr::unknown(NodeId(NODES | ghost.number), Kind::File);
        (attr.perm, attr.nlink) = (0o600, 1);
        Some(attr)
    }

    /// Whether the name is one, for whichever thread.
    pub(super) fn has(&self, dir: DirId, name: &[u8]) -> bool {
        self.some() && self.inner.lock().by_name.contains(&(dir, name.into()))
    }

    /// A thread wants more of a node than to remove it: if it's a ghost, the thread won't find it next time.
    pub(super) fn is_absent(&self, node: NodeId, tid: u32) -> bool {
        if node.0 & NODES != NODES || node.0 >> 48 != NODES >> 48 {
            return false;
        }
        let mut inner = self.inner.lock();
        let Some(key) = inner.by_number.get(&(node.0 & !NODES)).cloned() else { return true };
        if let Some(ghost) = inner.by_name.peek_mut(&key) {
            ghost.absent_for = Some((tid, LOOKS, Instant::now() + SOON));
        }
        true
    }

    /// The name is removed, or made again: whether it was a ghost's.
    pub(super) fn take(&self, dir: DirId, name: &[u8]) -> bool {
        if !self.some() {
            return false;
        }
        let mut inner = self.inner.lock();
        let Some(ghost) = inner.by_name.pop(&(dir, name.into())) else { return false };
        inner.by_number.remove(&ghost.number);
        self.count.store(inner.by_name.len(), Relaxed);
        true
    }

    /// The process that made the files is gone: nobody removes their names any more.
    pub(super) fn forget(&self, creator: CreatorCode) {
        if !self.some() {
            return;
        }
        let mut inner = self.inner.lock();
        let gone: Vec<Key> =
            inner.by_name.iter().filter(|(_, g)| g.creator == creator).map(|(key, _)| key.clone()).collect();
        for key in gone {
            if let Some(ghost) = inner.by_name.pop(&key) {
                inner.by_number.remove(&ghost.number);
            }
        }
        self.count.store(inner.by_name.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: DirId = DirId::ROOT;

    #[test]
    fn a_removal_succeeds_once() {
        let ghosts = Ghosts::new();
        assert!(!ghosts.take(DIR, b"a"));
        ghosts.add(DIR, b"a", CreatorCode(3));
        assert!(ghosts.look_up(DIR, b"a", 7).is_some());
        assert!(ghosts.look_up(DIR, b"b", 7).is_none());
        assert!(ghosts.take(DIR, b"a"));
        assert!(!ghosts.take(DIR, b"a"));
        assert!(ghosts.look_up(DIR, b"a", 7).is_none());
    }

    #[test]
    fn who_wants_more_finds_it_absent() {
        let ghosts = Ghosts::new();
        ghosts.add(DIR, b"a", CreatorCode(3));
        let node = ghosts.look_up(DIR, b"a", 7).unwrap().node;
        assert_eq!(node.node(), None, "no file of a backing");
        assert!(ghosts.is_absent(node, 7));
        assert!(ghosts.look_up(DIR, b"a", 8).is_some(), "another thread may be removing it");
        assert!(ghosts.is_absent(node, 7));
        assert!(ghosts.look_up(DIR, b"a", 7).is_none(), "what the kernel has doesn't hold");
        assert!(ghosts.look_up(DIR, b"a", 7).is_none(), "nor is it there");
        assert!(ghosts.look_up(DIR, b"a", 7).is_some(), "the next call may be a removal");
        assert!(!ghosts.is_absent(NodeId::ROOT, 7) && !ghosts.is_absent(NodeId(1 << 48 | 9), 7));
        assert!(!ghosts.is_absent(NodeId(0xffff << 48 | 1), 7), "the socket is no ghost");
    }

    #[test]
    fn ghosts_go_with_the_process_that_remembers_them() {
        let ghosts = Ghosts::new();
        ghosts.add(DIR, b"a", CreatorCode(3));
        ghosts.add(DIR, b"b", CreatorCode(4));
        ghosts.add(DIR, b"b", CreatorCode(4));
        ghosts.forget(CreatorCode(3));
        assert!(!ghosts.take(DIR, b"a") && ghosts.take(DIR, b"b") && !ghosts.take(DIR, b"b"));
        assert!(ghosts.inner.lock().by_number.is_empty());
    }
}
