//! What outlives this daemon: the numbers that clients were given for buffers and open files, and what they
//! stand for, are written down and kept for the next one.
//!
//! What always holds: a number that a client knows was written down before it was told, or can't be; the next
//! daemon takes up what belongs to the same processes, and files that are still open, and lets go of the rest. What
//! there's no room for isn't kept, and unknown after a crash (ENOENT, EBADF).

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Direct;
use super::abi::{BUF_RD, RegBuf, kind};
use super::buffer::{Buffer, Memory};
use super::gpu::GpuRequest;
use super::owner::Owner;
use crate::fs::Fs;
use crate::supervise::{BufferRecord, Keeper, Kept, RECORD_ROOM, State, Tag, TokenRecord};

/// What is said of a buffer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Registration {
    /// Whose it is: the process, the user that it acted for, and what tells it from others with its number.
    tgid: u32,
    uid: u32,
    incarnation: u64,
    /// The handle that it goes with; 0: none.
    file: u64,
    /// As it was answered.
    reg: RegBuf,
}

const _: () = assert!(size_of::<Registration>() <= RECORD_ROOM);

/// What came of taking over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveredBuffers {
    /// Buffers that go on.
    pub buffers: usize,
    /// Buffers that don't: their processes have ended, or they couldn't be had again.
    pub lost: usize,
}

/// Where it's written down, if anywhere.
pub(crate) struct Book {
    state: Option<Arc<State>>,
    keeper: Arc<Keeper>,
}

/// A buffer that is written down, until its end was answered.
pub(crate) struct KeptBuffer {
    book: Arc<Book>,
    id: u64,
    at: u32,
    has_fd: bool,
}

impl KeptBuffer {
    /// A request has ended it; 0: none.
    pub(super) fn ends(&self, request: u64) {
        if let Some(state) = &self.book.state {
            state.buffer_ends(self.at, request);
        }
    }

    /// Nobody uses it any more.
    pub(super) fn ended(&self) {
        if let Some(state) = &self.book.state {
            state.buffer_ended(self.at);
        }
        // What is kept without a record is let go of by the next daemon.
        if self.has_fd {
            self.book.keeper.release(Tag::Buffer(self.id));
        }
    }
}

impl Drop for KeptBuffer {
    fn drop(&mut self) {
        if let Some(state) = &self.book.state {
            state.drop_buffer(self.at);
        }
    }
}

/// A token that is written down.
pub(super) struct KeptToken(Arc<State>, u32);

impl Drop for KeptToken {
    fn drop(&mut self) {
        self.0.drop_token(self.1);
    }
}

/// A test wants nothing to be kept, as if there were no room.
fn has_no_room() -> bool {
    cfg!(feature = "fault-points") && std::env::var_os("KVFS_TEST_KEEP_NO_BUFFERS").is_some()
}

impl Book {
    /// Of a mount: what is written down where its files are.
    pub(super) fn of(fs: &Fs) -> Arc<Book> {
        let (state, keeper) = fs.survival();
        Arc::new(Book { state, keeper })
    }

    /// Whether anything is written down.
    pub(super) fn is_kept(&self) -> bool {
        self.state.is_some()
    }

    /// The session's number, which all daemons of a mount have; `new` if this is the first.
    pub(super) fn session(&self, new: u64) -> u64 {
        self.state.as_ref().map_or(new, |state| state.session(new))
    }

    /// Writes a buffer down before its number is told: `reg` is what will be answered to `request`, `fd` what
    /// it takes to have the memory again.
    pub(super) fn keep_buffer(
        self: &Arc<Book>,
        buffer: &Buffer,
        request: u64,
        reg: &RegBuf,
        fd: Option<BorrowedFd<'_>>,
    ) {
        let Some(state) = self.state.as_ref().filter(|_| !has_no_room()) else { return };
        let incarnation = buffer.owner.incarnation();
        // Memory of a worker's own goes with that.
        if incarnation == 0 || reg.kind == kind::DAEMON_ALLOC {
            return;
        }
        let Owner { tgid, uid, .. } = *buffer.owner;
        let registration = Registration { tgid, uid, incarnation, file: buffer.file.unwrap_or(0), reg: *reg };
        if let Some(fd) = fd {
            self.keeper.keep(Tag::Buffer(buffer.id), fd);
        }
        let (id, has_fd) = (buffer.id, fd.is_some());
        match state.keep_buffer(id, request, registration.as_bytes()) {
            Some(at) => buffer.set_kept(KeptBuffer { book: self.clone(), id, at, has_fd }),
            None if has_fd => self.keeper.release(Tag::Buffer(id)),
            None => {}
        }
    }

