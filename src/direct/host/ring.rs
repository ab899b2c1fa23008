//! One ring, and the thread that alone submits to it and takes its completions.
//!
//! A thread of its own, and not the one that read the request: the kernel runs the completions of a request on
//! the thread that submitted it, and would wake the FUSE threads for each. What always holds: an op is in the
//! slab from its first request to its last completion, so the kernel never sees memory or a descriptor that
//! is gone; nothing here blocks but the ring itself.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use slab::Slab;

use super::HostBuffer;
use super::lanes::{Lane, Lanes, page_size};
use super::pins::Pins;
use super::plan::{Piece, plan};
use crate::direct::abi::Path;
use crate::direct::buffer::Memory;
use crate::direct::engine::{Direction, Op};
use crate::supervise::Lifeline;

const ENTRIES: u32 = 256;
/// Requests that may be under way at once; further ops wait in the inbox.
const DEPTH: usize = 1024;
/// Bytes of one request: smaller ones wake the thread more often, larger ones bring nothing.
const PIECE: u64 = 4 << 20;
/// What a completion of the doorbell carries.
const DOORBELL: u64 = u64::MAX;

/// The side that takes ops.
pub(super) struct Ring {
    inbox: Arc<Inbox>,
}

struct Inbox {
    ops: Mutex<Vec<Op>>,
    /// Serial numbers of mappings that are gone.
    gone: Mutex<Vec<u64>>,
    /// Written to when the thread sleeps.
    doorbell: OwnedFd,
    asleep: AtomicBool,
    stop: AtomicBool,
}

