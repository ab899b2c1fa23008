//! The state: shared memory (a memfd) with what the kernel holds the daemon to: the negotiated INIT, merged
//! directories' numbers, backing ids of open inodes, open handles, requests at work; the set of backings; and what
//! clients of the ioctl fast path hold it to (`clients`).
//!
//! What always holds: a record is complete before the word that makes it count is stored, and that word is
//! cleared before anything else of the record changes; so a reader that comes after a crash at any point
//! finds whole records only. The file can't be made smaller (sealed), so no access to the mapping faults for
//! that. Nothing here is trusted beyond its bounds: numbers that are read are checked where they are used.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::clients::{BUFFERS, BufferSlot, TOKENS, TokenSlot};
use super::opened::{HANDLES, HandleSlot, NODES, NodeSlot};
use super::places::{DIRS, DirSlot, NAMES};
use super::twice::Twice;

/// The version of all that daemons hand to each other. A daemon takes over its own alone, so it goes up with any
/// change of the layout below, of what is kept in it (`Intent`, `SetRecord`, the fast path's `Registration`), of the
/// meaning of a [`Tag`](super::Tag), or of what is said to the parent (`Word`), which stays what it was when the mount
/// was started.
pub const STATE_VERSION: u8 = 7;

/// Told apart from any other file.
const MAGIC: u64 = u64::from_le_bytes([b'k', b'v', b'f', b's', b'S', b'T', b'A', STATE_VERSION]);

/// 64-bit words that the set of backings may take: 64 of the longest paths, and twice that.
const SET_WORDS: usize = 64 << 10;
/// As many for the words that the mount was started with, most of which are these backings' paths.
const START_WORDS: usize = SET_WORDS;
/// And what is known of the last upgrade.
const HANDOVER_WORDS: usize = 2 << 10;

/// A request of INIT, and its answer, at most (`FUSE_MIN_READ_BUFFER` would allow 8192).
const INIT_ROOM: usize = 512;

/// Requests that may be at work at once, each on a thread of its own. One more is served all the same, but not
/// written down.
pub(super) const WORK_RECORDS: usize = 512;
/// Bytes of what one of them says it's about to do: two paths and a little.
pub(super) const WORK_ROOM: usize = 3 * 4096 - 64;

/// Why a state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The memory can't be had.
    #[error("the memory that outlives a crash can't be made: {0}")]
    Io(#[from] io::Error),
    /// It's not a state, or of another version.
    #[error("the state that was handed over is of another version of kvfs; mount anew")]
    OtherVersion,
}

#[repr(C)]
pub(super) struct Header {
    magic: AtomicU64,
    /// How often the daemon was started, this time included.
    starts: AtomicU32,
    pub(super) next_dir: AtomicU32,
    pub(super) next_serial: AtomicU64,
    device_major: AtomicU32,
    device_minor: AtomicU32,
    /// Where the used part of each table ends: reading beyond it would make pages.
    pub(super) handles_end: AtomicU32,
    pub(super) nodes_end: AtomicU32,
    pub(super) dirs_end: AtomicU32,
    pub(super) names_end: AtomicU32,
    pub(super) buffers_end: AtomicU32,
    pub(super) tokens_end: AtomicU32,
    pub(super) session: AtomicU64,
    /// Of the hashes of names; 0: none chosen.
    pub(super) seed: AtomicU64,
    init_len: AtomicU32,
    answer_len: AtomicU32,
    /// 0: not agreed on yet.
    stack_depth: AtomicU32,
    init: [AtomicU64; INIT_ROOM / 8],
    answer: [AtomicU64; INIT_ROOM / 8],
    set: Twice<SET_WORDS>,
    handover: Twice<HANDOVER_WORDS>,
    started: Twice<START_WORDS>,
}

