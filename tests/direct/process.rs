//! Other clients: processes that say when they're ready, and can be ended or killed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::common::{Mount, cli, ns, sys};

/// A forked process that lives until it's killed, or its work is done.
pub(crate) struct Process {
    pid: Option<Pid>,
    says: BufReader<File>,
}

impl Process {
    /// Runs `work` in a new process; what it says through its argument can be read by [`Process::hear`].
    pub(crate) fn start(work: impl FnOnce(&mut dyn FnMut(&str))) -> Process {
        let (rx, tx) = sys::pipe().unwrap();
        // SAFETY: the child only runs `work`, as `user::in_child` does.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                // SAFETY: prctl takes integers.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let mut tx = File::from(tx);
                let mut say = |text: &str| tx.write_all(format!("{text}\n").as_bytes()).unwrap();
                let ended = catch_unwind(AssertUnwindSafe(|| work(&mut say)));
                // SAFETY: ends this process at once, without running what belongs to the parent.
                unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) }
            }
            ForkResult::Parent { child } => {
                drop(tx);
                Process { pid: Some(child), says: BufReader::new(rx.into()) }
            }
        }
    }

    /// The next line that it says; empty when it has ended.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends SIGKILL, and doesn't wait.
    pub(crate) fn shoot(&self) {
        kill(self.pid.unwrap(), Signal::SIGKILL).unwrap();
    }

    /// Waits until it has ended by itself, and well.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        let pid = self.pid.take().unwrap();
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)), "a client process");
    }

    /// Kills it, and waits until it's gone.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sleeps for ever, until a signal.
pub(crate) fn hang() {
    loop {
        nix::unistd::pause();
    }
}

/// Asks for the status until it's as wanted; the daemon's end, or nothing for long, fails the test.
#[track_caller]
pub(crate) fn until(mount: &Mount, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
    let pidfd: OwnedFd = sys::pidfd(mount.pid()).unwrap();
    let deadline = std::time::Instant::now() + ns::HANG;
    loop {
        let status = mount.status();
        if wanted(&status) {
            return;
        }
        let ended = cli::wait_fd(&pidfd, std::time::Duration::from_millis(5));
        let late = std::time::Instant::now() > deadline;
        assert!(!ended && !late, "not seen: {what}\n{status:#}\n{}", mount.story());
    }
}

/// A number of the fast path's status.
pub(crate) fn direct(status: &serde_json::Value, name: &str) -> u64 {
    status["direct"][name].as_u64().unwrap_or_else(|| panic!("no direct.{name}: {status:#}"))
}

/// Waits until no buffer is registered, none is mapped into the daemon, and no call is under way.
#[track_caller]
pub(crate) fn drained(mount: &Mount) {
    until(mount, "no buffers and no calls", |s| direct(s, "buffers") == 0 && direct(s, "in_flight") == 0);
    until(mount, "no memory of clients", |_| mapped(mount) == 0);
}

/// Mappings of memfds in the daemon.
pub(crate) fn mapped(mount: &Mount) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", mount.pid())).unwrap();
    maps.lines().filter(|line| line.contains("/memfd:kvfs-test")).count()
}

/// What the daemon's descriptors are of.
pub(crate) fn descriptors(mount: &Mount) -> Vec<String> {
    let dir = format!("/proc/{}/fd", mount.pid());
    let entries = std::fs::read_dir(dir).unwrap();
    let targets = entries.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok());
    targets.map(|t| t.to_string_lossy().into_owned()).collect()
}

/// Makes this process, which has one thread, an ordinary user's, as if that had logged in.
pub(crate) fn become_user(uid: u32) {
    use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
    setgroups(&[]).unwrap();
    setgid(Gid::from_raw(uid)).unwrap();
    setuid(Uid::from_raw(uid)).unwrap();
    // SAFETY: prctl takes integers. Changing the user has taken it away.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
}
