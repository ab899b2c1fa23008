//! Going to the background: the command returns when the mount answers, or with the fault that kept it from
//! that.
//!
//! What always holds: the child is forked before any thread is started; it tells its parent exactly once how
//! it went, and a child that dies without a word counts as a failure. The parent holds nothing of the mount,
//! so it may look at it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nix::unistd::{ForkResult, fork, setsid};
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::supervise::Notify;

/// What the child tells.
#[derive(Serialize, Deserialize)]
enum Word {
    Ready,
    Failed { status: u8, message: String },
}

/// The child's line to its parent.
pub(super) struct Parent(Option<OwnedFd>, Option<Notify>);

/// Where this process finds itself afterwards.
pub(super) enum Side {
    /// The one that the operator waits for, with the child's word.
    Parent(Result<(), Failure>),
    /// The one that serves.
    Child(Parent),
}

/// Forks.
pub(super) fn split() -> Result<Side, Failure> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(Failure::other)?;
    // SAFETY: no thread has been started, so the child may do whatever the parent could.
    match unsafe { fork() }.map_err(Failure::other)? {
        ForkResult::Parent { .. } => {
            drop(write);
            let mut word = String::new();
            let heard = File::from(read).read_to_string(&mut word).map_err(Failure::other);
            Ok(Side::Parent(heard.and_then(|_| match serde_json::from_str(&word) {
                Ok(Word::Ready) => Ok(()),
                Ok(Word::Failed { status, message }) => Err(Failure { status, message }),
                Err(_) => {
                    Err(Failure::other("the daemon ended before the mount was ready; its log says why"))
                }
            })))
        }
        ForkResult::Child => {
            drop(read);
            let _ = setsid();
            // A daemon keeps no directory busy.
            let _ = std::env::set_current_dir("/");
            Ok(Side::Child(Parent::at(write)))
        }
    }
}

impl Parent {
    /// The one at the other end of this pipe.
    pub(super) fn at(pipe: OwnedFd) -> Parent {
        Parent(Some(pipe), None)
    }

    /// The pipe, for another process to tell.
    pub(super) fn into_pipe(self) -> Option<OwnedFd> {
        self.0
    }

    /// In the foreground there is nobody to tell.
    pub(super) fn none() -> Parent {
        Parent(None, None)
    }

    /// systemd, if it waits for a word.
    pub(super) fn systemd(notify: Option<Notify>) -> Parent {
        Parent(None, notify)
    }

    /// Says that the mount answers, and lets go of the terminal.
    pub(super) fn ready(&mut self) {
        if let Some(notify) = self.1.take() {
            notify.ready();
        }
        if self.0.is_some() {
            self.say(&Word::Ready);
            if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
                let _ = rustix::stdio::dup2_stdin(&null);
                let _ = rustix::stdio::dup2_stdout(&null);
                let _ = rustix::stdio::dup2_stderr(&null);
            }
        }
    }

    /// Says what went wrong. True if there was somebody to tell.
    pub(super) fn failed(&mut self, failure: &Failure) -> bool {
        let told = self.0.is_some();
        self.say(&Word::Failed { status: failure.status, message: failure.message.clone() });
        told
    }

    fn say(&mut self, word: &Word) {
        if let (Some(pipe), Ok(text)) = (self.0.take(), serde_json::to_string(word)) {
            // If the parent is gone there is nobody to tell.
            let _ = File::from(pipe).write_all(text.as_bytes());
        }
    }
}
