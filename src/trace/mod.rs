//! Operations as they happen, for those who look on.
//!
//! What always holds: while nobody looks on, a request costs one load of a flag where it begins and one where it's
//! answered. No request waits for who looks on: what finds no room in their queue is dropped, and they are told how
//! much that was.

mod event;
mod follow;

pub use event::{Event, Filter, Told};
pub use follow::{check_pattern, follow};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::index::{Node, NodeId, Slot};

/// What waits for one who looks on.
const QUEUE: usize = 8192;
/// How many may look on at a time.
const MOST: usize = 4;
/// Operations whose answer begins with a node (struct fuse_entry_out).
const MAKES_OR_FINDS: [&str; 6] = ["lookup", "create", "mknod", "mkdir", "symlink", "link"];
/// Requests under way that are remembered: more than the kernel has.
const PENDING: usize = 1 << 16;

/// This process's: it has one mount.
pub static TRACER: Tracer = Tracer::new();

/// A request that has begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Which operation (`fs::Op::name`).
    pub op: &'static str,
    /// The path in the mount, if it could be told.
    pub path: Option<Vec<u8>>,
    /// Where a rename or a link leads.
    pub to: Option<Vec<u8>>,
    /// The backing that has it, if one did when this began.
    pub slot: Option<Slot>,
    /// The calling process; 0 if it can't be seen.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

/// A request that was answered.
#[derive(Clone, Debug)]
struct Answered {
    begun: Arc<Begun>,
    at: SystemTime,
    slot: Option<Slot>,
    errno: i32,
    took: Duration,
}

struct Listener {
    id: u64,
    filter: Filter,
    queue: SyncSender<Answered>,
    lost: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<u64, (Arc<Begun>, SystemTime, Instant)>,
    listeners: Vec<Listener>,
    next: u64,
}

/// What hands requests to those who look on.
pub struct Tracer {
    on: AtomicBool,
    state: Mutex<State>,
}

/// One who looks on, until this is dropped.
struct Listening {
    tracer: &'static Tracer,
    id: u64,
    queue: Receiver<Answered>,
    lost: Arc<AtomicU64>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.tracer.state.lock();
        state.listeners.retain(|listener| listener.id != self.id);
        if state.listeners.is_empty() {
            self.tracer.on.store(false, Relaxed);
            state.pending.clear();
        }
    }
}

impl Tracer {
    const fn new() -> Tracer {
        let state = State { pending: BTreeMap::new(), listeners: Vec::new(), next: 0 };
        Tracer { on: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Whether somebody looks on.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Whether somebody wants to hear of an operation.
    pub fn wants(&self, op: &str) -> bool {
        self.state.lock().listeners.iter().any(|listener| listener.filter.has_op(op))
    }

    /// A request has begun.
    pub fn begin(&self, unique: u64, begun: Begun) {
        let mut state = self.state.lock();
        // Nobody looks on any more, or something goes wrong.
        if !state.listeners.is_empty() && state.pending.len() < PENDING {
            state.pending.insert(unique, (Arc::new(begun), SystemTime::now(), Instant::now()));
        }
    }

    /// A request is about to be answered, by success (0) or an errno. `node`: where that finds or makes something, this
    /// is its node, 0 for one that isn't there.
    pub fn answered(&self, unique: u64, errno: i32, node: impl FnOnce() -> Option<NodeId>) {
        let mut state = self.state.lock();
        let Some((begun, at, since)) = state.pending.remove(&unique) else { return };
        let took = since.elapsed();
        let node = if errno == 0 && MAKES_OR_FINDS.contains(&begun.op) { node() } else { None };
        let errno = if node == Some(NodeId(0)) { libc::ENOENT } else { errno };
        let slot = match node.and_then(NodeId::node) {
            Some(Node::File(slot, _)) => Some(slot),
            _ => begun.slot,
        };
        for listener in &state.listeners {
            if listener.filter.takes(&begun, errno, took) {
                let answered = Answered { begun: begun.clone(), at, slot, errno, took };
                if listener.queue.try_send(answered).is_err() {
                    listener.lost.fetch_add(1, Relaxed);
                }
            }
        }
    }

    fn listen(&'static self, filter: Filter) -> Option<Listening> {
        let (send, queue) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let mut state = self.state.lock();
        if state.listeners.len() >= MOST {
            return None;
        }
        let id = state.next;
        state.next += 1;
        state.listeners.push(Listener { id, filter, queue: send, lost: lost.clone() });
        self.on.store(true, Relaxed);
        Some(Listening { tracer: self, id, queue, lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(op: &'static str) -> Begun {
        let (path, to, slot) = Default::default();
        Begun { op, path, to, slot, pid: 7, comm: "test".into() }
    }

    #[test]
    fn nobody_waits_and_what_is_dropped_is_counted() {
        static TRACER: Tracer = Tracer::new();
        assert!(!TRACER.is_on());
        let all = TRACER.listen(Filter::default()).unwrap();
        let errors = TRACER.listen(Filter { errors: true, ..Filter::default() }).unwrap();
        assert!(TRACER.is_on());
        for unique in 0..QUEUE as u64 + 10 {
            TRACER.begin(unique, begun("lookup"));
            TRACER.answered(unique, 0, || Some(NodeId(if unique == 3 { 0 } else { 1 })));
        }
        assert_eq!(all.lost.load(Relaxed), 10);
        assert_eq!(all.queue.try_iter().count(), QUEUE);
        let errors_found: Vec<i32> = errors.queue.try_iter().map(|answered| answered.errno).collect();
        assert_eq!(errors_found, [libc::ENOENT]);
        TRACER.begin(1, begun("open"));
        drop((all, errors));
        assert!(!TRACER.is_on() && TRACER.state.lock().pending.is_empty());
        TRACER.begin(2, begun("open"));
        assert!(TRACER.state.lock().pending.is_empty(), "nobody looks on");
    }

    #[test]
    fn only_so_many_look_on() {
        static TRACER: Tracer = Tracer::new();
        let listening: Vec<_> = (0..MOST).map(|_| TRACER.listen(Filter::default()).unwrap()).collect();
        assert!(TRACER.listen(Filter::default()).is_none());
        drop(listening);
        assert!(TRACER.listen(Filter::default()).is_some());
    }
}
