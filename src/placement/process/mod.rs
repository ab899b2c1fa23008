//! The processes that ask: what each says of itself, read from `/proc` once and remembered.
//!
//! The kernel tells the id of a *thread*. What always holds: an id that was given to another thread or process
//! never inherits what was read of the first; the second file of a process costs no access to `/proc`, and the
//! first of another thread of it only the question whose thread it is; no lock is held while `/proc` is read;
//! and anything that can't be read is simply not known.
//!
//! That an id still means the same is known by a pidfd, which a poll asks without any file: of each thread, by
//! `PIDFD_THREAD` (Linux 6.9). Older kernels are asked by a `stat` of the thread's directory for every file.
//!
//! A title may be set after the first file, an `exec` makes another program of the process, and a GPU is opened
//! when it's needed: so a process is looked at again when it's twice as old as it was, but at least a second and
//! at most an hour after the last time. That is soon for a young process, and some twenty times in a year's life.
//!
//! A process that hangs may keep whoever reads its command line or environment: it's given up after a moment.

mod life;
mod read;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::evidence::title::Title;
use super::evidence::visible::Environment;
pub use super::evidence::visible::HashSeed;
use super::gpu::ticks_since_boot;
use crate::patience::Patience;
use life::Life;
use read::Reader;

/// A process, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id: that of its first thread.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`): with the id, who it is.
    pub start: u64,
    /// Its title, if that has a rank.
    pub(super) title: Option<Title>,
    /// The environment of it or of its nearest ancestor that has one left.
    pub(super) environment: Option<Environment>,
    /// The GPU devices that it finds in `/dev`.
    pub(super) container: Container,
    /// The minor of the only GPU device that it has open, as a process that uses CUDA does.
    pub(super) open_device: Option<u32>,
}

impl Process {
    /// The seed of Python's hash that it was started with, and whose environment says so: its own, or that of the
    /// ancestor whose environment it has inherited. `None` where none can be read.
    pub fn hash_seed(&self) -> Option<(HashSeed, u32)> {
        self.environment.as_ref().map(|environment| (environment.hash_seed, environment.pid))
    }
}

/// What a process finds in `/dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Container {
    /// What we find: it's in no container, or in ours.
    None,
    /// Something else, that can't be read.
    Unknown,
    /// The GPU devices with these minors, in their order.
    Devices(Box<[u32]>),
}

/// The processes that ask, as read from a `/proc`.
pub struct Processes {
    reader: Arc<Reader>,
    patience: Patience,
    threads: Mutex<LruCache<u32, Arc<Thread>>>,
    known: Mutex<LruCache<u32, Arc<Known>>>,
}

/// A thread that asked, and its process.
struct Thread {
    life: Life,
    process: Arc<Known>,
}

/// A process of which some thread asked.
struct Known {
    life: Life,
    look: RwLock<Look>,
}

/// The last look at a process, and when it's due for the next.
struct Look {
    process: Arc<Process>,
    again: Instant,
}

/// Between two looks at a process.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// A look takes some 50 us. It waits for a process that is starting another program or has its memory changed, which
/// is over in a moment, unless a file system hangs that it does this with.
const MOMENT: Duration = Duration::from_millis(200);

/// Processes that hang, at once, before no other is looked at.
const MOST_LATE: usize = 64;

