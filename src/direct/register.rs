//! REGISTER and UNREGISTER.
//!
//! What always holds: a buffer that can't be registered leaves nothing behind; what may take long runs on a
//! thread of its own.

use std::os::fd::OwnedFd;
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
                asked.answer(result.map(|reg| reg.as_bytes().to_vec()));
            }
            (kind::MEMFD, None) => asked.failed(Errno::BADF),
            (_, fd) => {
                let Some(share) = self.registrations.take(asked.caller.uid) else {
                    return asked.failed(Errno::BUSY);
                };
                let direct = self.clone();
                let register = move || {
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
        reg.buf_id = self.enter(room, asked.target, reg.flags, Memory::Host(buffer))?;
        (reg.path, reg.reason) = (Path::UringHost as u32, Why::Best.code());
        Ok(reg)
    }

    fn register_gpu(&self, mut reg: RegBuf, fd: Option<Handed>, room: Reserved, asked: Asked) {
        let RegBuf { gpu_uuid: uuid, handle, alloc_size, offset, length, .. } = reg;
        let request = match (reg.kind, fd.and_then(Handed::into_inner)) {
            (kind::CUDA_IPC, _) => GpuRequest::Ipc { uuid, handle, alloc_size, offset, length },
            (kind::HIP_IPC, _) => GpuRequest::Hip { uuid, handle, alloc_size, offset, length },
            (kind::CUDA_VMM_FD, Some(fd)) => GpuRequest::Vmm { uuid, fd, alloc_size, offset, length },
            (kind::DAEMON_ALLOC, _) => GpuRequest::Alloc { uuid, length },
            _ => return asked.failed(Errno::INVAL),
        };
        match self.gpus.register(request) {
            Ok(granted) => {
                (reg.path, reg.reason) = (granted.path as u32, granted.why.code());
                reg.handle = granted.handle.unwrap_or(reg.handle);
                match self.enter(room, asked.target, reg.flags, Memory::Gpu(granted.buffer)) {
                    Ok(id) => {
                        reg.buf_id = id;
                        asked.done(reg.as_bytes());
                    }
                    Err(errno) => asked.failed(errno),
                }
            }
            Err(e) => {
                reg.reason = e.reason();
                (asked.reply)(Reply { errno: e.errno(), data: padded(reg.as_bytes(), asked.size) });
            }
        }
    }

    fn enter(&self, room: Reserved, target: Target, flags: u32, memory: Memory) -> Result<u64, Errno> {
        let file = match target {
            Target::Dir(_) => None,
            Target::File(fh) => Some(fh),
        };
        self.buffers.enter(room, file, flags, memory).map(|buffer| buffer.id).map_err(|_| Errno::IO)
    }

    pub(super) fn unregister(&self, unreg: &UnregBuf, asked: Asked, tgid: u32) {
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
        // A call, so that an op that never ends doesn't hold its client up for ever.
        let call = self.deadlines.call(
            1,
            Box::new(move |outcome| match outcome.results[0] {
                0 => asked.done(&answer),
                error => asked.failed(Errno::from_raw_os_error(error.unsigned_abs() as i32)),
            }),
        );
        let ticket = call.ticket(0);
        self.buffers.remove(buffer, wait, move |removed| {
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
