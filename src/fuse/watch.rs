//! Requests that a drive which hangs keeps: they're answered by a deadline, and the threads they take are replaced.
//!
//! What always holds: a request is answered early only when the drive that it's about, or for a name any drive, is
//! known to hang; who comes late with an answer is told by the kernel that nobody waits (ENOENT). As long as there's
//! memory some thread reads requests, however many wait for a drive: of the device, and of each queue where requests come
//! by io_uring. A thread that came to help stays.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::timing;
use super::uring::Queues;
use crate::fs::{Fs, Place, here, nowhere};
use crate::index::NodeId;

/// A request that takes so long makes its drive suspect, and its thread one that's missing.
const LONG: Duration = Duration::from_secs(1);
/// How often that's looked at.
const TICK: Duration = Duration::from_millis(250);
/// After so many times the deadline a request may be waiting for any drive.
const GUESS: u32 = 3;
/// Threads that read from the device at most, and of one queue.
const MOST: (usize, usize) = (256, super::uring::MOST);

/// Threads among which nobody chooses who gets a request: those that read from the device, or a queue's.
type Crew = Option<u16>;

/// What one thread is doing.
#[derive(Default)]
struct Desk {
    /// Which backing it's at.
    place: Arc<Place>,
    /// The request's number; 0 where there is none, or where it was answered for the thread.
    unique: AtomicU64,
    node: AtomicU64,
    /// In ms since the mount.
    since: AtomicU64,
    /// Whether its drive has been made suspect.
    told: AtomicBool,
    /// Gravely so.
    warned: AtomicBool,
    crew: Crew,
    /// Since when this thread waits for somebody else's answer, in ms since the mount; 0 where it doesn't.
    waits: AtomicU64,
}

thread_local! {
    /// Which one this thread belongs to.
    static CREW: Cell<Crew> = const { Cell::new(None) };
    static DESK: RefCell<Option<Arc<Desk>>> = const { RefCell::new(None) };
    /// This thread is about to answer what somebody else has answered.
    static LATE: Cell<bool> = const { Cell::new(false) };
}

/// A request that others than a thread of the session will answer.
struct Waiting {
    node: NodeId,
    since: Instant,
    told: bool,
    warned: bool,
}

/// All requests that are under way.
pub(super) struct Watch {
    started: Instant,
    device: OwnedFd,
    desks: Mutex<Vec<Arc<Desk>>>,
    handed: Mutex<HashMap<u64, Waiting>>,
    /// Threads that read requests.
    threads: Mutex<HashMap<Crew, usize>>,
    queues: OnceLock<Weak<Queues>>,
    ended: AtomicBool,
}

/// A thread waits for somebody else's answer until this is dropped.
pub(super) struct Waits(Arc<Desk>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waits.store(0, SeqCst);
    }
}

/// A request is under way, and is answered elsewhere, until this is dropped.
pub(super) struct Handed {
    watch: Arc<Watch>,
    unique: u64,
}

impl Handed {
    /// Answers.
    pub(super) fn answer(self, answer: impl FnOnce()) {
        LATE.set(!self.watch.handed.lock().contains_key(&self.unique));
        answer();
        LATE.set(false);
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.watch.handed.lock().remove(&self.unique);
    }
}

/// A thread is at a request until this is dropped.
pub(super) struct AtDesk(Arc<Desk>);

impl Drop for AtDesk {
    fn drop(&mut self) {
        self.0.told.store(false, SeqCst);
        self.0.unique.store(0, SeqCst);
    }
}

/// Whether nobody waits for the answer that this thread gives now: that it can't be given is no news.
pub fn nobody_waits() -> bool {
    LATE.get() || is_too_late()
}

/// Whether the request that this thread is at has been answered for it.
pub(super) fn is_too_late() -> bool {
    DESK.with_borrow(|desk| desk.as_ref().is_some_and(|desk| desk.unique.load(SeqCst) == 0))
}

impl Watch {
    /// For a session with so many threads, on this device.
    pub(super) fn new(device: OwnedFd, threads: usize) -> Arc<Watch> {
        Arc::new(Watch {
            started: Instant::now(),
            device,
            desks: Mutex::default(),
            handed: Mutex::default(),
            threads: Mutex::new(HashMap::from([(None, threads)])),
            queues: OnceLock::new(),
            ended: AtomicBool::new(false),
        })
    }

    /// Requests come by these queues, too.
    pub(super) fn look_after(&self, queues: &Arc<Queues>) {
        let _ = self.queues.set(Arc::downgrade(queues));
    }

    /// The calling thread is one of a queue's.
    pub(super) fn join(&self, queue: u16) {
        CREW.set(Some(queue));
        *self.threads.lock().entry(Some(queue)).or_default() += 1;
    }

    /// What the last requests were about.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        let nodes =
            self.desks.lock().iter().map(|desk| NodeId(desk.node.load(Relaxed))).collect::<HashSet<_>>();
        nodes.into_iter().collect()
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn desk(&self) -> Arc<Desk> {
        DESK.with_borrow_mut(|desk| {
            desk.get_or_insert_with(|| {
                let new = Arc::new(Desk { place: here(), crew: CREW.get(), ..Desk::default() });
                self.desks.lock().push(new.clone());
                new
            })
            .clone()
        })
    }

    /// The calling thread can't take another request before somebody else has answered its last one.
    pub(super) fn wait(&self) -> Waits {
        let desk = self.desk();
        desk.waits.store(self.now().max(1), SeqCst);
        Waits(desk)
    }

