//! A thread of a queue: it takes the requests of one entry, one after the other, and hands their answers on.
//!
//! What always holds: the thread that submits for an entry is the one that waits for its completions, for the kernel
//! copies a request to memory in the context of who has submitted. A thread has one entry, so a request that takes
//! long keeps no other one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use io_uring::{IoUring, squeue};

use super::Queues;
use super::abi;
use super::entry::{Entry, Room};
use crate::index::NodeId;
use crate::processors::stay_on;

/// A thread's ring: one submission, one completion.
pub(super) struct Ring(IoUring<squeue::Entry128>);

impl Ring {
    /// For the calling thread.
    pub(super) fn new() -> io::Result<Ring> {
        // The kernel's part of a completion is done when this thread asks for it, not by interrupting it.
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(1).map(Ring)
    }

    /// What commands are for.
    fn register(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        self.0.submitter().register_files(&[device.as_raw_fd()])
    }

    /// # Safety
    /// What the command names is there until its completion.
    unsafe fn push(&mut self, command: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: as promised.
        unsafe { self.0.submission().push(command) }.map_err(io::Error::other)
    }

    /// Submits, without waiting for a completion: an error that comes at once.
    fn submit(&mut self) -> io::Result<Option<i32>> {
        self.0.submit()?;
        Ok(self.0.completion().next().map(|done| done.result()))
    }

    /// Submits what there is, and waits for a completion.
    fn wait(&mut self) -> io::Result<i32> {
        loop {
            match self.0.submit_and_wait(1) {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                    return Err(e);
                }
                _ => {}
            }
            if let Some(done) = self.0.completion().next() {
                return Ok(done.result());
            }
        }
    }
}

/// How a thread begins.
pub(super) enum Beginning {
    /// Its entry is new.
    Register,
    /// The same, and requests may wait in the queue already: the kernel gives them only to an entry that has just
    /// answered another.
    Help,
    /// The entry's thread before hangs at this request.
    TakeOver(u64),
}

/// Serves an entry until the connection ends, or another thread has taken it: then false. `begun` is told when requests
/// can come.
pub(super) fn serve(
    queues: &Arc<Queues>,
    entry: &Arc<Entry>,
    beginning: Beginning,
    begun: impl FnOnce(io::Result<()>),
) -> bool {
    // A request is answered where it was made, and nobody is woken elsewhere.
    stay_on(entry.queue.number.into());
    queues.watch.join(entry.queue.number);
    let is_new = !matches!(beginning, Beginning::TakeOver(_));
    match begin(queues, entry, beginning) {
        Ok(Some((ring, server, completion))) => {
            begun(Ok(()));
            go_on(queues, entry, ring, server, completion).unwrap_or_else(|e| {
                tracing::error!("a thread of queue {} has ended: {e}", entry.queue.number);
                true
            })
        }
        Ok(None) => is_new,
        Err(e) => {
            begun(Err(e));
            is_new
        }
    }
}

type Begun = (Ring, u64, Option<i32>);

fn begin(queues: &Arc<Queues>, entry: &Entry, beginning: Beginning) -> io::Result<Option<Begun>> {
    let mut ring = Ring::new()?;
    ring.register(queues.device())?;
    match beginning {
        Beginning::Register | Beginning::Help => {
            let buffers = entry.buffers();
            // SAFETY: the entry is there as long as its queue (`Queues`), and `buffers` until this is submitted.
            unsafe { ring.push(&abi::register(entry.queue.number, &buffers)) }?;
            let completion = ring.submit()?;
            if let Some(error) = completion.filter(|result| *result < 0) {
                return Err(io::Error::from_raw_os_error(-error));
            }
            if matches!(beginning, Beginning::Help) {
                // Without it they wait until another request is made on this processor.
                let number = queues.nudges.fetch_add(1, Relaxed);
                let try_with =
                    |node: &NodeId| rustix::io::write(queues.device(), &abi::nudge(number, node.0)).is_ok();
                if !queues.watch.nodes().iter().any(try_with) {
                    tracing::debug!(
                        "what waits in queue {} waits for the next request there",
                        entry.queue.number
                    );
                }
            }
            Ok(Some((ring, entry.serve(), completion)))
        }
        Beginning::TakeOver(unique) => {
            let Some(server) = entry.take_over(unique, libc::EIO) else { return Ok(None) };
            // SAFETY: as above.
            unsafe { ring.push(&abi::commit(entry.queue.number, unique)) }?;
            Ok(Some((ring, server, None)))
        }
    }
}

fn go_on(
    queues: &Arc<Queues>,
    entry: &Arc<Entry>,
    mut ring: Ring,
    server: u64,
    first: Option<i32>,
) -> io::Result<bool> {
    let mut room = Room::new();
    let mut completion = first;
    loop {
        let result = match completion.take() {
            Some(result) => result,
            None => ring.wait()?,
        };
        match -result {
            ..=0 => {}
            // Unmounted, or aborted.
            libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED => return Ok(true),
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        // SAFETY: this completion gave the entry to this thread; the request isn't used after its dispatch.
        let (unique, request) = unsafe { entry.request(&mut room) };
        let is_data = request.as_ref().is_ok_and(|request| abi::is_data(request));
        let dispatched = match request {
            Ok(_) if abi::is_nudge(unique) => {
                entry.refuse(unique);
                Ok(())
            }
            request => request.and_then(|request| dispatch(queues, entry, request)),
        };
        if let Err(e) = dispatched {
            tracing::error!("a request that came by io_uring can't be read: {e}");
            entry.refuse(unique);
        }
        let waits =
            entry.is_open(server).then(|| (queues.watch.wait(), queues.leave_one_free(entry, is_data)));
        let is_ours = entry.wait(server);
        drop(waits);
        if !is_ours {
            return Ok(false);
        }
        // SAFETY: the entry is there as long as its queue.
        unsafe { ring.push(&abi::commit(entry.queue.number, unique)) }?;
    }
}

fn dispatch(queues: &Arc<Queues>, entry: &Arc<Entry>, request: &[u8]) -> Result<(), String> {
    let dispatched = catch_unwind(AssertUnwindSafe(|| queues.dispatcher.dispatch(request, entry.clone())));
    match dispatched {
        Ok(dispatched) => dispatched.map_err(|e| e.to_string()),
        // The panic hook has written its line, and its reply has answered as it was dropped.
        Err(_) => Ok(()),
    }
}
