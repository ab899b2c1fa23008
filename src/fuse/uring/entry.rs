//! An entry of a queue: the memory that a request comes in and its answer goes out by, and whose turn it is.
//!
//! What always holds: of all who would answer a request one does; who comes later is told that nobody waits (ENOENT),
//! as the device would say. The memory is the kernel's from a commit to the next completion, and no reference into it
//! outlives the answer: what a request brings is copied out of it, but for large payloads, during which nothing is
//! written to it. One thread serves an entry; that one's request may be answered by any.

use std::fmt;
use std::io::{self, IoSlice};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::{Condvar, Mutex};
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{Buffers, EntryInOut, Headers, InHeader, OutHeader};

/// A payload at most: what a request carries (`MAX_WRITE`), which is what the kernel wants there to be.
pub(super) const PAYLOAD: usize = super::super::wanted::MAX_WRITE as usize;
/// Before the payload: the headers, and at its end room to lay a request out as the device would give it.
const FRONT: usize = 4096;
/// What is copied out of an entry: values of attributes, what ioctls bring, names.
const COPIED: usize = (64 << 10) + FRONT;
const IN_HEADER: usize = size_of::<InHeader>();

/// The two buffers, one behind the other. Memory is there when it's first used; children don't get it.
struct Memory(NonNull<u8>);

// SAFETY: who may use it when is what `Entry` says.
unsafe impl Send for Memory {}
// SAFETY: the same.
unsafe impl Sync for Memory {}

impl Memory {
    fn new() -> io::Result<Memory> {
        let len = FRONT + PAYLOAD;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags | libc::MAP_NORESERVE, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping just made; no child touches it.
        unsafe { libc::madvise(at, len, libc::MADV_DONTFORK) };
        NonNull::new(at.cast()).map(Memory).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn headers(&self) -> *mut Headers {
        self.0.as_ptr().cast()
    }

    fn payload(&self) -> *mut u8 {
        // SAFETY: the mapping is longer.
        unsafe { self.0.as_ptr().add(FRONT) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `new`; the entry's queue is gone when its last user is.
        unsafe { libc::munmap(self.0.as_ptr().cast(), FRONT + PAYLOAD) };
    }
}

/// How it stands with the request that an entry has.
#[derive(Default)]
struct Turn {
    /// The request that waits for an answer; 0 where none does.
    open: u64,
    /// Its payload is being read where it lies.
    in_place: bool,
    /// What follows the answer's header, where it couldn't be written to the payload's place yet.
    staged: Vec<u8>,
    /// Whether the thread that serves the entry has nothing to do but wait.
    is_awaited: bool,
    /// How many threads have served it: a number for each.
    server: u64,
}

/// A queue, as far as its entries share something.
#[derive(Default)]
pub(super) struct Queue {
    /// The processor's.
    pub(super) number: u16,
    pub(super) entries: AtomicUsize,
    /// Of these, how many have a request that waits for somebody else's answer.
    pub(super) waiting: AtomicUsize,
}

/// An entry.
pub(super) struct Entry {
    pub(super) queue: Arc<Queue>,
    memory: Memory,
    turn: Mutex<Turn>,
    answered: Condvar,
}

/// What came of an answer from somebody who isn't at the request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// No such request is open here.
    NotHere,
    /// The entry's thread hands it on.
    Answered,
    /// The entry's thread is at the request still: another is to serve the entry ([`Entry::take_over`]).
    Busy,
}

impl Entry {
    pub(super) fn new(queue: Arc<Queue>) -> io::Result<Entry> {
        Ok(Entry { queue, memory: Memory::new()?, turn: Mutex::default(), answered: Condvar::new() })
    }

    /// The buffers, for the kernel.
    pub(super) fn buffers(&self) -> Buffers {
        [
            libc::iovec { iov_base: self.memory.headers().cast(), iov_len: size_of::<Headers>() },
            libc::iovec { iov_base: self.memory.payload().cast(), iov_len: PAYLOAD },
        ]
    }

    /// The request that has come: the number by which it's committed, and its bytes as the device would give them, in
    /// `room` if they aren't many. An error says what is wrong with it.
    ///
    /// # Safety
    /// A completion has given the entry to the calling thread, which serves it; and the request is used no more when
    /// [`Entry::wait`] or [`Entry::refuse`] is called.
    pub(super) unsafe fn request<'a>(&'a self, room: &'a mut Room) -> (u64, Result<&'a [u8], String>) {
        // SAFETY: the memory is this thread's now.
        let (in_out, op_in, entry) = unsafe {
            let headers = self.memory.headers();
            ((*headers).in_out, (*headers).op_in, (*headers).entry)
        };
        let unique = entry.commit_id;
        let Ok((header, _)) = InHeader::read_from_prefix(&in_out) else {
            return (unique, Err("no header".into()));
        };
        let (len, payload) = (header.len as usize, entry.payload_size as usize);
        let op = len.checked_sub(IN_HEADER + payload).filter(|op| *op <= op_in.len() && op.is_multiple_of(8));
        let Some(op) = op.filter(|_| payload <= PAYLOAD && header.unique == unique) else {
            let what = format!("request {} has {len} bytes, {payload} of them payload", header.unique);
            return (unique, Err(what));
        };
        let in_place = len > COPIED;
        {
            let mut turn = self.turn.lock();
            turn.open = unique;
            turn.in_place = in_place;
        }
        let front = IN_HEADER + op;
        let parts = [&in_out[..IN_HEADER], &op_in[..op]];
        if in_place {
            // SAFETY: the place before the payload is nobody else's; `front` is a multiple of 8.
            let all = unsafe {
                let start = self.memory.payload().sub(front);
                std::ptr::copy_nonoverlapping(parts[0].as_ptr(), start, IN_HEADER);
                std::ptr::copy_nonoverlapping(parts[1].as_ptr(), start.add(IN_HEADER), op);
                std::slice::from_raw_parts(start, len)
            };
            return (unique, Ok(all));
        }
        let copy = &mut room.0.as_mut_bytes()[..len];
        copy[..IN_HEADER].copy_from_slice(parts[0]);
        copy[IN_HEADER..front].copy_from_slice(parts[1]);
        // SAFETY: within the mapping, and this thread's now.
        copy[front..].copy_from_slice(unsafe { std::slice::from_raw_parts(self.memory.payload(), payload) });
        (unique, Ok(copy))
    }

