//! The io_uring engine: reads and writes of backing files for what kernel passthrough can't do.
//!
//! What always holds: what `super` says of every engine. A request lives in its ring's slab from submission
//! to its last completion, with its descriptor and its buffer, so the kernel never sees memory or a
//! descriptor that is gone. One thread per ring waits for completions and answers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use io_uring::{IoUring, opcode, squeue, types};
use parking_lot::Mutex;
use slab::Slab;

use super::buffer::{Buffer, Pool};
use super::{Engine, IoFile, Payload, ReadDone, WriteDone, asked};
use crate::supervise::Lifeline;

const ENTRIES: u32 = 256;
/// Requests that may wait in the kernel at a time: more than it has at most (`MAX_BACKGROUND`, and one for each client).
const WORKERS: u32 = 512;
const STOP: u64 = u64::MAX;

enum Kind {
    /// `fd` is one of the file's.
    Read {
        fd: RawFd,
        offset: u64,
        len: usize,
        done: ReadDone,
    },
    Write {
        done: WriteDone,
    },
}

/// The memory of a request.
enum Data {
    Own(Buffer),
    Lent(Payload),
}

impl Data {
    /// Of what is lent the kernel only reads.
    fn as_ptr(&self) -> *mut u8 {
        match self {
            Data::Own(buffer) => buffer.as_ptr(),
            Data::Lent(payload) => payload.bytes().as_ptr().cast_mut(),
        }
    }
}

/// A request on its way. `start` and `size` are its aligned window; `moved` of it is done.
struct Op {
    file: Arc<IoFile>,
    data: Data,
    start: u64,
    size: usize,
    moved: usize,
    kind: Kind,
}

struct Ring {
    ring: IoUring,
    /// Held while a submission is pushed; the completion side belongs to the ring's thread alone.
    ops: Mutex<Slab<Op>>,
    pool: Pool,
}

/// Several rings, so that answering (a copy into the kernel) uses several cores.
pub(super) struct Uring {
    rings: Vec<Arc<Ring>>,
    next: AtomicUsize,
}

impl Uring {
    pub(super) fn new(rings: usize, lifeline: &Lifeline) -> io::Result<Uring> {
        let rings = (0..rings.max(1))
            .map(|n| {
                let ring = IoUring::new(ENTRIES)?;
                lifeline.hold_by(&ring.submitter());
                // What waits for one drive mustn't keep the kernel's threads from others. Older kernels can't be told.
                let _ = ring.submitter().register_iowq_max_workers(&mut [WORKERS, 0]);
                let ring = Arc::new(Ring { ring, ops: Default::default(), pool: Pool::default() });
                let worker = ring.clone();
                std::thread::Builder::new().name(format!("kvfs-uring-{n}")).spawn(move || worker.reap())?;
                Ok(ring)
            })
            .collect::<io::Result<_>>()?;
        Ok(Uring { rings, next: AtomicUsize::new(0) })
    }

    fn ring(&self) -> &Ring {
        &self.rings[self.next.fetch_add(1, Relaxed) % self.rings.len()]
    }
}

impl Engine for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn read(&self, file: Arc<IoFile>, offset: u64, len: usize, done: ReadDone) {
        let ring = self.ring();
        let (fd, start, size) = file.for_read(offset, len);
        let fd = fd.as_raw_fd();
        let data = Data::Own(ring.pool.take(size));
        ring.start(Op { file, data, start, size, moved: 0, kind: Kind::Read { fd, offset, len, done } });
    }

    fn write(&self, file: Arc<IoFile>, offset: u64, data: Payload, done: WriteDone) {
        let ring = self.ring();
        let size = data.bytes().len();
        let data = match file.wants_copy(offset, &data) {
            true => Data::Own(ring.pool.copy(data.bytes())),
            false => Data::Lent(data),
        };
        ring.start(Op { file, data, start: offset, size, moved: 0, kind: Kind::Write { done } });
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        for ring in &self.rings {
            let _held = ring.ops.lock();
            // If the ring is too full to be told, its thread stays until the process ends.
            let _ = ring.push(&opcode::Nop::new().build().user_data(STOP));
        }
    }
}

impl Ring {
    fn start(&self, op: Op) {
        let mut ops = self.ops.lock();
        let key = ops.insert(op);
        if let Err((op, e)) = self.submit(&mut ops, key) {
            drop(ops);
            self.finish(op, Err(e));
        }
    }

