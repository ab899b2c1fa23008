//! Doing things as somebody else, and in another process.

use std::fs::File;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::sys;

/// The ordinary user of the tests; also its group.
pub(crate) const NOBODY: u32 = 65534;

/// Runs `f` with the rights of an ordinary user. Credentials belong to a thread in Linux, so a
/// thread of its own is enough and the closure can borrow and return what it likes.
pub(crate) fn as_user<T: Send>(uid: u32, gid: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_user(uid, gid).expect("take on another user's rights");
            f()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    // The raw calls act on this thread only; the library's wrappers would change the whole process.
    // SAFETY: integers, and a null pointer with length 0.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Runs `f` in another process and returns the text it made.
pub(crate) fn in_child(f: impl FnOnce() -> String) -> String {
    let (rx, tx) = sys::pipe().expect("pipe");
    // SAFETY: the child only runs `f`, which allocates and makes syscalls; glibc makes its allocator usable after fork.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let text = catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| "the child panicked".into());
            let _ = File::from(tx).write_all(text.as_bytes());
            // SAFETY: ends this process at once, without running what belongs to the parent.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(tx);
            let mut text = String::new();
            File::from(rx).read_to_string(&mut text).expect("read from the child");
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "the child ends by itself");
            text
        }
    }
}
