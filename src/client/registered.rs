//! Buffers that are registered with a mount.
//!
//! What always holds: a [`Registered`] that is dropped is unregistered, after the transfers that use it; the
//! daemon keeps the memory for those, whatever the client does with its own mapping.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use std::os::fd::AsRawFd;

use super::call::{call, raw};
use super::error::{Call, Error};
use super::memory::HostBuffer;
use super::mount::{Mount, Transport};
use crate::direct::abi;
use zerocopy::IntoBytes;

/// What may be done with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// READ: from files to the buffer.
    Read,
    /// WRITE: from the buffer to files.
    Write,
    /// Both.
    Both,
}

impl Access {
    pub(super) fn bits(self) -> u32 {
        match self {
            Access::Read => abi::BUF_RD,
            Access::Write => abi::BUF_WR,
            Access::Both => abi::BUF_RD | abi::BUF_WR,
        }
    }
}

/// A registered buffer. Only the process that registered it can use it, not its children.
#[derive(Debug)]
pub struct Registered {
    dir: Arc<OwnedFd>,
    id: u64,
    len: u64,
    transport: Transport,
}

impl Registered {
    /// The number by which the mount knows it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an empty buffer can't be registered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How its bytes move, and why no better way.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Unregisters it after the transfers that use it, and says whether that went well. Dropping it does the
    /// same and says nothing.
    pub fn unregister(self) -> Result<(), Error> {
        self.end()
    }

    fn end(&self) -> Result<(), Error> {
        let mut argument = abi::UnregBuf { buf_id: self.id, ..Default::default() };
        call(&*self.dir, Call::Unregister, &mut argument)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // A second time after `unregister`, and after the mount's end: both do no harm.
        let _ = self.end();
    }
}

impl Mount {
    /// Registers all of a host buffer. The buffer may be dropped before the registration is; its bytes are then
    /// only reachable for transfers.
    pub fn register(&self, buffer: &HostBuffer, access: Access) -> Result<Registered, Error> {
        let wanted = abi::RegBuf {
            kind: abi::kind::MEMFD,
            flags: access.bits(),
            length: buffer.len() as u64,
            ..Default::default()
        };
        self.register_with(wanted, Some(buffer.as_fd())).map(|(registered, _)| registered)
    }

    /// Makes the call; `fd` goes by its number where the daemon may take it from us, else through the socket.
    pub(super) fn register_with(
        &self,
        mut wanted: abi::RegBuf,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Registered, abi::RegBuf), Error> {
        wanted.fd = -1;
        let mut answer = wanted;
        if let Some(fd) = fd {
            answer.fd = fd.as_raw_fd();
            answer.fd_method = abi::FD_OF_CALLER;
        }
        let mut done = raw(self, Call::Register, answer.as_mut_bytes());
        // It's asked anew: the socket comes a moment after the mount.
        if let (Err(Errno::PERM), Some(fd)) = (done, fd)
            && self.query()?.abilities.socket
        {
            answer = abi::RegBuf { fd_method: abi::FD_SENT, fd_token: self.send(fd)?, ..wanted };
            done = raw(self, Call::Register, answer.as_mut_bytes());
        }
        done.map_err(|errno| Error::Unregistrable { errno, reason: answer.reason })?;
        let registered = Registered {
            dir: self.dir().clone(),
            id: answer.buf_id,
            len: answer.length,
            transport: Transport { path: answer.path, reason: answer.reason },
        };
        Ok((registered, answer))
    }
}
