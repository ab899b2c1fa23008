//! The handshake: with the kernel at a mount's start, and without it where a daemon takes a session over.
//!
//! What always holds: fuser shakes hands at the end of a socket; what it reads there is the kernel's INIT, and its
//! answer is passed on at the start, and at a takeover compared with the one that the kernel was given then. Only
//! when they agree does the real device take the socket's place. More threads for a session that runs come the same way. On a live connection nothing else is read:
//! that would be a client's request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use fuser::{Config, INodeNo, SessionACL};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::watched::Watched;
use crate::supervise::State;

/// An INIT or its answer: 104 and 80 bytes with Linux 6.18.
const MOST: usize = 4096;
/// `FUSE_NOTIFY_RESEND` (include/uapi/linux/fuse.h, Linux 6.9).
const NOTIFY_RESEND: i32 = 7;

/// What the kernel said first, of this connection.
#[derive(Debug)]
pub(super) struct Greeting {
    request: Vec<u8>,
    /// What a daemon before has answered.
    agreed: Option<Vec<u8>>,
}

impl Greeting {
    /// As `state` has it from a daemon before; else as it comes from the device, which is to be read once.
    pub(super) fn read(device: &OwnedFd, state: Option<&State>) -> io::Result<Greeting> {
        Ok(match state.and_then(State::init) {
            Some((request, agreed)) => Greeting { request, agreed: Some(agreed) },
            None => Greeting { request: read_init(device.as_fd())?, agreed: None },
        })
    }

    /// The kernel's INIT, its header included.
    pub(super) fn init(&self) -> &[u8] {
        &self.request
    }

    /// Makes a session of `device`, and answers the kernel; `state` is told what was agreed on. Where a daemon before
    /// has answered, that's compared.
    pub(super) fn shake_hands(
        &self,
        filesystem: Watched,
        device: &OwnedFd,
        acl: SessionACL,
        options: Config,
        state: Option<&State>,
        number: (u32, u32),
    ) -> io::Result<(fuser::Session<Watched>, Threshold)> {
        let (session, answer, mut threshold) = self.answer(filesystem, device, acl, options)?;
        match &self.agreed {
            Some(agreed) if *agreed != answer => {
                return Err(io::Error::other(
                    "this kvfs would agree on other things with the kernel than the one that mounted; mount anew",
                ));
            }
            Some(_) => threshold.resends = true,
            None => {
                rustix::io::write(device, &answer)?;
                if let Some(state) = state {
                    state.set_init(&self.request, &answer, number)?;
                }
            }
        }
        Ok((session, threshold))
    }

    /// Makes one more session of a device whose kernel has its answer.
    pub(super) fn again(
        &self,
        filesystem: Watched,
        device: &OwnedFd,
        acl: SessionACL,
        options: Config,
    ) -> io::Result<(fuser::Session<Watched>, Threshold)> {
        self.answer(filesystem, device, acl, options).map(|(session, _, threshold)| (session, threshold))
    }

    fn answer(
        &self,
        filesystem: Watched,
        device: &OwnedFd,
        acl: SessionACL,
        options: Config,
    ) -> io::Result<(fuser::Session<Watched>, Vec<u8>, Threshold)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        send(&ours, &self.request, SendFlags::NOSIGNAL)?;
        let session = fuser::Session::from_fd(filesystem, theirs, acl, options)?;
        let mut answer = vec![0; MOST];
        let (len, _) = recv(&ours, &mut answer[..], RecvFlags::DONTWAIT)?;
        answer.truncate(len);
        let threshold = Threshold { socket: ours, device: device.try_clone()?, place: None, resends: false };
        Ok((session, answer, threshold))
    }
}

/// Between the handshake and the first request: fuser's threads still read from the socket.
///
/// A daemon that is killed while the kernel copies a request to memory that isn't there yet has its client
/// told EIO (fuse_dev_do_read in fs/fuse/dev.c). So each thread is given a request of ours first, and makes its
/// buffer's memory be there; when all have done so, the device takes the socket's place.
#[derive(Debug)]
pub(super) struct Threshold {
    socket: OwnedFd,
    device: OwnedFd,
    /// Where fuser's threads read.
    place: Option<RawFd>,
    resends: bool,
}

/// The node of our own requests: none that the kernel could know.
pub(super) const NOBODY: INodeNo = INodeNo(u64::MAX);
/// `FUSE_LOOKUP` (include/uapi/linux/fuse.h).
const LOOKUP: u32 = 1;

impl Threshold {
    /// Sends each of the threads that will read from `place` a request.
    pub(super) fn prepare(&mut self, place: BorrowedFd<'_>, threads: usize) -> io::Result<()> {
        self.place = Some(place.as_raw_fd());
        // struct fuse_in_header: length, opcode, unique, node, then who asks; and a name.
        let mut request = [0; 48];
        request[..4].copy_from_slice(&48u32.to_ne_bytes());
        request[4..8].copy_from_slice(&LOOKUP.to_ne_bytes());
        request[16..24].copy_from_slice(&NOBODY.0.to_ne_bytes());
        // fuser lets nobody else into an ordinary user's mount.
        request[24..28].copy_from_slice(&rustix::process::geteuid().as_raw().to_ne_bytes());
        request[40..47].copy_from_slice(b"nothing");
        (0..threads).try_for_each(|_| send(&self.socket, &request, SendFlags::NOSIGNAL).map(drop))?;
        Ok(())
    }

    /// All threads stand here: the device takes the socket's place.
    pub(super) fn cross(&self) -> io::Result<()> {
        let Some(place) = self.place else { return Err(io::Error::other("nothing to cross")) };
        // SAFETY: fuser owns this descriptor and keeps its number, and nobody reads from it now.
        let mut place = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(place) });
        rustix::io::dup3(&self.device, &mut place, rustix::io::DupFlags::CLOEXEC)?;
        if self.resends { resend(self.device.as_fd()) } else { Ok(()) }
    }
}

/// Has the memory of a thread's request buffer be there; `inside` is a part of it, near its beginning.
pub(super) fn touch_buffer(inside: &[u8]) {
    const PAGE: usize = 4096;
    let first = inside.as_ptr() as usize / PAGE * PAGE;
    // The kernel's header and the rest of a page, then the largest write's data. A fork would make each page's
    // next use another fault (copy on write), so no child gets them; but for the first page, in which the
    // allocator may have something of its own, for which it looks in a child.
    let advice = [(first, libc::MADV_POPULATE_WRITE), (first + PAGE, libc::MADV_DONTFORK)];
    for (from, advice) in advice {
        // SAFETY: fuser's buffer is 16 MiB and more from its beginning, which is less than a page before
        // `inside`; this changes no byte, and children of this process execute another program at once.
        let done = unsafe { libc::madvise(from as *mut libc::c_void, (1 << 20) + 2 * PAGE, advice) };
        if done != 0 {
            // Before Linux 5.14, or no memory: requests bring it.
            tracing::debug!(
                "a request buffer isn't there before it's needed: {}",
                io::Error::last_os_error()
            );
        }
    }
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
