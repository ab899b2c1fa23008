//! Requests that come by io_uring instead of by `/dev/fuse`: each is answered on the processor where it was made, which
//! saves waking somebody up on another one.
//!
//! What always holds: the kernel has a queue for each processor, and gives no request to any before all have an entry.
//! An entry has one thread, and holds one request from when it comes until it's answered. What nobody waits for
//! (forgotten nodes, interrupts) and all notifications go by the device, where threads of fuser's read on. A request
//! that a daemon dies over is lost, for the kernel can't send it again: no other daemon can go on with such a mount.

mod abi;
mod cpus;
mod entry;
mod serve;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};

use fuser::{Dispatcher, SessionACL};
use parking_lot::{Condvar, Mutex};

use super::session::SessionError;
use super::watch::Watch;
use super::watched::Watched;
use crate::config::Transport;
use entry::{Early, Entry, Queue};
use serve::{Beginning, Ring, serve};

/// Where the kernel says whether requests may come so.
const ENABLE: &str = "/sys/module/fuse/parameters/enable_uring";

/// Entries of one queue at most.
pub(super) const MOST: usize = 64;

/// How requests come, and why not otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// By io_uring, or by `/dev/fuse`.
    pub uring: bool,
    /// Why they don't come by io_uring.
    pub why: Option<String>,
}

/// How requests will come, before anything is touched. `is_supervised`: another daemon is to go on when this one dies.
pub fn choose_transport(wanted: Transport, is_supervised: bool) -> Result<Chosen, SessionError> {
    if wanted == Transport::DevFuse {
        return Ok(Chosen { uring: false, why: None });
    }
    match (wanted, hindrance(is_supervised)) {
        (_, None) => Ok(Chosen { uring: true, why: None }),
        (Transport::IoUring, Some(why)) => Err(SessionError::NoUring(why)),
        (_, why) => Ok(Chosen { uring: false, why }),
    }
}

/// Why requests can't come by io_uring.
fn hindrance(is_supervised: bool) -> Option<String> {
    if is_supervised {
        return Some(
            "the kernel can't send requests again that a daemon died over, if they came so; mount with --supervise off"
                .into(),
        );
    }
    match std::fs::read_to_string(ENABLE) {
        Err(_) => return Some("this kernel can't (Linux 6.14 or newer can)".into()),
        Ok(enabled) if enabled.trim() != "Y" => {
            return Some(format!(
                "the kernel is told not to; write Y to {ENABLE}, or have fuse.enable_uring=1 on its command line"
            ));
        }
        Ok(_) => {}
    }
    // What the daemon is kept from, by a container's filter say, is known before the kernel is told.
    Ring::new().err().map(|e| format!("a ring can't be set up: {e}; `kvfs doctor` says more"))
}

/// Whether the kernel has offered it at INIT: `flags2` of struct fuse_init_in, behind struct fuse_in_header.
pub(super) fn is_offered(init: &[u8]) -> bool {
    let flags2 = init.get(56..60).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    flags2.is_some_and(|flags| flags & abi::OVER_IO_URING != 0)
}

/// All queues of a session, with their entries and threads.
pub(super) struct Queues {
    device: OwnedFd,
    dispatcher: Dispatcher<Watched>,
    watch: Arc<Watch>,
    /// By their numbers, since they're started.
    queues: OnceLock<Vec<Arc<Queue>>>,
    /// They stay: the kernel writes to their memory until the connection has ended.
    entries: Mutex<Vec<Arc<Entry>>>,
    /// A number for each.
    nudges: AtomicU32,
    /// How many of them are served.
    served: Mutex<usize>,
    ended: Condvar,
}

impl Queues {
    /// Not served yet. `device` is the session's.
    pub(super) fn new(
        filesystem: Watched,
        device: OwnedFd,
        acl: SessionACL,
        watch: Arc<Watch>,
    ) -> io::Result<Arc<Queues>> {
        let queues = Arc::new(Queues {
            dispatcher: Dispatcher::new(filesystem, device.try_clone()?, acl),
            device,
            watch: watch.clone(),
            queues: OnceLock::new(),
            entries: Mutex::default(),
            nudges: AtomicU32::new(0),
            served: Mutex::default(),
            ended: Condvar::new(),
        });
        watch.look_after(&queues);
        Ok(queues)
    }

    fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Gives the kernel entries for all its queues: from then on requests come by them.
    pub(super) fn start(self: &Arc<Queues>) -> io::Result<()> {
        let entries = cpus::entries()?;
        let queue = |number| Arc::new(Queue { number, ..Queue::default() });
        let queues = self.queues.get_or_init(|| (0..).take(entries.len()).map(queue).collect());
        let mut begun = Vec::new();
        for (queue, number) in queues.iter().zip(entries) {
            for _ in 0..number {
                begun.push(self.add(queue, Beginning::Register)?);
            }
        }
        begun.into_iter().try_for_each(|begun| begun.recv().map_err(io::Error::other)?)
    }

    /// Gives a queue so many more entries.
    pub(super) fn help(self: &Arc<Queues>, queue: u16, entries: usize) -> io::Result<()> {
        let queue = self.queues.get().and_then(|queues| queues.get(usize::from(queue)));
        let queue = queue.ok_or_else(|| io::Error::other("no such queue"))?;
        let begun: Vec<_> =
            (0..entries).map(|_| self.add(queue, Beginning::Help)).collect::<io::Result<_>>()?;
        begun.into_iter().try_for_each(|begun| begun.recv().map_err(io::Error::other)?)
    }

    /// An entry's request waits until this is dropped, perhaps for another request: the queue gets one more entry if
    /// this was the last without one that waits. A file's data waits for a drive alone, and is large.
    fn leave_one_free<'a>(self: &Arc<Queues>, entry: &'a Entry, is_data: bool) -> impl Drop + use<'a> {
        struct Waiting<'a>(&'a Queue);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.waiting.fetch_sub(1, SeqCst);
            }
        }
        let queue = &entry.queue;
        let (waiting, entries) = (queue.waiting.fetch_add(1, SeqCst) + 1, queue.entries.load(SeqCst));
        if !is_data && waiting >= entries && entries < MOST {
            // Nobody waits for it to begin.
            if let Err(e) = self.add(queue, Beginning::Help) {
                tracing::warn!(
                    "all {entries} entries of queue {} wait, and there are no more: {e}",
                    queue.number
                );
            }
        }
        Waiting(queue)
    }

    /// Answers a request with EIO for the thread that is at it. False if it didn't come by io_uring.
    pub(super) fn answer(self: &Arc<Queues>, unique: u64) -> bool {
        let entries = self.entries.lock().clone();
        for entry in entries {
            match entry.answer_early(unique, libc::EIO) {
                Early::NotHere => {}
                Early::Answered => return true,
                Early::Busy => {
                    if let Err(e) = self.run(entry, Beginning::TakeOver(unique)) {
                        tracing::warn!("a request waits on for a drive: {e}");
                    }
                    return true;
                }
            }
        }
        false
    }

    /// Waits until no entry is served: the connection has ended.
    pub(super) fn wait(&self) {
        let mut served = self.served.lock();
        while *served > 0 {
            self.ended.wait(&mut served);
        }
    }

    fn add(
        self: &Arc<Queues>,
        queue: &Arc<Queue>,
        beginning: Beginning,
    ) -> io::Result<Receiver<io::Result<()>>> {
        let entry = Arc::new(Entry::new(queue.clone())?);
        queue.entries.fetch_add(1, SeqCst);
        self.entries.lock().push(entry.clone());
        self.run(entry, beginning)
    }

    /// Starts a thread for an entry; it says when requests can come.
    fn run(
        self: &Arc<Queues>,
        entry: Arc<Entry>,
        beginning: Beginning,
    ) -> io::Result<Receiver<io::Result<()>>> {
        let (begun, told) = channel();
        let (queues, name) = (self.clone(), format!("kvfs-cpu-{}", entry.queue.number));
        let is_new = !matches!(beginning, Beginning::TakeOver(_));
        let run = move || {
            let tell = |how| {
                // Nobody listens where an entry is taken over.
                let _ = begun.send(how);
            };
            if serve(&queues, &entry, beginning, tell) {
                *queues.served.lock() -= 1;
                queues.ended.notify_all();
            }
        };
        *self.served.lock() += usize::from(is_new);
        std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .inspect_err(|_| *self.served.lock() -= usize::from(is_new))?;
        Ok(told)
    }
}