/// A request at work. `unique` is the word that counts.
#[repr(C)]
pub(super) struct WorkRecord {
    pub(super) unique: AtomicU64,
    /// How many daemons have died over it.
    pub(super) deaths: AtomicU32,
    /// How long the intent is; 0: none.
    pub(super) intent_len: AtomicU32,
    /// Whether a thread was at it: 1, or 0 while it only waits to be sent again.
    pub(super) at_work: AtomicU32,
    /// What it asks for, for people.
    pub(super) op: AtomicU32,
    /// How many daemons have taken over since it was begun last.
    pub(super) takeovers: AtomicU32,
    pub(super) intent: [AtomicU64; WORK_ROOM / 8],
}

/// All of it, in the order of the file.
#[repr(C)]
pub(super) struct Layout {
    header: Header,
    work: [WorkRecord; WORK_RECORDS],
    pub(super) handles: [HandleSlot; HANDLES],
    pub(super) nodes: [NodeSlot; NODES],
    pub(super) buffers: [BufferSlot; BUFFERS],
    pub(super) tokens: [TokenSlot; TOKENS],
    pub(super) dirs: [DirSlot; DIRS],
    /// By the number of a name's entry: its hash; 0: free.
    pub(super) names: [AtomicU32; NAMES],
}

/// Records that are free below the first that was never used.
#[derive(Debug, Default)]
pub(super) struct Free {
    pub(super) list: Vec<u32>,
    pub(super) next: u32,
}

impl Free {
    pub(super) fn take(&mut self, most: usize) -> Option<u32> {
        self.list.pop().or_else(|| {
            let at = self.next;
            ((at as usize) < most).then(|| self.next += 1).map(|()| at)
        })
    }
}

pub(super) fn end_of(end: &AtomicU32, most: usize) -> usize {
    (end.load(Acquire) as usize).min(most)
}

/// The shared memory, mapped.
#[derive(Debug)]
pub struct State {
    fd: OwnedFd,
    map: NonNull<Layout>,
    recovered: bool,
    pub(super) nodes: Mutex<Free>,
    pub(super) dirs: Mutex<Free>,
    pub(super) buffers: Mutex<Free>,
    pub(super) tokens: Mutex<Free>,
    pub(super) work: Mutex<Vec<u32>>,
}

// SAFETY: all that the pointer leads to is atomics; the rest has locks.
unsafe impl Send for State {}
// SAFETY: as above.
unsafe impl Sync for State {}