    /// Writes a token down before it's told.
    pub(super) fn keep_token(&self, owner: &Owner, token: u64, fh: u64) -> Option<KeptToken> {
        let state = self.state.as_ref().filter(|_| !has_no_room())?;
        let (tgid, uid, incarnation) = (owner.tgid, owner.uid, owner.incarnation());
        let record = TokenRecord { token, fh, tgid, incarnation, uid };
        let at = (incarnation != 0).then(|| state.keep_token(record)).flatten()?;
        Some(KeptToken(state.clone(), at))
    }

    /// What a daemon before has registered for this request, and couldn't answer.
    pub(super) fn made_by(&self, request: u64) -> Option<RegBuf> {
        let record = self.state.as_ref()?.buffer_made_by(request)?;
        Some(registration(&record)?.reg)
    }

    /// Whether a daemon before has unregistered a buffer for this request, and couldn't answer.
    pub(super) fn was_ended_by(self: &Arc<Book>, request: u64) -> Option<impl Drop> {
        let at = self.state.as_ref()?.buffer_ended_by(request)?;
        Some(KeptBuffer { book: self.clone(), id: 0, at, has_fd: false })
    }
}

fn registration(record: &BufferRecord) -> Option<Registration> {
    Registration::read_from_bytes(&record.record).ok()
}

/// The processes that had something.
#[derive(Default)]
struct Processes(HashMap<(u32, u64), Option<Arc<Owner>>>);

impl Processes {
    fn find(&mut self, direct: &Direct, tgid: u32, uid: u32, incarnation: u64) -> Option<Arc<Owner>> {
        let enter = || direct.owners.enter_again(tgid, uid, incarnation);
        self.0.entry((tgid, incarnation)).or_insert_with(enter).clone()
    }
}

impl Direct {
    /// Takes up what clients of a daemon before have; to be called once, when the open files are there, and
    /// before the first request.
    pub fn recover(&self, kept: &mut Kept) -> RecoveredBuffers {
        let Some(state) = self.book.state.clone().filter(|state| state.is_recovered()) else {
            return RecoveredBuffers::default();
        };
        let mut fds: HashMap<u64, OwnedFd> = kept.buffers().into_iter().collect();
        let (mut recovered, mut processes) = (RecoveredBuffers::default(), Processes::default());
        // Those that are gone already have a record until their end is asked for again.
        for record in state.buffers().iter().filter(|record| record.id != 0) {
            let fd = fds.remove(&record.id);
            let has_fd = fd.is_some();
            match self.recover_buffer(record, fd, &mut processes) {
                Ok(buffer) => {
                    state.buffer_ends(record.at, 0);
                    let (book, id, at) = (self.book.clone(), record.id, record.at);
                    buffer.set_kept(KeptBuffer { book, id, at, has_fd });
                    recovered.buffers += 1;
                }
                Err(errno) => {
                    tracing::debug!("a buffer of a daemon before isn't there any more: {errno}");
                    state.drop_buffer(record.at);
                    if has_fd {
                        self.book.keeper.release(Tag::Buffer(record.id));
                    }
                    recovered.lost += 1;
                }
            }
        }
        // Kept, and not written down, or not any more.
        fds.into_keys().for_each(|id| self.book.keeper.release(Tag::Buffer(id)));
        for (at, TokenRecord { token, fh, tgid, incarnation, uid }) in state.tokens() {
            let kept = KeptToken(state.clone(), at);
            if let Some(owner) = processes.find(self, tgid, uid, incarnation).filter(|_| self.is_open(fh)) {
                self.tokens.enter_again(owner, token, fh, kept);
            }
        }
        recovered
    }

    /// Whether the kernel has the handle.
    fn is_open(&self, fh: u64) -> bool {
        !matches!(self.fs.slot_of(fh), Err(e) if e.errno() == Errno::BADF)
    }

    fn recover_buffer(
        &self,
        record: &BufferRecord,
        fd: Option<OwnedFd>,
        processes: &mut Processes,
    ) -> Result<Arc<Buffer>, Errno> {
        let Registration { tgid, uid, incarnation, file, reg } = registration(record).ok_or(Errno::INVAL)?;
        let owner = processes.find(self, tgid, uid, incarnation).ok_or(Errno::SRCH)?;
        if file != 0 && !self.is_open(file) {
            return Err(Errno::BADF);
        }
        let memory = match reg.kind {
            kind::MEMFD => {
                let host = self.host.as_ref().map_err(|_| Errno::OPNOTSUPP)?;
                let fd = fd.ok_or(Errno::BADF)?;
                Memory::Host(host.map(&fd, reg.offset, reg.length, reg.flags & BUF_RD != 0)?)
            }
            _ => {
                let request = GpuRequest::shared(&reg, fd).ok_or(Errno::BADF)?;
                Memory::Gpu(self.gpus.register_again(request).map_err(|_| Errno::IO)?)
            }
        };
        let room = self.buffers.reserve_again(&owner, reg.length);
        let file = (file != 0).then_some(file);
        Ok(self.buffers.enter_again(record.id, room, file, reg.flags, memory))
    }
}
