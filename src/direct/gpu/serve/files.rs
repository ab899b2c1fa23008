//! Backing files in the worker, as long as the daemon wants it to keep them.
//!
//! What always holds: a file's descriptors are open and registered until the last op on it has ended; cuFile
//! lets go of a file before it's closed.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::direct::gpu::cufile::{Cufile, FileHandle, OpenError};

/// A file.
pub(super) struct File {
    direct: Option<OwnedFd>,
    buffered: OwnedFd,
    /// Whether its backing is one that cuFile can read.
    cufile: bool,
    /// Held shared by a direct write, alone by one through the page cache: a direct write can't throw out a
    /// page that another makes dirty meanwhile (see `direct::host::lanes`).
    writes: RwLock<()>,
    /// None if cuFile refused it.
    registered: OnceLock<Option<(&'static Cufile, FileHandle)>>,
}

impl File {
    /// The descriptor for direct I/O, if the backing takes it.
    pub(super) fn direct(&self) -> Option<BorrowedFd<'_>> {
        self.direct.as_ref().map(AsFd::as_fd)
    }

    /// The one through the page cache.
    pub(super) fn buffered(&self) -> BorrowedFd<'_> {
        self.buffered.as_fd()
    }

    /// Runs a write when none of the other kind is under way.
    pub(super) fn writing<T>(&self, aligned: bool, write: impl FnOnce() -> T) -> T {
        if aligned && self.direct.is_some() {
            let _shared = self.writes.read();
            write()
        } else {
            let _alone = self.writes.write();
            write()
        }
    }

    /// Its handle with cuFile; none if it has to go without, for good: a file that was removed, renamed over
    /// or has no name (5031, 5019), or that is on a device that udev doesn't know (5027).
    pub(super) fn handle(
        &self,
        cufile: impl FnOnce() -> Option<&'static Cufile>,
        refused: impl FnOnce(OpenError),
    ) -> Option<FileHandle> {
        let fd = self.direct().filter(|_| self.cufile)?;
        let registered = self.registered.get_or_init(|| {
            let cufile = cufile()?;
            match cufile.register(fd) {
                Ok(handle) => Some((cufile, handle)),
                Err(e) => {
                    refused(e);
                    None
                }
            }
        });
        registered.map(|(_, handle)| handle)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Some(Some((cufile, handle))) = self.registered.get() {
            cufile.deregister(*handle);
        }
    }
}

/// All of them, by the daemon's number.
#[derive(Default)]
pub(super) struct Files(Mutex<HashMap<u64, Arc<File>>>);

impl Files {
    /// Takes a file. Its descriptors come in this order: the one for direct I/O if there is one, the other.
    pub(super) fn add(&self, serial: u64, fds: Vec<OwnedFd>, direct: bool, cufile: bool) {
        let mut fds = fds.into_iter();
        let direct = if direct { fds.next() } else { None };
        // Ops on a file that came without are answered with an error.
        let Some(buffered) = fds.next() else { return };
        let file = File { direct, buffered, cufile, writes: RwLock::default(), registered: OnceLock::new() };
        let before = self.0.lock().insert(serial, Arc::new(file));
        drop(before);
    }

    pub(super) fn get(&self, serial: u64) -> Option<Arc<File>> {
        self.0.lock().get(&serial).cloned()
    }

    pub(super) fn forget(&self, serial: u64) {
        let gone = self.0.lock().remove(&serial);
        drop(gone);
    }
}