    /// Submits the rest of a request. The error gives the request back.
    fn submit(&self, ops: &mut Slab<Op>, key: usize) -> Result<(), (Op, io::Error)> {
        let op = &ops[key];
        // SAFETY: moved <= size <= the memory's size.
        let at = unsafe { op.data.as_ptr().add(op.moved) };
        let rest = (op.size - op.moved) as u32;
        let offset = op.start + op.moved as u64;
        let entry = match &op.kind {
            Kind::Read { fd, .. } => opcode::Read::new(types::Fd(*fd), at, rest).offset(offset).build(),
            Kind::Write { .. } => match op.file.for_write(op.start, op.size) {
                Ok(fd) => opcode::Write::new(types::Fd(fd.as_raw_fd()), at, rest).offset(offset).build(),
                Err(e) => return Err((ops.remove(key), e)),
            },
        };
        self.push(&entry.user_data(key as u64)).map_err(|e| (ops.remove(key), e))
    }

    /// Hands one entry to the kernel. The caller holds `ops`. An error means that the ring is broken and the
    /// kernel will never look at the entry.
    fn push(&self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: `ops` is held, so this is the only use of the submission side; the request's buffer and
        // descriptor are in `ops` until its completion was seen.
        while unsafe { self.ring.submission_shared().push(entry) }.is_err() {
            self.submit_all()?;
        }
        self.submit_all()
    }

    fn submit_all(&self) -> io::Result<()> {
        loop {
            match self.ring.submit().map_err(|e| e.raw_os_error()) {
                Ok(_) => return Ok(()),
                Err(Some(libc::EINTR)) => {}
                // Completions wait to be taken (the ring's thread takes them without needing `ops`), or
                // memory is short.
                Err(Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM)) => std::thread::yield_now(),
                Err(errno) => return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO))),
            }
        }
    }

    fn reap(&self) {
        loop {
            if let Err(e) = self.ring.submitter().submit_and_wait(1) {
                match e.raw_os_error() {
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                    _ => {
                        tracing::error!("io_uring: waiting for completions failed: {e}");
                        return;
                    }
                }
            }
            // SAFETY: this thread alone uses the completion side.
            let done: Vec<(u64, i32)> =
                unsafe { self.ring.completion_shared() }.map(|c| (c.user_data(), c.result())).collect();
            for (key, result) in done {
                if key == STOP {
                    return;
                }
                self.complete(key as usize, result);
            }
        }
    }

    /// One completion: the request's end, or a part of it with the rest to be submitted.
    fn complete(&self, key: usize, result: i32) {
        let mut ops = self.ops.lock();
        let Some(op) = ops.get_mut(key) else { return };
        let again = match result {
            r if r > 0 => {
                op.moved += r as usize;
                op.moved < op.size
            }
            0 => false,
            r => matches!(-r, libc::EINTR | libc::EAGAIN),
        };
        if again {
            if let Err((op, e)) = self.submit(&mut ops, key) {
                drop(ops);
                self.finish(op, Err(e));
            }
            return;
        }
        let op = ops.remove(key);
        drop(ops);
        let moved = op.moved;
        let failed = match &op.kind {
            // A direct read goes on after its last whole block only at the end of the file.
            Kind::Read { .. } => result < 0 && !(moved > 0 && -result == libc::EINVAL),
            Kind::Write { .. } => result < 0 && moved == 0,
        };
        let outcome = if failed { Err(io::Error::from_raw_os_error(-result)) } else { Ok(moved) };
        self.finish(op, outcome);
    }

    fn finish(&self, op: Op, outcome: io::Result<usize>) {
        let Op { mut data, start, kind, .. } = op;
        match (kind, &mut data) {
            (Kind::Read { offset, len, done, .. }, Data::Own(buffer)) => done(outcome.map(|got| {
                buffer.set_filled(got);
                asked(buffer.filled(), start, got, offset, len)
            })),
            // Nothing is read to what is lent.
            (Kind::Read { done, .. }, Data::Lent(_)) => done(Err(io::ErrorKind::InvalidInput.into())),
            (Kind::Write { done }, _) => done(outcome),
        }
        if let Data::Own(buffer) = data {
            self.pool.give_back(buffer);
        }
    }
}
