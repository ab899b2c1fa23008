//! More threads for a session that runs: a second session on the same connection.
//!
//! What always holds: the kernel has shaken hands once and isn't asked again; the second session is told over a
//! socket what it wants to hear, and gets the connection in the socket's place then. It ends with the connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use fuser::{Config, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::watched::Watched;

/// Starts so many threads that answer requests of `device`.
pub(super) fn help(filesystem: Watched, device: &OwnedFd, acl: SessionACL, threads: usize) -> io::Result<()> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&ours, &greeting())?;
    let mut options = Config::default();
    options.acl = acl;
    options.n_threads = Some(threads);
    let session = Session::from_fd(filesystem, theirs, acl, options)?;
    put_in_place(device, &session)?;
    drop(ours);
    std::thread::Builder::new().name("kvfs-help".into()).spawn(move || session.run())?;
    Ok(())
}

/// The session's descriptor is the device from now on.
fn put_in_place(device: &OwnedFd, session: &Session<Watched>) -> io::Result<()> {
    // SAFETY: both are open; the session's own number stays its own, and what it stood for is closed.
    let done = unsafe { libc::dup3(device.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a kernel says first: `fuse_in_header` and `fuse_init_in` of include/uapi/linux/fuse.h, 7.40, with every
/// flag there is. What the session answers, nobody reads.
fn greeting() -> [u8; 104] {
    const INIT: u32 = 26;
    const EXTENDED: u32 = 1 << 30;
    let mut bytes = [0u8; 104];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(0, 104);
    put(4, INIT);
    // The request's number, 8 bytes.
    put(8, 1);
    put(40, 7);
    put(44, 40);
    put(48, 128 << 10);
    put(52, u32::MAX | EXTENDED);
    put(56, u32::MAX);
    bytes
}
