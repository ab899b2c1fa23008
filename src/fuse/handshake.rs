//! The handshake: with the kernel at a mount's start, and without it where a daemon takes a session over.
//!
//! What always holds: fuser shakes hands at the end of a socket; what it reads there is the kernel's INIT, and its
//! answer is passed on at the start, and at a takeover compared with the one that the kernel was given then. Only
//! when they agree does the real device take the socket's place. On a live connection nothing else is read:
//! that would be a client's request.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fuser::{Config, SessionACL};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::adapter::Adapter;
use crate::supervise::State;

/// An INIT or its answer: 104 and 80 bytes with Linux 6.18.
const MOST: usize = 4096;
/// `FUSE_NOTIFY_RESEND` (include/uapi/linux/fuse.h, Linux 6.9).
const NOTIFY_RESEND: i32 = 7;

/// Makes a session of `device`. `state` has, or is told, what was agreed on.
pub(super) fn shake_hands(
    adapter: Adapter,
    device: &OwnedFd,
    acl: SessionACL,
    options: Config,
    state: Option<&State>,
    number: (u32, u32),
) -> io::Result<fuser::Session<Adapter>> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let former = state.and_then(State::init);
    let request = match &former {
        Some((request, _)) => request.clone(),
        None => read_init(device.as_fd())?,
    };
    send(&ours, &request, SendFlags::NOSIGNAL)?;
    let session = fuser::Session::from_fd(adapter, theirs, acl, options)?;
    let mut answer = vec![0; MOST];
    let (len, _) = recv(&ours, &mut answer[..], RecvFlags::DONTWAIT)?;
    answer.truncate(len);
    match former {
        Some((_, agreed)) if agreed != answer => {
            return Err(io::Error::other(
                "this kvfs would agree on other things with the kernel than the one that mounted; mount anew",
            ));
        }
        Some(_) => {}
        None => {
            rustix::io::write(device, &answer)?;
            if let Some(state) = state {
                state.set_init(&request, &answer, number)?;
            }
        }
    }
    // SAFETY: fuser owns this descriptor and keeps its number; what it stands for is exchanged before anybody
    // reads from it.
    let mut place = unsafe { std::mem::ManuallyDrop::new(from_number(session.as_fd())) };
    rustix::io::dup3(device, &mut place, rustix::io::DupFlags::CLOEXEC)?;
    Ok(session)
}

/// Another owner of a descriptor's number.
///
/// # Safety
///
/// It must not be dropped.
unsafe fn from_number(fd: BorrowedFd<'_>) -> OwnedFd {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) }
}

fn read_init(device: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    // The kernel refuses to fill anything smaller (FUSE_MIN_READ_BUFFER), or than a request's largest.
    let mut request = vec![0; 1 << 20];
    let len = loop {
        match rustix::io::read(device, &mut request[..]) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT) => {}
            result => break result?,
        }
    };
    request.truncate(len);
    Ok(request)
}

/// Has the kernel send again what a daemon before had read and not answered. EINVAL before Linux 6.9.
pub(super) fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    // struct fuse_out_header: length, the notification's code, and 0, which makes it one.
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(device, &message)?;
    Ok(())
}
