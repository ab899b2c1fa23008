//! What the daemon and a GPU's worker process say to each other.
//!
//! What always holds: a message is one packet of at most `MAX` bytes; its descriptors come with it and are
//! closed by whoever drops the message; anything that isn't understood ends the connection.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::device::Handle;
use crate::direct::abi::{Path, Why};
use crate::direct::engine::Direction;

/// In bytes; below what a socket buffer holds by default (net.core.wmem_default, 212992).
pub(super) const MAX: usize = 64 << 10;
/// Ops in one message: none is larger than 100 bytes.
pub(super) const MAX_OPS: usize = MAX / 128;
/// Descriptors with one message.
const MAX_FDS: usize = 2;
/// How long a send waits before it asks again whether it should.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where a buffer's memory comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Origin {
    /// Shared by another process under this handle.
    Ipc(Handle),
    /// Behind the descriptor that comes with the message.
    Fd,
    /// The worker's own.
    Own,
}

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Make a buffer.
    Buffer {
        id: u64,
        origin: Origin,
        /// Of the shared allocation, in bytes.
        alloc_size: u64,
        /// Where in it the buffer begins.
        offset: u64,
        length: u64,
    },
    /// Let go of a buffer.
    Drop { id: u64 },
    /// A file: with its descriptor for direct I/O, if it has one, and after that the other one.
    File { serial: u64, direct: bool, cufile: bool },
    /// Let go of a file.
    Forget { serial: u64 },
    /// Transfers.
    Ops(Vec<Op>),
    /// What comes with it is to be held as long as anything may be under way.
    Lifeline,
}

/// A transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Op {
    pub(super) id: u64,
    /// The file.
    pub(super) serial: u64,
    pub(super) buffer: u64,
    pub(super) direction: Direction,
    pub(super) buf_off: u64,
    pub(super) file_off: u64,
    pub(super) len: u64,
    /// What direct I/O on the file has to be a multiple of, in bytes.
    pub(super) align: u64,
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It has its GPU.
    Ready,
    /// It can't have it, and ends.
    NoGpu { missing: bool, message: String },
    /// What became of a buffer: of the worker's own, its handle.
    Buffer { id: u64, outcome: Result<Made, Refused> },
    /// A transfer has ended: bytes, `-errno` or `-(cuFile code)`.
    Done { id: u64, result: i64, path: Path },
    /// For the log.
    Note(String),
    /// Nothing works any more, and it ends.
    Fault(String),
}

/// A buffer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) handle: Option<Handle>,
    /// Whether cuFile moves straight into it; else why not.
    pub(super) direct: Result<(), Why>,
}

/// Why there is no buffer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(super) errno: i32,
    /// The driver's code, or 0.
    pub(super) code: i32,
    pub(super) message: String,
}

/// One end of the line.
pub(super) struct Channel {
    socket: OwnedFd,
    /// For what is received: one thread does that.
    packet: Mutex<Box<[u8]>>,
}

impl Channel {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel::new(ours), theirs))
    }

    pub(super) fn new(socket: OwnedFd) -> Channel {
        Channel { socket, packet: Mutex::new(vec![0; MAX].into()) }
    }

    /// Sends a message; waits for room as long as `wanted` says so.
    pub(super) fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        wanted: impl Fn() -> bool,
    ) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
        if bytes.len() > MAX || fds.len() > MAX_FDS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if !wanted() {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
                    let _ = poll(&mut fds, Some(&timespec(PATIENCE)));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The next message; none when the other end is gone.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = self.packet.lock();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            match recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(message) => break message,
                // A peer that went without reading everything is told first, once, and then what it sent.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                Err(e) => return Err(e.into()),
            }
        };
        let fds = control
            .drain()
            .filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None })
            .flatten()
            .collect();
        // No message is empty: that's the end.
        if message.bytes == 0 {
            return Ok(None);
        }
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let message = postcard::from_bytes(&bytes[..message.bytes]).map_err(io::Error::other)?;
        Ok(Some((message, fds)))
    }

    /// Waits until there is something to receive, or the end; false when the time is over.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut fds, Some(&timespec(limit))).is_ok_and(|ready| ready > 0)
    }

    /// Ends the line for both.
    pub(super) fn shut(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// For poll(2).
pub(super) fn timespec(duration: Duration) -> Timespec {
    // What doesn't fit is longer than anyone waits.
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_bring_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::new(b);
        let file = tempfile::tempfile().unwrap();
        let request = Request::File { serial: 7, direct: true, cufile: false };
        a.send(&request, &[file.as_fd(), file.as_fd()], || true).unwrap();
        let op = Op {
            id: u64::MAX,
            serial: u64::MAX,
            buffer: u64::MAX,
            direction: Direction::Write,
            buf_off: u64::MAX,
            file_off: u64::MAX,
            len: u64::MAX,
            align: u64::MAX,
        };
        a.send(&Request::Ops(vec![op; MAX_OPS]), &[], || true).unwrap();
        let (message, fds) = b.receive::<Request>().unwrap().unwrap();
        assert!(matches!(message, Request::File { serial: 7, direct: true, cufile: false }));
        assert_eq!(fds.len(), 2);
        let (message, fds) = b.receive::<Request>().unwrap().unwrap();
        assert!(matches!(message, Request::Ops(ops) if ops.len() == MAX_OPS));
        assert!(fds.is_empty());
        drop(a);
        assert!(b.receive::<Request>().unwrap().is_none());
    }

    #[test]
    fn what_was_sent_before_the_end_is_heard() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::new(b);
        b.send(&Request::Forget { serial: 1 }, &[], || true).unwrap();
        a.send(&Request::Forget { serial: 2 }, &[], || true).unwrap();
        // Without having read what it was sent.
        drop(a);
        assert!(matches!(b.receive::<Request>(), Ok(Some((Request::Forget { serial: 2 }, _)))));
        assert!(b.receive::<Request>().unwrap().is_none());
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_a_full_line_can_be_given_up() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::new(b);
        a.send(&[0xffu8; 30], &[], || true).unwrap();
        assert!(b.receive::<Request>().is_err());
        let full = loop {
            if let Err(e) = a.send(&vec![0u8; MAX / 2], &[], || false) {
                break e;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::BrokenPipe);
    }
}
