//! Buffers that are registered with a mount.
//!
//! What always holds: a [`Registered`] that is dropped is unregistered, after the transfers that use it; the
//! daemon keeps the memory for those, whatever the client does with its own mapping. One that the daemon doesn't
//! know any more, because another took its place, is registered again by who uses it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

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

/// How long the socket of a daemon that has died is missed at most, and how often it's looked for.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// A registered buffer. Only the process that registered it can use it, not its children.
#[derive(Debug)]
pub struct Registered {
    mount: Mount,
    id: AtomicU64,
    len: u64,
    transport: Transport,
    /// What it takes to register it again.
    wanted: abi::RegBuf,
    fd: Option<OwnedFd>,
    renewing: Mutex<()>,
}

impl Registered {
    /// The number by which the mount knows it now.
    pub fn id(&self) -> u64 {
        self.id.load(Acquire)
    }

    /// The mount doesn't know `id`, which was the buffer's: registers it again, if that can be. GPU memory of the
    /// daemon's own is gone.
    pub(super) fn renew(&self, id: u64) -> bool {
        let _one_at_a_time = self.renewing.lock();
        if self.id() != id {
            return true;
        }
        if self.wanted.kind == abi::kind::DAEMON_ALLOC {
            return false;
        }
        match self.mount.ask(self.wanted, self.fd.as_ref().map(AsFd::as_fd)) {
            Ok(answer) => {
                self.id.store(answer.buf_id, Release);
                true
            }
            Err(_) => false,
        }
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
        let mut argument = abi::UnregBuf { buf_id: self.id(), ..Default::default() };
        match call(&self.mount, Call::Unregister, &mut argument) {
            // It went with a daemon that died.
            Err(Error::Refused { errno: Errno::NOENT, .. }) => Ok(()),
            ended => ended,
        }
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
        let answer = self.ask(wanted, fd)?;
        let registered = Registered {
            mount: self.clone(),
            id: AtomicU64::new(answer.buf_id),
            len: answer.length,
            transport: Transport { path: answer.path, reason: answer.reason },
            wanted,
            // Without it it can't be registered again, which is rarely needed.
            fd: fd.and_then(|fd| fd.try_clone_to_owned().ok()),
            renewing: Mutex::default(),
        };
        Ok((registered, answer))
    }

    fn ask(&self, wanted: abi::RegBuf, fd: Option<BorrowedFd<'_>>) -> Result<abi::RegBuf, Error> {
        let mut answer = wanted;
        if let Some(fd) = fd {
            answer.fd = fd.as_raw_fd();
            answer.fd_method = abi::FD_OF_CALLER;
        }
        let mut done = raw(self, Call::Register, answer.as_mut_bytes());
        // It's asked anew where there was none: the socket comes a moment after the mount.
        if let (Err(Errno::PERM), Some(fd)) = (done, fd)
            && (self.facts().abilities.socket || self.query()?.abilities.socket)
        {
            let until = Instant::now() + PATIENCE;
            done = loop {
                // With a daemon that dies the socket goes, and what was sent to it; another comes with the next.
                let lost = match self.send(fd) {
                    Ok(fd_token) => {
                        answer = abi::RegBuf { fd_method: abi::FD_SENT, fd_token, ..wanted };
                        match raw(self, Call::Register, answer.as_mut_bytes()) {
                            Err(Errno::NOENT) => Ok(Err(Errno::NOENT)),
                            done => break done,
                        }
                    }
                    Err(Error::Socket { source }) if is_gone(&source) => Err(Error::Socket { source }),
                    Err(error) => return Err(error),
                };
                if Instant::now() > until {
                    break lost?;
                }
                std::thread::sleep(PAUSE);
            };
        }
        done.map_err(|errno| Error::Unregistrable { errno, reason: answer.reason })?;
        Ok(answer)
    }
}

/// Whether nobody listens at the socket now, or who did doesn't any more.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}