impl State {
    /// A new one, empty.
    pub fn create() -> Result<State, StateError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("kvfs-state", flags).map_err(io::Error::from)?;
        // Pages are there once they are written: the size is an address range.
        rustix::fs::ftruncate(&fd, size_of::<Layout>() as u64).map_err(io::Error::from)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(io::Error::from)?;
        let state = State::map(fd, false)?;
        let header = state.header();
        header.next_dir.store(1, Relaxed);
        header.next_serial.store(1, Relaxed);
        header.starts.store(1, Relaxed);
        header.magic.store(MAGIC, Release);
        Ok(state)
    }

    /// That of a daemon that has died.
    pub fn take_over(fd: OwnedFd) -> Result<State, StateError> {
        let size = rustix::fs::fstat(&fd).map_err(io::Error::from)?.st_size;
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(io::Error::from)?;
        if size != size_of::<Layout>() as i64 || !seals.contains(SealFlags::SHRINK) {
            return Err(StateError::OtherVersion);
        }
        let state = State::map(fd, true)?;
        if state.header().magic.load(Acquire) != MAGIC {
            return Err(StateError::OtherVersion);
        }
        state.header().starts.fetch_add(1, Relaxed);
        let layout = state.layout();
        let free = |end: usize, is_used: &dyn Fn(usize) -> bool| {
            let list = (0..end).filter(|at| !is_used(*at)).map(|at| at as u32).collect();
            Free { list, next: end as u32 }
        };
        let nodes = end_of(&layout.header.nodes_end, NODES);
        *state.nodes.lock() = free(nodes, &|at| layout.nodes[at].is_used());
        let dirs = end_of(&layout.header.dirs_end, DIRS);
        *state.dirs.lock() = free(dirs, &|at| layout.dirs[at].is_used());
        let buffers = end_of(&layout.header.buffers_end, BUFFERS);
        *state.buffers.lock() = free(buffers, &|at| layout.buffers[at].is_used());
        let tokens = end_of(&layout.header.tokens_end, TOKENS);
        *state.tokens.lock() = free(tokens, &|at| layout.tokens[at].is_used());
        Ok(state)
    }

    fn map(fd: OwnedFd, recovered: bool) -> Result<State, StateError> {
        let (read_write, shared) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a new mapping at no given address; the file is as large as the layout and sealed against
        // becoming smaller, and all of the layout is atomics, for which any bytes are a value.
        let map = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size_of::<Layout>(), read_write, shared, &fd, 0)
        }
        .map_err(io::Error::from)?;
        let map = NonNull::new(map.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        let work = Mutex::new((0..WORK_RECORDS as u32).rev().collect());
        let (nodes, dirs, buffers, tokens) = Default::default();
        Ok(State { fd, map, recovered, nodes, dirs, buffers, tokens, work })
    }

    pub(super) fn layout(&self) -> &Layout {
        // SAFETY: mapped for as long as `self` lives, aligned to a page, and shared access to atomics is
        // what they are for.
        unsafe { self.map.as_ref() }
    }

    pub(super) fn header(&self) -> &Header {
        &self.layout().header
    }

    pub(super) fn work_records(&self) -> &[WorkRecord; WORK_RECORDS] {
        &self.layout().work
    }

    /// The memory, to be kept.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether a daemon has died before this one.
    pub fn is_recovered(&self) -> bool {
        self.recovered
    }

    /// Which daemon this is: 1 is the first.
    pub fn starts(&self) -> u32 {
        self.header().starts.load(Relaxed)
    }

    // ---- the handshake ----

    /// Keeps the kernel's INIT and what was answered, and the mount's device number.
    ///
    /// Fails where either is longer than any kernel's or answer so far.
    pub fn set_init(&self, request: &[u8], answer: &[u8], device: (u32, u32)) -> io::Result<()> {
        if request.len().max(answer.len()) > INIT_ROOM {
            return Err(io::Error::other("an INIT longer than is known"));
        }
        let header = self.header();
        store(&header.init, request);
        store(&header.answer, answer);
        header.answer_len.store(answer.len() as u32, Relaxed);
        header.device_major.store(device.0, Relaxed);
        header.device_minor.store(device.1, Relaxed);
        header.init_len.store(request.len() as u32, Release);
        Ok(())
    }

    /// The kernel's INIT and what was answered, if that has been.
    pub fn init(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let header = self.header();
        let len = header.init_len.load(Acquire) as usize;
        let answer = header.answer_len.load(Relaxed) as usize;
        (len > 0 && len <= INIT_ROOM && answer <= INIT_ROOM)
            .then(|| (load(&header.init, len), load(&header.answer, answer)))
    }

    /// How deep the kernel was told to stack: as `now` says, if it hasn't been.
    pub(super) fn stack_depth(&self, now: impl FnOnce() -> u32) -> u32 {
        let header = self.header();
        if header.stack_depth.load(Relaxed) == 0 {
            header.stack_depth.store(now(), Relaxed);
        }
        header.stack_depth.load(Relaxed)
    }

    /// The mount's device number.
    pub fn device(&self) -> (u32, u32) {
        (self.header().device_major.load(Relaxed), self.header().device_minor.load(Relaxed))
    }

    // ---- the set of backings, and upgrades ----

    /// Keeps the set of backings as it is from now on. Writers are one at a time. False if there's no room for it.
    pub(crate) fn keep_set(&self, set: &[u8]) -> bool {
        self.header().set.put(set)
    }

    /// The set of backings.
    pub(crate) fn set(&self) -> Option<Vec<u8>> {
        self.header().set.get()
    }

    /// Keeps the words that the mount was started with. False if there's no room for them.
    pub(crate) fn keep_started(&self, words: &[OsString]) -> bool {
        // No word has a NUL: each was one of a process.
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.header().started.put(&bytes.join(&0))
    }

    /// The words that the mount was started with.
    pub(crate) fn started(&self) -> Option<Vec<OsString>> {
        let bytes = self.header().started.get()?;
        Some(bytes.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned()).collect())
    }

    /// Keeps what is known of an upgrade. Writers are one at a time. False if there's no room for it.
    pub(super) fn keep_handover(&self, handover: &[u8]) -> bool {
        self.header().handover.put(handover)
    }

    /// What is known of the last upgrade.
    pub(super) fn handover(&self) -> Option<Vec<u8>> {
        self.header().handover.get()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nobody else has the pointer.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), size_of::<Layout>()) };
    }
}

