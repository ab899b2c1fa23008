//! FUSE over io_uring, which the whole machine allows or doesn't: tests that need it one way keep out those that need
//! it the other way, and the last one leaves it as the first found it.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};

use nix::fcntl::{Flock, FlockArg};

/// The kernel's switch (Linux 6.14).
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// Shared by all tests of this machine. What it has in it is the switch as it was found.
const FOUND: &str = "/run/kvfs-test-enable-uring";

/// While this is there, nobody changes it.
#[must_use]
pub(crate) struct Uring(Flock<File>);

impl Uring {
    /// Requests may come by io_uring, for as many tests at a time as like.
    pub(crate) fn enabled() -> Uring {
        Uring::switched(FlockArg::LockShared, "Y")
    }

    /// They may not; no other test is under way that wants them to.
    pub(crate) fn disabled() -> Uring {
        Uring::switched(FlockArg::LockExclusive, "N")
    }

    fn switched(how: FlockArg, to: &str) -> Uring {
        let is = fs::read_to_string(SWITCH)
            .unwrap_or_else(|e| panic!("{SWITCH}: {e}; Linux 6.14 and newer have FUSE over io_uring"));
        let open = File::options().read(true).write(true).create(true).truncate(false).open(FOUND);
        let mut lock = Flock::lock(open.unwrap(), how).unwrap();
        let mut found = String::new();
        lock.read_to_string(&mut found).unwrap();
        if found.is_empty() {
            lock.write_all(is.trim().as_bytes()).unwrap();
        }
        if is.trim() != to {
            fs::write(SWITCH, to).unwrap();
        }
        Uring(lock)
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Whoever isn't the last one is refused this.
        if self.0.relock(FlockArg::LockExclusiveNonblock).is_err() {
            return;
        }
        let lock = &mut *self.0;
        let mut found = String::new();
        if lock.rewind().and_then(|()| lock.read_to_string(&mut found)).is_ok() && !found.is_empty() {
            let _ = fs::write(SWITCH, &found);
            let _ = lock.set_len(0);
        }
    }
}
