//! Work that a mount does while a command looks on.
//!
//! What always holds: the work is the daemon's; a command that ends, in whatever way, leaves it going, and
//! says so.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Failure;
use super::status::bytes;
use crate::backing::mountinfo::{Mount, named};
use crate::control::{AskError, JobState, JobStatus, Order, Question, ask};
use crate::fuse::FS_TYPE;

/// How often the daemon is asked.
const TICK: Duration = Duration::from_millis(200);
/// How long it may not answer.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a line is written where it's no terminal.
const LINE: Duration = Duration::from_secs(10);

/// The kvfs mount that is meant.
pub(super) fn mount_of(point: &Path) -> Result<Mount, Failure> {
    let ours = named(point).map_err(Failure::other)?.filter(|mount| mount.fs_type == FS_TYPE);
    ours.ok_or_else(|| Failure { status: 50, message: format!("no kvfs is mounted at {}", point.display()) })
}

/// Gives an order.
pub(super) fn order<T: serde::de::DeserializeOwned>(mount: &Mount, order: Order) -> Result<T, Failure> {
    ask(mount.device, &Question::Order(order)).map_err(|e| failure(mount, e))
}

/// The mount's running job, or the last one.
fn job(mount: &Mount) -> Result<Option<JobStatus>, Failure> {
    ask(mount.device, &Question::Job).map_err(|e| failure(mount, e))
}

pub(super) fn failure(mount: &Mount, e: AskError) -> Failure {
    match e {
        AskError::Refused(why) => Failure { status: 52, message: why },
        AskError::Io(e) => {
            Failure::no_answer(format!("the daemon of {} doesn't answer ({e})", mount.point.display()))
        }
    }
}

/// A backing as the daemon knows it: a slot's number, or a path freed from symbolic links.
pub(super) fn backing_name(name: &str) -> Result<String, Failure> {
    if name.parse::<u8>().is_ok() {
        return Ok(name.to_owned());
    }
    let path = Path::new(name.strip_prefix("file://").unwrap_or(name));
    let real = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).map_err(Failure::other)?;
    text(real)
}

/// A path for the daemon.
pub(super) fn text(path: PathBuf) -> Result<String, Failure> {
    let text = path.into_os_string().into_string();
    text.map_err(|path| Failure::bad_value(format!("{} is no UTF-8", path.display())))
}

/// Bytes a second as an option says it.
pub(super) fn bandwidth(text: Option<&str>) -> Result<Option<u64>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let number = text.strip_suffix("/s").unwrap_or(text);
    match crate::backing::parse_bytes(number) {
        Ok(0) => Err(Failure::bad_value("--bandwidth 0 would never end; leave it out for no limit")),
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) => Err(Failure::bad_value(format!("--bandwidth: {e}"))),
    }
}

/// Shows how far a job is until it ends; Ctrl-C ends the looking on.
pub(super) fn follow(mount: &Mount, begun: &JobStatus) -> Result<(), Failure> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().map_err(Failure::other)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(Failure::other)?;
    let terminal = io::stderr().is_terminal();
    let mut shown = false;
    let mut told = Instant::now();
    let mut silent_since = None;
    loop {
        match job(mount) {
            // A daemon that dies, or makes way for another, is followed by one that goes on.
            Err(failure) => {
                let since: &mut Instant = silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > SILENCE {
                    return Err(failure);
                }
            }
            Ok(status) => {
                let status = status.filter(|job| is_it(job, begun, silent_since.is_some()));
                let Some(status) = status else { return Err(lost(mount, begun, silent_since.is_some())) };
                if status.state != JobState::Running {
                    if terminal && shown {
                        eprintln!();
                    }
                    return end(&status);
                }
                if terminal {
                    let _ = write!(io::stderr(), "\r\x1b[K{}", line(&status));
                    shown = true;
                } else if told.elapsed() >= LINE {
                    eprintln!("{}", line(&status));
                    told = Instant::now();
                }
            }
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
        if poll(&mut fds, tick).is_ok_and(|n| n > 0) {
            if terminal {
                eprintln!();
            }
            eprintln!("the {} goes on; `kvfs status {}` shows it", begun.kind.name(), mount.point.display());
            return Ok(());
        }
    }
}

/// Whether a job is the one that was begun; another daemon numbers them anew.
fn is_it(job: &JobStatus, begun: &JobStatus, by_another: bool) -> bool {
    job.kind == begun.kind && job.backing == begun.backing && (job.id == begun.id || by_another)
}

/// The job isn't there any more.
fn lost(mount: &Mount, begun: &JobStatus, by_another: bool) -> Failure {
    let message = match by_another {
        false => "another order has come in between; see the log".into(),
        true => format!(
            "another daemon serves the mount by now, and has brought the {} to its end or not begun it; `kvfs backing list {}` shows the set",
            begun.kind.name(),
            mount.point.display()
        ),
    };
    Failure { status: 53, message }
}

/// What came of it.
fn end(status: &JobStatus) -> Result<(), Failure> {
    let (kind, about) = (status.kind.name(), about(status));
    match status.state {
        JobState::Done if status.moved > 0 => {
            println!("{kind}{about}: {}: {}", moved(status), status.note);
            Ok(())
        }
        JobState::Done | JobState::Running => {
            println!("{kind}{about}: {}", status.note);
            Ok(())
        }
        JobState::Failed => {
            let why = status.error.as_deref().unwrap_or("see the log");
            Err(Failure { status: 53, message: format!("{kind}{about}: {why} ({})", moved(status)) })
        }
        JobState::Cancelled => Err(Failure {
            status: 53,
            message: format!(
                "{kind}{about}: called off ({}; what was moved stays where it is)",
                moved(status)
            ),
        }),
    }
}

fn about(status: &JobStatus) -> String {
    status.backing.as_ref().map(|path| format!(" of {}", path.display())).unwrap_or_default()
}

fn moved(status: &JobStatus) -> String {
    format!("{} files moved, {} in {} s", status.moved, bytes(status.bytes), status.since_s)
}

/// A job in one line, as `kvfs status` shows it too.
pub(super) fn line(status: &JobStatus) -> String {
    let mut line = format!("{}{}: ", status.kind.name(), about(status));
    if status.state != JobState::Running {
        let state = match status.state {
            JobState::Failed => "failed",
            JobState::Cancelled => "called off",
            _ => "done",
        };
        line += &format!("{state}, ");
    }
    line += &format!(
        "{} files moved, {} left, {} at {}/s",
        status.moved,
        status.left,
        bytes(status.bytes),
        bytes(status.rate)
    );
    if let Some(limit) = status.bandwidth {
        line += &format!(" of {}/s", bytes(limit));
    }
    let note = Some(&status.note).filter(|note| !note.is_empty());
    for more in note.into_iter().chain(&status.error) {
        line += &format!("; {more}");
    }
    line
}