impl Ring {
    /// Makes a ring and starts its thread.
    pub(super) fn start(number: usize, lifeline: &Arc<Lifeline>) -> io::Result<Ring> {
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inbox = Arc::new(Inbox {
            ops: Mutex::default(),
            gone: Mutex::default(),
            doorbell,
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let (told, ready) = std::sync::mpsc::channel();
        let (theirs, lifeline) = (inbox.clone(), lifeline.clone());
        std::thread::Builder::new().name(format!("kvfs-direct-{number}")).spawn(move || {
            // On its own thread: the ring is then the thread's alone.
            let made = make_ring();
            match made {
                Ok(ring) => {
                    lifeline.hold_by(&ring.submitter());
                    let _ = told.send(Ok(()));
                    drop(told);
                    Worker::new(ring, theirs).run();
                }
                Err(e) => drop(told.send(Err(e))),
            }
        })?;
        ready.recv().map_err(io::Error::other)??;
        Ok(Ring { inbox })
    }

    /// Takes ops.
    pub(super) fn take(&self, ops: Vec<Op>) {
        self.inbox.ops.lock().extend(ops);
        self.inbox.ring();
    }

    /// A mapping is gone: nothing of it stays pinned.
    pub(super) fn forget(&self, serial: u64) {
        self.inbox.gone.lock().push(serial);
        self.inbox.ring();
    }
}

impl Inbox {
    fn ring(&self) {
        if self.asleep.swap(false, SeqCst) {
            // Full means that it rings already.
            let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.inbox.stop.store(true, SeqCst);
        self.inbox.asleep.store(true, SeqCst);
        self.inbox.ring();
    }
}

fn make_ring() -> io::Result<IoUring> {
    // Linux 6.1; older kernels get a plain ring.
    let modern = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(4 * DEPTH as u32)
        .build(ENTRIES);
    modern.or_else(|_| IoUring::builder().setup_cqsize(4 * DEPTH as u32).build(ENTRIES))
}

/// An op under way.
struct Job {
    op: Op,
    direct: Option<i32>,
    buffered: i32,
    pieces: Vec<Part>,
    /// Parts that haven't ended, of those under way.
    left: usize,
    /// For a WRITE, which parts those are.
    lane: Lane,
}

/// A piece under way.
struct Part {
    piece: Piece,
    moved: u64,
    errno: i32,
}

struct Worker {
    ring: IoUring,
    inbox: Arc<Inbox>,
    jobs: Slab<Job>,
    /// Requests under way.
    requests: usize,
    /// Ops that wait for room.
    later: Vec<Op>,
    pins: Pins,
    lanes: Lanes,
}

impl Worker {
    fn new(ring: IoUring, inbox: Arc<Inbox>) -> Worker {
        let pins = Pins::new(&ring.submitter());
        let (jobs, lanes) = (Slab::new(), Lanes::default());
        Worker { ring, inbox, jobs, requests: 0, later: Vec::new(), pins, lanes }
    }

    fn run(mut self) {
        self.listen();
        let mut done: Vec<(u64, i32, u32)> = Vec::new();
        loop {
            guarded(|| self.accept());
            if self.inbox.stop.load(SeqCst) && self.jobs.is_empty() {
                return;
            }
            self.wait();
            done.extend(self.ring.completion().map(|c| (c.user_data(), c.result(), c.flags())));
            for (key, result, flags) in done.drain(..) {
                match key {
                    // Its count is never read: each ring is told of by itself.
                    DOORBELL if cqueue::more(flags) => {}
                    DOORBELL => self.listen(),
                    key => guarded(|| self.complete(key, result)),
                }
            }
        }
    }

    /// Has the ring tell when the doorbell rings.
    fn listen(&mut self) {
        let entry = opcode::PollAdd::new(types::Fd(self.inbox.doorbell.as_raw_fd()), libc::POLLIN as u32);
        let entry = entry.multi(true);
        self.push(&entry.build().user_data(DOORBELL));
    }

    /// Starts what has come in, as far as there is room.
    fn accept(&mut self) {
        loop {
            let gone = std::mem::take(&mut *self.inbox.gone.lock());
            for serial in gone {
                self.pins.forget(&self.ring.submitter(), serial);
            }
            if self.later.is_empty() {
                std::mem::swap(&mut self.later, &mut self.inbox.ops.lock());
                // Oldest last.
                self.later.reverse();
            }
            while self.requests < DEPTH
                && let Some(op) = self.later.pop()
            {
                self.start(op);
            }
            if !self.later.is_empty() {
                return;
            }
            // Nothing to do but wait: from here on the doorbell must be rung. What came in before is seen.
            self.inbox.asleep.store(true, SeqCst);
            if self.inbox.ops.lock().is_empty() && self.inbox.gone.lock().is_empty() {
                return;
            }
            self.inbox.asleep.store(false, SeqCst);
        }
    }

    /// Submits what was pushed and waits for a completion.
    fn wait(&mut self) {
        match self.ring.submit_and_wait(1).map_err(|e| e.raw_os_error()) {
            Ok(_) | Err(Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(errno) => {
                // It can only be out of memory: completions will come and free some.
                tracing::warn!("io_uring: {}", io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO)));
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the memory and the descriptors of an entry are the op's, which is in `jobs` until its last
        // completion; or the doorbell, which lives as long as the ring.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // Full: hand over what is there.
            if let Err(e) = self.ring.submit()
                && !matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
            {
                std::thread::yield_now();
            }
        }
    }

    fn start(&mut self, op: Op) {
        let Memory::Host(host) = op.buffer.memory() else { return op.fail(libc::EINVAL) };
        let memory = host.mapping.at(op.buf_off) as u64;
        let descriptors = op.file.direct().and_then(|direct| {
            let direct = direct.map(|fd| fd.as_raw_fd());
            op.file.buffered().map(|buffered: BorrowedFd<'_>| (direct, buffered.as_raw_fd()))
        });
        let (direct, buffered) = match descriptors {
            Ok(found) => found,
            Err(e) => return op.fail(e.errno().raw_os_error()),
        };
        let is_write = op.direction == Direction::Write;
        let align = match op.file.align() {
            // No page is written both ways.
            align if is_write => align.max(page_size()),
            align => align,
        };
        let mut pieces = plan(op.file_off, memory, op.len, align, PIECE.next_multiple_of(align));
        for piece in &mut pieces {
            piece.direct &= direct.is_some();
        }
        let pieces: Vec<_> = pieces.iter().map(|&piece| Part { piece, moved: 0, errno: 0 }).collect();
        let lane = if pieces.iter().any(|p| p.piece.direct) { Lane::Direct } else { Lane::Cached };
        let left = pieces.len();
        let serial = op.file.serial();
        let key = self.jobs.insert(Job { op, direct, buffered, pieces, left, lane });
        if !is_write {
            (0..left).for_each(|part| self.request(key, part));
        } else if self.lanes.enter(serial, key, lane) {
            self.start_lane(key);
        }
    }

    /// Asks for the parts of a WRITE that go in its lane.
    fn start_lane(&mut self, key: usize) {
        let job = &mut self.jobs[key];
        let direct = job.lane == Lane::Direct;
        let parts: Vec<_> = (0..job.pieces.len()).filter(|i| job.pieces[*i].piece.direct == direct).collect();
        job.left = parts.len();
        parts.into_iter().for_each(|part| self.request(key, part));
    }

    /// Asks for the rest of a part.
    fn request(&mut self, key: usize, part: usize) {
        let job = &self.jobs[key];
        let Part { piece, moved, .. } = job.pieces[part];
        let at = piece.at + moved;
        let len = (piece.len - moved) as u32;
        let Memory::Host(HostBuffer { mapping, .. }) = job.op.buffer.memory() else { return };
        let from = job.op.buf_off + at;
        debug_assert!(from + u64::from(len) <= mapping.len() as u64);
        let memory = mapping.at(from);
        let pinned = self.pins.slot(&self.ring.submitter(), mapping, from, len.into());
        let fd = match job.direct {
            Some(fd) if piece.direct => types::Fd(fd),
            _ => types::Fd(job.buffered),
        };
        let offset = job.op.file_off + at;
        let entry = match (job.op.direction, pinned) {
            (Direction::Read, Some(n)) => opcode::ReadFixed::new(fd, memory, len, n).offset(offset).build(),
            (Direction::Read, None) => opcode::Read::new(fd, memory, len).offset(offset).build(),
            (Direction::Write, Some(n)) => opcode::WriteFixed::new(fd, memory, len, n).offset(offset).build(),
            (Direction::Write, None) => opcode::Write::new(fd, memory, len).offset(offset).build(),
        };
        self.requests += 1;
        self.push(&entry.user_data((key as u64) << 32 | part as u64));
    }

    fn complete(&mut self, key: u64, result: i32) {
        self.requests -= 1;
        let (key, part) = ((key >> 32) as usize, (key & 0xffff_ffff) as usize);
        let Some(job) = self.jobs.get_mut(key) else { return };
        let is_write = job.op.direction == Direction::Write;
        let align = job.op.file.align();
        let doing = &mut job.pieces[part];
        let again = match result {
            0 => {
                // The end of the file; a write that moves nothing has no room.
                if is_write {
                    doing.errno = libc::ENOSPC;
                }
                false
            }
            moved if moved > 0 => {
                doing.moved += moved as u64;
                // A direct read that ends within a block has met the end of the file.
                let ended = doing.piece.direct && !doing.moved.is_multiple_of(align);
                doing.moved < doing.piece.len && !ended
            }
            error if matches!(-error, libc::EINTR | libc::EAGAIN) => true,
            // The file system wants another alignment than it says; or only its creator may write the file, whom
            // `buffered` remembers.
            error if matches!(-error, libc::EINVAL | libc::EBADF) && doing.piece.direct => {
                doing.piece.direct = false;
                // A WRITE's has its turn with the others that aren't direct.
                !is_write
            }
            error => {
                doing.errno = -error;
                false
            }
        };
        if again {
            return self.request(key, part);
        }
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        if is_write {
            let (serial, lane) = (job.op.file.serial(), job.lane);
            let more = lane == Lane::Direct && job.pieces.iter().any(|p| !p.piece.direct);
            job.lane = Lane::Cached;
            // Its own rest last: it may be what the others wait for.
            let mut next = self.lanes.leave(serial);
            if more && self.lanes.enter(serial, key, Lane::Cached) {
                next.push(key);
            }
            next.into_iter().for_each(|key| self.start_lane(key));
            if more {
                return;
            }
        }
        let job = self.jobs.remove(key);
        let result = outcome(&job.pieces);
        job.op.end(result, Path::UringHost);
    }
}

/// A fault of ours costs the op that it happens to, which is answered with EIO as it's dropped.
fn guarded(act: impl FnOnce()) {
    // The panic hook has written its line.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
}

/// The result of an op from its parts': the bytes up to the first that is short, or the first error.
fn outcome(parts: &[Part]) -> i64 {
    let mut moved = 0;
    for part in parts {
        if part.errno != 0 {
            return -i64::from(part.errno);
        }
        moved += part.moved as i64;
        if part.moved < part.piece.len {
            break;
        }
    }
    moved
}
