//! Runs the `kvfs` command and keeps what it said.

use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{ns, sys};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_kvfs");

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) what: String,
}

impl Outcome {
    /// Asserts the exit status.
    #[track_caller]
    pub(crate) fn code(self, want: i32) -> Outcome {
        assert_eq!(
            self.status.code(),
            Some(want),
            "exit status of `{}` ({})\nstdout: {}\nstderr: {}",
            self.what,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Asserts what an error of the command line has to be: this status, nothing on stdout, one
    /// sentence on stderr, and each of `naming` in it.
    #[track_caller]
    pub(crate) fn fault(self, want: i32, naming: &[&str]) -> Outcome {
        let out = self.code(want);
        assert_eq!(out.stdout, "", "a fault says nothing on stdout: `{}`", out.what);
        let lines: Vec<&str> = out.stderr.lines().filter(|l| !l.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "a fault is one line on stderr: `{}` said:\n{}", out.what, out.stderr);
        for name in naming {
            assert!(out.stderr.contains(name), "`{}`: {name:?} is not named in: {}", out.what, out.stderr);
        }
        assert!(!out.stderr.contains("panicked"), "`{}` panicked: {}", out.what, out.stderr);
        out
    }
}

/// Runs `kvfs` with these arguments as the calling user.
pub(crate) fn kvfs<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Outcome {
    let mut command = Command::new(BINARY);
    command.args(args);
    finish(command)
}

/// Runs `kvfs` as an ordinary user.
pub(crate) fn kvfs_as<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(uid: u32, args: I) -> Outcome {
    let mut command = Command::new(BINARY);
    command.args(args);
    if uid != 0 {
        command.uid(uid).gid(uid).env_remove("XDG_RUNTIME_DIR");
    }
    finish(command)
}

/// Runs a prepared command to its end. Its output goes to files, not pipes: a daemon left behind
/// that keeps them open must not keep the test waiting.
pub(crate) fn finish(mut command: Command) -> Outcome {
    let what = format!("{command:?}");
    let mut out = tempfile::tempfile().expect("a file for stdout");
    let mut err = tempfile::tempfile().expect("a file for stderr");
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("stdout"))
        .stderr(err.try_clone().expect("stderr"));
    sys::die_with_parent(&mut command);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
    let status = wait(&mut child, ns::HANG).unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("`{what}` hung");
    });
    let text = |f: &mut std::fs::File| {
        let mut bytes = Vec::new();
        f.rewind().expect("rewind");
        f.read_to_end(&mut bytes).expect("read what the command said");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Outcome { status, stdout: text(&mut out), stderr: text(&mut err), what }
}

/// Waits for a child to end; none when it doesn't within `limit`.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    if let Some(status) = child.try_wait().expect("wait for a child") {
        return Some(status);
    }
    let fd = sys::pidfd(child.id()).expect("pidfd of a child");
    wait_fd(&fd, limit).then(|| child.wait().expect("wait for a child"))
}

/// Waits for the process behind a pidfd to end.
pub(crate) fn wait_fd(pidfd: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(n) if n > 0 => return true,
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}

/// How a process ended, for a message.
pub(crate) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(c), _) => format!("exit status {c}"),
        (_, Some(s)) => format!("signal {s}"),
        _ => "unknown".into(),
    }
}