    /// The number by which a thread begins to serve the entry; who did so before has no part in it any more.
    pub(super) fn serve(&self) -> u64 {
        let mut turn = self.turn.lock();
        turn.server += 1;
        turn.server
    }

    /// Whether the request that came is open.
    pub(super) fn is_open(&self, server: u64) -> bool {
        let turn = self.turn.lock();
        turn.server == server && turn.open != 0
    }

    /// Waits until the request is answered, and has the answer ready to be committed. False: another thread serves the
    /// entry.
    pub(super) fn wait(&self, server: u64) -> bool {
        let mut turn = self.turn.lock();
        while turn.server == server && turn.open != 0 {
            // Nobody reads the payload any more.
            turn.in_place = false;
            turn.is_awaited = true;
            self.answered.wait(&mut turn);
        }
        if turn.server != server {
            return false;
        }
        turn.is_awaited = false;
        turn.in_place = false;
        // SAFETY: no longer than the payload, and nobody reads that now.
        unsafe {
            std::ptr::copy_nonoverlapping(turn.staged.as_ptr(), self.memory.payload(), turn.staged.len());
        }
        turn.staged.clear();
        true
    }

    /// Answers for who is at a request with an error, if its thread does nothing but wait for that.
    pub(super) fn answer_early(&self, unique: u64, errno: i32) -> Early {
        let mut turn = self.turn.lock();
        if turn.open != unique || unique == 0 {
            return Early::NotHere;
        }
        if !turn.is_awaited {
            return Early::Busy;
        }
        self.write(&mut turn, OutHeader::error(unique, errno), &[]);
        Early::Answered
    }

    /// Answers for a thread that doesn't come back with an error, and takes the entry from it: the number by which the
    /// calling thread serves it, and commits that first. None if the request was answered meanwhile, or is read where
    /// the next one would come to.
    pub(super) fn take_over(&self, unique: u64, errno: i32) -> Option<u64> {
        let mut turn = self.turn.lock();
        if turn.open != unique || turn.is_awaited || turn.in_place {
            return None;
        }
        self.write(&mut turn, OutHeader::error(unique, errno), &[]);
        turn.server += 1;
        Some(turn.server)
    }

    /// An answer, the request's only one. What follows the header is in `parts`.
    fn write(&self, turn: &mut Turn, header: OutHeader, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let (header, len) = match len {
            0..=PAYLOAD => (header, len),
            _ => (OutHeader::error(header.unique, libc::EIO), 0),
        };
        let mut at = 0;
        for part in parts.iter().filter(|_| len > 0) {
            if turn.in_place {
                turn.staged.extend_from_slice(part);
            } else {
                // SAFETY: `len` is at most the payload's, to which nobody has a reference.
                unsafe {
                    std::ptr::copy_nonoverlapping(part.as_ptr(), self.memory.payload().add(at), part.len());
                }
            }
            at += part.len();
        }
        let entry = EntryInOut {
            flags: 0,
            commit_id: header.unique,
            payload_size: len as u32,
            padding: 0,
            reserved: 0,
        };
        // SAFETY: the headers are read by copying only, before the request is open.
        unsafe {
            let headers = self.memory.headers();
            // The first field.
            headers.cast::<OutHeader>().write(header);
            (*headers).entry = entry;
        }
        turn.open = 0;
        self.answered.notify_one();
    }

    /// Answers a request that nobody understands with EIO.
    pub(super) fn refuse(&self, unique: u64) {
        self.write(&mut self.turn.lock(), OutHeader::error(unique, libc::EIO), &[]);
    }
}

impl fuser::Transport for Entry {
    fn send(&self, answer: &[IoSlice<'_>]) -> io::Result<()> {
        let Some((first, rest)) = answer.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let Ok((header, more)) = OutHeader::read_from_prefix(first) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut turn = self.turn.lock();
        if turn.open != header.unique {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        let parts: Vec<&[u8]> = std::iter::once(more).chain(rest.iter().map(|part| &**part)).collect();
        self.write(&mut turn, header, &parts);
        Ok(())
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("queue", &self.queue.number).finish_non_exhaustive()
    }
}

/// Where requests are copied to: aligned as their headers want it.
pub(super) struct Room(Vec<u64>);

impl Room {
    pub(super) fn new() -> Room {
        Room(vec![0; COPIED / 8])
    }
}
