//! Whether a file of a backing is in use by somebody of whom the daemon doesn't know: mapped by a client whose
//! handle is closed (the kernel maps the backing's file itself where it passes data through), or open on the
//! backing.
//!
//! What always holds: nobody is kept waiting for longer than a [`Lease`] lives, and no signal reaches the
//! daemon because of one.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

/// Which signal says that somebody wants the file (include/uapi/asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;

/// The only use of a file; who opens it meanwhile waits.
#[derive(Debug)]
pub struct Lease(Arc<OwnedFd>);

/// What the kernel says of a file's users.
#[derive(Debug)]
pub enum Users {
    /// There are none but this descriptor.
    None(Lease),
    /// There are.
    Some,
    /// It doesn't say: the file system knows no leases, or the file is another user's.
    Unknown,
}

/// Asks who has a file open, by a descriptor that isn't `O_PATH`.
pub fn users(fd: &Arc<OwnedFd>) -> Users {
    let call = |command, arg: libc::c_int| {
        // SAFETY: these commands take an integer.
        Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, arg) })
    };
    // Who opens the file is announced by a signal: one that does nothing by itself.
    if call(F_SETSIG, libc::SIGURG).is_err() {
        return Users::Unknown;
    }
    match call(libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(_) => Users::None(Lease(fd.clone())),
        Err(Errno::EAGAIN) => Users::Some,
        Err(_) => Users::Unknown,
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: the command takes an integer.
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_in_use_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let open = || Arc::new(OwnedFd::from(File::options().read(true).write(true).open(&path).unwrap()));
        assert!(matches!(users(&open()), Users::None(_)));
        let reader = File::open(&path).unwrap();
        assert!(matches!(users(&open()), Users::Some));
        drop(reader);
        let fd = open();
        let Users::None(lease) = users(&fd) else { panic!("nobody has it open") };
        // Whoever opens it waits until the lease is gone, and the daemon lives on.
        let opening = std::thread::spawn({
            let path = path.clone();
            move || File::open(path).unwrap()
        });
        drop(lease);
        assert_eq!(opening.join().unwrap().metadata().unwrap().len(), 8192);
        assert!(matches!(users(&open()), Users::None(_)), "given back");
    }
}