pub(super) fn store(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(eight), Relaxed);
    }
}

pub(super) fn load(words: &[AtomicU64], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        words.iter().take(len.div_ceil(8)).flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::{HandleRecord, NodeRecord, name_hash};

    fn again(state: State) -> State {
        State::take_over(state.fd.try_clone().unwrap()).unwrap()
    }

    #[test]
    fn what_was_kept_is_there_after_a_crash() {
        let state = State::create().unwrap();
        assert_eq!((state.init(), state.starts(), state.is_recovered()), (None, 1, false));
        state.set_init(b"an init of 17 byt", b"answer", (0, 77)).unwrap();
        let handle =
            |n: u64| HandleRecord { fh: n << 24 | 5, node: n, birth: 3, unique: 8, flags: 2, user: 1000 };
        state.keep_handle(5, handle(9));
        state.keep_handle(6, handle(10));
        state.drop_handle(6);
        state.keep_handle(6, handle(16));
        state.flag_handle(6, 1 << 30);
        assert_eq!(state.keep_node(11, 1), Some(0));
        assert_eq!(state.keep_node(12, 2), Some(1));
        assert_eq!(state.keep_node(13, 3), Some(2));
        state.drop_node(1);
        assert_eq!(state.keep_dir(7, 0, b"d"), Some(0));
        assert_eq!(state.keep_dir(8, 7, b"e"), Some(1));
        state.drop_dir(1);
        assert_eq!(state.keep_dir(8, 0, b"f"), Some(1));
        let state = again(state);
        assert_eq!(state.init(), Some((b"an init of 17 byt".to_vec(), b"answer".to_vec())));
        assert_eq!((state.device(), state.starts(), state.is_recovered()), ((0, 77), 2, true));
        let flagged = HandleRecord { flags: 1 << 30 | 2, ..handle(16) };
        assert_eq!(state.handles(), [(5, handle(9)), (6, flagged)]);
        let node = |at, node, backing_id| NodeRecord { at, node, backing_id };
        assert_eq!(state.nodes(), [node(0, 11, 1), node(2, 13, 3)]);
        assert_eq!(state.keep_node(14, 4), Some(1), "the one that is free");
        assert_eq!(state.keep_node(15, 5), Some(3));
        assert_eq!(state.dirs(), [(0, name_hash(b"d"), 7, 0), (0, name_hash(b"f"), 8, 1)]);
        assert_eq!(state.next_dir(), 9);
        state.drop_dir(0);
        assert!(state.set().is_none() && state.keep_set(b"a set"));
        let words = ["kvfs", "mount", "", "/mnt/a b"].map(OsString::from);
        assert!(state.started().is_none() && state.keep_started(&words));
        let state = again(state);
        assert_eq!(state.dirs(), [(0, name_hash(b"f"), 8, 1)]);
        assert_eq!(state.set().as_deref(), Some(&b"a set"[..]));
        assert_eq!(state.started().as_deref(), Some(&words[..]));
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let fd = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(State::take_over(fd), Err(StateError::OtherVersion)));
        let fd = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, size_of::<Layout>() as u64).unwrap();
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
        assert!(matches!(State::take_over(fd), Err(StateError::OtherVersion)), "nothing in it");
        assert!(State::create().unwrap().set_init(&[0; 600], &[], (0, 0)).is_err());
    }
}
