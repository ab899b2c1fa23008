//! Other clients: processes that say when they're ready, and can be ended or killed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::sys;

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
