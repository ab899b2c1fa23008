//! A descriptor that comes with a question.
//!
//! What always holds: it comes with the first bytes of the question; of several the first counts, and the others
//! are closed.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Sends the beginning of this, with a descriptor; says how much that was.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fd = fd.as_slice();
    if !fd.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fd)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Reads a question, and the descriptor that comes with it.
pub(super) struct Reader<'a> {
    pub(super) stream: &'a UnixStream,
    pub(super) fd: &'a mut Option<OwnedFd>,
}

impl Read for Reader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = recvmsg(self.stream, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = part {
                *self.fd = self.fd.take().or_else(|| fds.next());
            }
        }
        Ok(message.bytes)
    }
}
