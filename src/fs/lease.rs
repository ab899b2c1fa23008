//! Whether a backing's file is in use in a way that no handle of ours tells of.
//!
//! Where the kernel passes data through, a mapping is one of the backing's file itself, and lives on when the
//! handle it was made by is released. The kernel grants a lease for writing only where nothing else, no
//! descriptor and no mapping, has the file open (check_conflicting_open in fs/locks.c). What always holds: a
//! lease is given back soon, so nobody who opens the file waits for long, and no signal reaches the daemon
//! because of one.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Once};

use rustix::io::Errno;

/// The only use of a file: whoever opens it waits until this is gone.
pub(super) struct Lease(Arc<OwnedFd>);

/// What the kernel says of a file's users.
pub(super) enum Users {
    /// There are none but this descriptor.
    None(Lease),
    /// There are.
    Some,
    /// It doesn't say: the file system knows no leases, our rights don't allow to ask, or the descriptor is of
    /// the path alone.
    Unknown,
}

/// Asks who has a file open.
pub(super) fn users(file: &Arc<OwnedFd>) -> Users {
    match lease(file, libc::F_WRLCK) {
        Ok(()) => Users::None(Lease(file.clone())),
        Err(Errno::AGAIN) => Users::Some,
        Err(_) => Users::Unknown,
    }
}

/// Whether somebody else has the file open, which `file` is a descriptor of. Where the file system or our
/// rights don't allow to ask, nobody has.
pub(super) fn is_in_use(file: &OwnedFd) -> bool {
    match lease(file, libc::F_WRLCK) {
        Ok(()) => lease(file, libc::F_UNLCK).is_err(),
        Err(e) => e == Errno::AGAIN,
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = lease(&self.0, libc::F_UNLCK);
    }
}

fn lease(file: &OwnedFd, kind: libc::c_int) -> Result<(), Errno> {
    static SIGNALS: Once = Once::new();
    SIGNALS.call_once(|| {
        // Somebody who opens the file meanwhile has us signalled.
        // SAFETY: to ignore a signal touches no memory.
        let _ = unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    });
    // SAFETY: fcntl with integers.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if done == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn descriptors_and_mappings_of_others_are_seen() {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = tmp.path().join("file");
        std::fs::write(&path, [0; 8192]).unwrap();
        let ours: OwnedFd = File::open(&path).unwrap().into();
        assert!(!is_in_use(&ours));
        let other = File::open(&path).unwrap();
        assert!(is_in_use(&ours), "open for reading");
        let flags = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping, that nothing is read through.
        let map =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, flags.0, flags.1, &other, 0) }.unwrap();
        drop(other);
        assert!(is_in_use(&ours), "mapped");
        // SAFETY: nothing uses the mapping.
        unsafe { rustix::mm::munmap(map, 4096) }.unwrap();
        assert!(!is_in_use(&ours));
        let path_only = rustix::fs::open(&path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(!is_in_use(&ours), "a path alone reads nothing");
        drop(path_only);
    }

    #[test]
    fn who_opens_a_leased_file_waits_and_nobody_is_signalled() {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = tmp.path().join("file");
        std::fs::write(&path, [0; 8192]).unwrap();
        let open = || Arc::new(OwnedFd::from(File::options().read(true).write(true).open(&path).unwrap()));
        let ours = open();
        let Users::None(lease) = users(&ours) else { panic!("nobody has it open") };
        let opening = std::thread::spawn({
            let path = path.clone();
            move || File::open(path).unwrap()
        });
        drop(lease);
        let other = opening.join().unwrap();
        assert!(matches!(users(&ours), Users::Some));
        drop(other);
        assert!(matches!(users(&ours), Users::None(_)), "given back");
    }
}
