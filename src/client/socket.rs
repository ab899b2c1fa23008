//! Sending a descriptor through the socket in the mount, for daemons that may not take one from us.
//!
//! What always holds: a daemon that doesn't answer is not waited for longer than [`PATIENCE`].

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};
use zerocopy::IntoBytes;

use crate::direct::abi::{FD_SOCKET_MAGIC, FD_SOCKET_NAME, FdAnswer, FdHello, VERSION};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a socket's address has room for, in bytes.
const ADDRESS_MAX: usize = 107;

/// Sends `fd` to the daemon of the mount at `point`, which is also open as `root`; the token is for
/// `kvfs_reg_buf`.
pub(super) fn send(point: &Path, root: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<u64> {
    let stream = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
    set_socket_timeout(&stream, Timeout::Send, Some(PATIENCE))?;
    let mut path = point.join(FD_SOCKET_NAME);
    if path.as_os_str().as_bytes().len() > ADDRESS_MAX {
        // By the open directory. Not always, since a process that isn't dumpable can't use its /proc.
        path = format!("/proc/self/fd/{}/{FD_SOCKET_NAME}", root.as_raw_fd()).into();
    }
    connect(&stream, &SocketAddrUnix::new(path)?)?;

    let hello = FdHello { magic: FD_SOCKET_MAGIC, version: VERSION };
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for one descriptor"));
    }
    sendmsg(&stream, &[IoSlice::new(hello.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;

    let mut answer = FdAnswer::default();
    let (received, _) = recv(stream.as_fd(), answer.as_mut_bytes(), RecvFlags::empty())?;
    match answer {
        _ if received != size_of::<FdAnswer>() => Err(io::ErrorKind::UnexpectedEof.into()),
        FdAnswer { error: 0, token, .. } => Ok(token),
        FdAnswer { error, .. } => Err(io::Error::from_raw_os_error(error)),
    }
}
