//! A process that unmounts for an ordinary user's daemon. That takes `fusermount3`, which is setuid root, and a
//! daemon in its sandbox can start nothing that is more than itself: so this one is started before.
//!
//! What always holds: it unmounts what it was started for and nothing else; it ends with its daemon, in
//! whatever way that ends.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;

use super::mount::{UnmountError, unmount};

/// How it's told, and what it answers; an error is any other line.
const NOW: &str = "now";
const LAZILY: &str = "lazily";
const DONE: &str = "done";
const BUSY: &str = "busy";
const NOT_MOUNTED: &str = "not mounted";

/// The process.
#[derive(Debug)]
pub(super) struct Helper {
    lines: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _process: Child,
}

impl Helper {
    /// Starts it, for one mount point.
    pub(super) fn start(point: &Path) -> io::Result<Helper> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("kvfs").arg("unmount-helper").arg(point).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn()?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(ask), Some(answer)) => {
                Ok(Helper { lines: Mutex::new((ask, BufReader::new(answer))), _process: process })
            }
            _ => Err(io::Error::other("it can't be talked to")),
        }
    }

    /// Has it unmount.
    pub(super) fn unmount(&self, point: &Path, lazy: bool) -> Result<(), UnmountError> {
        let mut answer = String::new();
        let asked = {
            let (ask, answers) = &mut *self.lines.lock();
            writeln!(ask, "{}", if lazy { LAZILY } else { NOW }).and_then(|()| answers.read_line(&mut answer))
        };
        let failed = |e| UnmountError::Io(point.to_owned(), e);
        asked.map_err(failed)?;
        match answer.trim_end() {
            DONE => Ok(()),
            BUSY => Err(UnmountError::Busy(point.to_owned())),
            NOT_MOUNTED => Err(UnmountError::NotMounted(point.to_owned())),
            "" => Err(failed(io::Error::other("the process that unmounts is gone"))),
            error => Err(failed(io::Error::other(error.to_owned()))),
        }
    }
}

/// The process itself: unmounts whenever it's told to, until there's nobody to tell it.
pub(crate) fn serve(point: &Path) -> io::Result<()> {
    // Whoever ends the daemon's group or service by a signal has the daemon unmount first.
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]).thread_block()?;
    for line in io::stdin().lock().lines() {
        let answer = match unmount(point, line? == LAZILY) {
            Ok(()) => DONE.to_owned(),
            Err(UnmountError::Busy(_)) => BUSY.to_owned(),
            Err(UnmountError::NotMounted(_)) => NOT_MOUNTED.to_owned(),
            Err(e) => e.to_string().replace('\n', " "),
        };
        writeln!(io::stdout().lock(), "{answer}")?;
    }
    Ok(())
}