impl Processes {
    /// Processes as read from this directory, `/proc` except in tests.
    ///
    /// Each thread and each process that is remembered costs a descriptor: there are at most 4096 of each, and
    /// no more than an eighth of what this process may have open together.
    pub fn new(proc_root: impl Into<PathBuf>) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = limit.map_or(4096, |limit| (limit / 16).clamp(16, 4096)) as usize;
        let most = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        Self {
            reader: Arc::new(Reader::new(proc_root.into())),
            patience: Patience::new(MOMENT, MOST_LATE),
            threads: Mutex::new(LruCache::new(most)),
            known: Mutex::new(LruCache::new(most)),
        }
    }

    /// The process that has the thread `tid`; `None` when it's gone or can't be seen (id 0).
    pub fn of(&self, tid: u32) -> Option<Arc<Process>> {
        if tid == 0 {
            return None;
        }
        let thread = self.threads.lock().get(&tid).cloned();
        match thread.filter(|thread| thread.life.lasts(&self.reader, tid)) {
            Some(thread) => Some(self.now(&thread.process)),
            None => self.meet(tid),
        }
    }

    /// Lets go of threads and processes that have ended: each is an open descriptor.
    pub fn forget_dead(&self) {
        fn dead<T>(table: &Mutex<LruCache<u32, Arc<T>>>, lasts: impl Fn(&T, u32) -> bool) {
            let all: Vec<(u32, Arc<T>)> =
                table.lock().iter().map(|(id, known)| (*id, known.clone())).collect();
            for (id, known) in all.iter().filter(|(id, known)| !lasts(known, *id)) {
                let mut table = table.lock();
                // Its id may be another's by now.
                if table.peek(id).is_some_and(|now| Arc::ptr_eq(now, known)) {
                    table.pop(id);
                }
            }
        }
        dead(&self.threads, |thread, tid| thread.life.lasts(&self.reader, tid));
        dead(&self.known, |known, pid| known.life.lasts(&self.reader, pid));
    }

    /// The name of a process, which it may have chosen itself (`/proc/PID/comm`).
    pub fn name(&self, pid: u32) -> Option<String> {
        self.reader.name(pid)
    }

    /// Whether the process that started then and had this id still lives: zombies don't.
    pub fn is_alive(&self, pid: u32, start: u64) -> bool {
        self.reader.stat(pid).is_some_and(|stat| stat.start == start && stat.lives)
    }

    /// Whether the ids of processes are those of the initial pid namespace.
    pub(super) fn are_numbered_by_the_system(&self) -> bool {
        self.reader.is_of_initial_namespace()
    }

    /// A thread that hasn't asked before.
    fn meet(&self, tid: u32) -> Option<Arc<Process>> {
        // First what says whether it lives, then what is read: if it lives after that, it was read of it.
        let life = Life::of_thread(&self.reader, tid)?;
        let pid = self.reader.process_of(tid)?;
        let process = self.known(pid)?;
        if !life.lasts(&self.reader, tid) {
            return None;
        }
        let now = self.now(&process);
        // What falls out is dropped, and its descriptor closed, after the lock.
        let _evicted = self.threads.lock().push(tid, Arc::new(Thread { life, process }));
        Some(now)
    }

    fn known(&self, pid: u32) -> Option<Arc<Known>> {
        let known = self.known.lock().get(&pid).cloned();
        if let Some(known) = known.filter(|known| known.life.lasts(&self.reader, pid)) {
            return Some(known);
        }
        let life = Life::of_process(&self.reader, pid)?;
        let process = self.look(pid, None)?;
        let again = next_look(&process);
        let look = RwLock::new(Look { process: Arc::new(process), again });
        let known = Arc::new(Known { life, look });
        let _evicted = self.known.lock().push(pid, known.clone());
        Some(known)
    }

    /// Reads all of a process, unless it hangs.
    fn look(&self, pid: u32, before: Option<Arc<Process>>) -> Option<Process> {
        let reader = self.reader.clone();
        self.patience.ask(pid, move || reader.look(pid, before.as_deref())).flatten()
    }

    /// What is known of it, looked at again if that is due.
    fn now(&self, known: &Known) -> Arc<Process> {
        let process = {
            let look = known.look.read();
            if Instant::now() < look.again {
                return look.process.clone();
            }
            look.process.clone()
        };
        {
            // One of those who ask looks; the others go on with what is known.
            let mut look = known.look.write();
            if Instant::now() < look.again {
                return look.process.clone();
            }
            look.again = Instant::now() + SHORTEST;
        }
        let Some(newer) = self.look(process.pid, Some(process.clone())) else { return process };
        if newer.start != process.start {
            return process;
        }
        let (again, newer) = (next_look(&newer), Arc::new(newer));
        *known.look.write() = Look { process: newer.clone(), again };
        newer
    }
}

/// When a process that has just been looked at is due again: when it's twice as old.
fn next_look(process: &Process) -> Instant {
    let ticks = ticks_since_boot().saturating_sub(process.start);
    let age = Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second());
    Instant::now() + age.clamp(SHORTEST, LONGEST)
}
