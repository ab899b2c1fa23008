//! Descriptors sent through the socket in the mount, by hand.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use kvfs::direct::abi::{self, FD_SOCKET_MAGIC, FdAnswer, FdHello, RegBuf};
use libc::*;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, sendmsg, socket,
};
use zerocopy::{FromBytes, IntoBytes};

use super::raw::{self, read_op, transfer};
use crate::common::{Errno, R, sys};

pub(crate) const NAME: &str = ".kvfs-socket";
pub(crate) const HELLO: FdHello = FdHello { magic: FD_SOCKET_MAGIC, version: abi::VERSION };

/// A connection to the socket at this path, whose length isn't bounded.
pub(crate) fn connected(path: &Path) -> R<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let parent = sys::open(path.parent().unwrap(), O_PATH, 0)?;
    let short =
        format!("/proc/self/fd/{}/{}", parent.as_raw_fd(), path.file_name().unwrap().to_string_lossy());
    connect(fd.as_raw_fd(), &UnixAddr::new(short.as_str()).unwrap())?;
    Ok(fd)
}

pub(crate) fn send(to: &OwnedFd, hello: &[u8], fds: &[RawFd]) -> R<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(hello)], control, MsgFlags::MSG_NOSIGNAL, None)
}

/// The answer; none when the connection was closed.
pub(crate) fn answer(from: &OwnedFd) -> Option<FdAnswer> {
    let mut bytes = [0u8; 64];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<()>(from.as_raw_fd(), &mut parts, None, MsgFlags::empty());
    let len = received.map_or(0, |m| m.bytes);
    (len > 0).then(|| FdAnswer::read_from_bytes(&bytes[..len]).unwrap())
}

/// Sends a descriptor, and says its token.
pub(crate) fn sent(path: &Path, fd: &OwnedFd) -> R<u64> {
    let to = connected(path)?;
    send(&to, HELLO.as_bytes(), &[fd.as_raw_fd()])?;
    match answer(&to) {
        Some(FdAnswer { error: 0, token, .. }) => Ok(token),
        Some(FdAnswer { error, .. }) => Err(Errno::from_raw(error)),
        None => Err(Errno::ECONNRESET),
    }
}

pub(crate) fn by_token(fd_token: u64) -> RegBuf {
    let (kind, flags, length) = (abi::kind::MEMFD, abi::BUF_RD | abi::BUF_WR, 4096);
    RegBuf { kind, flags, length, fd: -1, fd_method: abi::FD_SENT, fd_token, ..RegBuf::default() }
}

/// A memfd sent, registered and read into.
pub(crate) fn whole_way(root: &Path) -> R<()> {
    let file = sys::open(root.join("f"), O_RDONLY, 0)?;
    let memfd = raw::memfd(4096);
    let id = raw::register(&file, &by_token(sent(&root.join(NAME), &memfd)?))?.buf_id;
    assert_eq!(transfer(&file, read_op(id, 0, 0, 100))?, 7);
    assert_eq!(sys::pread(&memfd, 7, 0)?, b"content");
    Ok(())
}