    /// The calling thread begins with a request about a node.
    pub(super) fn begin(&self, unique: u64, node: NodeId) -> AtDesk {
        let desk = self.desk();
        nowhere();
        desk.node.store(node.0, Relaxed);
        let now = Instant::now();
        timing::begin(now);
        desk.since.store(now.saturating_duration_since(self.started).as_millis() as u64, Relaxed);
        desk.told.store(false, SeqCst);
        desk.warned.store(false, Relaxed);
        desk.unique.store(unique, SeqCst);
        AtDesk(desk)
    }

    /// A request will be answered by somebody else than this thread.
    pub(super) fn hand_over(self: &Arc<Watch>, unique: u64, node: NodeId) -> Handed {
        self.handed
            .lock()
            .insert(unique, Waiting { node, since: Instant::now(), told: false, warned: false });
        Handed { watch: self.clone(), unique }
    }

    /// The session has ended.
    pub(super) fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Looks after the requests until the session ends. `help` starts so many more threads.
    pub(super) fn start(
        self: &Arc<Watch>,
        fs: Arc<Fs>,
        deadline: Duration,
        help: impl Fn(usize) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let watch = self.clone();
        let run = move || {
            while !watch.ended.load(Relaxed) {
                std::thread::sleep(TICK);
                watch.look(&fs, deadline, &help);
            }
        };
        std::thread::Builder::new().name("kvfs-watch".into()).spawn(run).map(drop)
    }

    fn look(&self, fs: &Fs, deadline: Duration, help: &dyn Fn(usize) -> io::Result<()>) {
        let now = self.started.elapsed();
        let mut stuck = HashMap::<Crew, usize>::new();
        for desk in self.desks.lock().iter() {
            let waits = desk.waits.load(SeqCst);
            if waits != 0 && now.saturating_sub(Duration::from_millis(waits)) >= LONG {
                *stuck.entry(desk.crew).or_default() += 1;
            }
            let unique = desk.unique.load(SeqCst);
            let age = now.saturating_sub(Duration::from_millis(desk.since.load(Relaxed)));
            if age < LONG {
                continue;
            }
            // One that was answered early is at it still.
            let is_late = unique == 0 && desk.told.load(SeqCst);
            if unique == 0 && !is_late {
                continue;
            }
            *stuck.entry(desk.crew).or_default() += 1;
            let node = NodeId(desk.node.load(Relaxed));
            if !desk.told.swap(true, SeqCst) {
                fs.takes_long(node, false);
            }
            if age >= deadline && !desk.warned.swap(true, Relaxed) {
                fs.takes_long(node, true);
            }
            // Where a thread is said to be is a good guess, no more.
            let place = desk.place.slot().filter(|_| age < GUESS * deadline);
            if unique != 0
                && age >= deadline
                && fs.hangs(node, place, age)
                && desk.unique.compare_exchange(unique, 0, SeqCst, SeqCst).is_ok()
            {
                self.answer(unique);
            }
        }
        self.look_at_handed(fs, deadline);
        for (crew, stuck) in stuck {
            self.look_at_crew(crew, stuck, help);
        }
    }

    /// More threads where these keep a crew from its work.
    fn look_at_crew(&self, crew: Crew, stuck: usize, help: &dyn Fn(usize) -> io::Result<()>) {
        let threads = self.threads.lock().get(&crew).copied().unwrap_or_default();
        // What waits in a queue without a free entry is better not there.
        let (free, most) = if crew.is_some() { (1, MOST.1) } else { (0, MOST.0) };
        if stuck + free < threads || threads >= most {
            return;
        }
        let more = threads.min(most - threads);
        let helped = match (crew, self.queues.get().and_then(Weak::upgrade)) {
            // These join by themselves.
            (Some(queue), Some(queues)) => queues.help(queue, more),
            (Some(_), None) => return,
            (None, _) => help(more).map(|()| *self.threads.lock().entry(crew).or_default() += more),
        };
        let whose = crew.map_or_else(String::new, |queue| format!(" of queue {queue}"));
        match helped {
            Ok(()) => {
                tracing::info!(
                    "{stuck} of {threads} threads{whose} wait for a drive; {more} more answer requests"
                );
            }
            Err(e) => {
                tracing::warn!(
                    "{stuck} of {threads} threads{whose} wait for a drive, and there are no more: {e}"
                );
            }
        }
    }

    fn look_at_handed(&self, fs: &Fs, deadline: Duration) {
        let (mut slow, mut over) = (Vec::new(), Vec::new());
        for (unique, waiting) in self.handed.lock().iter_mut() {
            let age = waiting.since.elapsed();
            if age >= LONG && !std::mem::replace(&mut waiting.told, true) {
                slow.push((waiting.node, false));
            }
            if age >= deadline {
                over.push((*unique, waiting.node, age));
                if !std::mem::replace(&mut waiting.warned, true) {
                    slow.push((waiting.node, true));
                }
            }
        }
        slow.into_iter().for_each(|(node, very)| fs.takes_long(node, very));
        for (unique, ..) in over.into_iter().filter(|(_, node, age)| fs.hangs(*node, None, *age)) {
            if self.handed.lock().remove(&unique).is_some() {
                self.answer(unique);
            }
        }
    }

    /// EIO for a request. If it was answered meanwhile, the kernel says that nobody waits.
    fn answer(&self, unique: u64) {
        if self.queues.get().and_then(Weak::upgrade).is_some_and(|queues| queues.answer(unique)) {
            return;
        }
        // struct fuse_out_header in include/uapi/linux/fuse.h
        let mut header = [0u8; 16];
        header[..4].copy_from_slice(&16u32.to_ne_bytes());
        header[4..8].copy_from_slice(&(-libc::EIO).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        let _ = rustix::io::write(&self.device, &header);
    }
}
