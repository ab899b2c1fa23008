//! REGISTER and UNREGISTER.
//!
//! What always holds: a buffer that can't be registered leaves nothing behind; what may take long runs on a
//! thread of its own; what was done for a request before a daemon died is answered as done when it's sent again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{self, BUF_RD, Path, RegBuf, UnregBuf, Why, kind};
use super::buffer::{Memory, Reserved};
use super::gpu::GpuRequest;
use super::handed::Handed;
use super::owner::Owner;
use super::{Asked, Direct, Reply, Target};

impl Direct {
    pub(super) fn register(self: &Arc<Direct>, reg: RegBuf, asked: Asked, tgid: u32) {
        self.crash_point(&asked, "register before");
        // A daemon before has done it, and has told nobody.
        if asked.again
            && let Some(reg) = self.book.made_by(asked.request)
        {
            return asked.done(reg.as_bytes());
        }
        let prepared = self.owners.enter(tgid, asked.caller.uid).and_then(|owner| {
            let room = self.buffers.reserve(&owner, reg.length)?;
            Ok((self.descriptor(&reg, &owner)?, room))
        });
        let (fd, room) = match prepared {
            Ok(prepared) => prepared,
            Err(errno) => return asked.failed(errno),
        };
        match (reg.kind, fd) {
            (kind::MEMFD, Some(fd)) => {
                let result = self.register_memfd(reg, &fd, room, &asked);
                self.crash_point(&asked, "register after");
                asked.answer(result.map(|reg| reg.as_bytes().to_vec()));
            }
            (kind::MEMFD, None) => asked.failed(Errno::BADF),
            (_, fd) => {
                let Some(share) = self.registrations.take(asked.caller.uid) else {
                    return asked.failed(Errno::BUSY);
                };
                let direct = self.clone();
                let register = move || {
                    crate::processors::anywhere();
                    direct.register_gpu(reg, fd, room, asked);
                    drop(share);
                };
                // A driver may take its time, or hang.
                if let Err(e) = std::thread::Builder::new().name("kvfs-register".into()).spawn(register) {
                    tracing::warn!("a buffer can't be registered: {e}");
                }
            }
        }
    }

    /// The descriptor that a registration names.
    fn descriptor(&self, reg: &RegBuf, owner: &Arc<Owner>) -> Result<Option<Handed>, Errno> {
        match reg.fd_method {
            abi::FD_OF_CALLER => owner.descriptor(reg.fd).map(Some),
            abi::FD_SENT => self.sent.take(owner, reg.fd_token).map(Some),
            _ => Ok(None),
        }
    }

    fn register_memfd(
        &self,
        mut reg: RegBuf,
        fd: &OwnedFd,
        room: Reserved,
        asked: &Asked,
    ) -> Result<RegBuf, Errno> {
        let host = self.host.as_ref().map_err(|_| Errno::OPNOTSUPP)?;
        let buffer = host.map(fd, reg.offset, reg.length, reg.flags & BUF_RD != 0)?;
        (reg.path, reg.reason) = (Path::UringHost as u32, Why::Best.code());
        self.enter(room, asked, reg, Memory::Host(buffer), Some(fd.as_fd()))
    }

    fn register_gpu(&self, mut reg: RegBuf, fd: Option<Handed>, room: Reserved, asked: Asked) {
        // Only when a driver has taken it is it sure that it can be closed by whoever keeps it.
        let copy = fd.as_ref().filter(|_| self.book.is_kept()).and_then(Handed::again);
        let request = match reg.kind {
            kind::DAEMON_ALLOC => Some(GpuRequest::Alloc { uuid: reg.gpu_uuid, length: reg.length }),
            _ => GpuRequest::shared(&reg, fd.and_then(Handed::into_inner)),
        };
        let Some(request) = request else { return asked.failed(Errno::INVAL) };
        match self.gpus.register(request) {
            Ok(granted) => {
                (reg.path, reg.reason) = (granted.path as u32, granted.why.code());
                reg.handle = granted.handle.unwrap_or(reg.handle);
                let fd = copy.as_ref().map(|fd| fd.as_fd());
                let entered = self.enter(room, &asked, reg, Memory::Gpu(granted.buffer), fd);
                self.crash_point(&asked, "register after");
                asked.answer(entered.map(|reg| reg.as_bytes().to_vec()));
            }
            Err(e) => {
                reg.reason = e.reason();
                (asked.reply)(Reply { errno: e.errno(), data: padded(reg.as_bytes(), asked.size) });
            }
        }
    }

    /// Enters a buffer, and has it kept; what is to be answered. `fd` is what its memory can be had by again.
    fn enter(
        &self,
        room: Reserved,
        asked: &Asked,
        mut reg: RegBuf,
        memory: Memory,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<RegBuf, Errno> {
        let file = match asked.target {
            Target::Dir(_) => None,
            Target::File(fh) => Some(fh),
        };
        let buffer = self.buffers.enter(room, file, reg.flags, memory).map_err(|_| Errno::IO)?;
        reg.buf_id = buffer.id;
        self.book.keep_buffer(&buffer, asked.request, &reg, fd);
        Ok(reg)
    }

    pub(super) fn unregister(self: &Arc<Direct>, unreg: &UnregBuf, asked: Asked, tgid: u32) {
        self.crash_point(&asked, "unregister before");
        // A daemon before has done it, and has told nobody.
        if asked.again
            && let Some(_ended) = self.book.was_ended_by(asked.request)
        {
            return asked.done(unreg.as_bytes());
        }
        let found = self.buffers.find(unreg.buf_id).ok_or(Errno::NOENT);
        let buffer = found.and_then(|buffer| match self.owners.find(tgid) {
            Some(owner) if Arc::ptr_eq(&owner, &buffer.owner) => Ok(buffer),
            _ => Err(Errno::PERM),
        });
        let buffer = match buffer {
            Ok(buffer) => buffer,
            Err(errno) => return asked.failed(errno),
        };
        let wait = unreg.flags & abi::UNREG_NOWAIT == 0;
        let answer = unreg.as_bytes().to_vec();
        let (direct, request) = (self.clone(), asked.request);
        // A call, so that an op that never ends doesn't hold its client up for ever.
        let call = self.deadlines.call(
            1,
            Box::new(move |outcome| {
                direct.crash_point(&asked, "unregister after");
                match outcome.results[0] {
                    0 => asked.done(&answer),
                    error => asked.failed(Errno::from_raw_os_error(error.unsigned_abs() as i32)),
                }
            }),
        );
        let ticket = call.ticket(0);
        self.buffers.remove(buffer, wait, request, move |removed| {
            let result = removed.map_or_else(|errno| -i64::from(errno.raw_os_error()), |()| 0);
            ticket.end(result, Path::None);
        });
    }
}

fn padded(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut data = bytes.to_vec();
    data.resize(size, 0);
    data
}
