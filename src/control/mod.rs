//! The control socket: what a running mount tells, and is told.
//!
//! What always holds: the socket belongs to the mount's owner alone (mode 0600 in a directory of theirs), and both
//! ends make sure that the other is root or that owner; it's
//! found by the mount's device number, so nobody has to touch the mount to ask about it; one question, one
//! answer, each one line of JSON. An answer of many parts is a line for each, and one that says that it was the last.

mod daemon;
mod drives;
mod jobs;
mod listing;
mod passed;
mod passing;
mod server;
mod stats;
mod status;
mod stream;
mod upgrade;

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use daemon::Daemon;
pub use drives::Drives;
pub use jobs::{Context, JobKind, JobState, JobStatus, Jobs, Order, Removal};
pub use listing::{Listed, ListedKind, Name, Page, Wanted, each_listed};
pub use passed::count_passed_through;
pub use server::Server;
pub use stats::Stats;
pub use status::{
    About, BackingStatus, HealthStatus, IndexStatus, PassthroughStatus, RuleStatus, Status, Supervised,
};
pub use stream::{Given, Parts, Writer, ask_each};
pub use upgrade::{Running, Successor, Upgrades};

/// A question or an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// How is it? Answered by a [`Status`].
    Status,
    /// What has it counted? Answered by [`Stats`].
    Stats {
        /// And how is it?
        status: bool,
    },
    /// Make room. Answered by an [`EvictPlan`](crate::retention::EvictPlan); the work is done later.
    Evict {
        /// Only say what would go.
        dry_run: bool,
        /// Bytes to be freed on each backing; without it, what the watermarks say.
        bytes: Option<u64>,
        /// One backing alone, by slot or path.
        backing: Option<String>,
    },
    /// How far is the work on the backings? Answered by the running [`JobStatus`], the last one, or null.
    Job,
    /// Do this to the set of backings.
    Order(Order),
    /// What would a successor have to know? Answered by a [`Running`].
    Running,
    /// Hand over to the executable that comes with this. Answered by null, or not at all: from then on the status
    /// tells what came of it.
    Upgrade(Successor),
    /// What is in a directory, or which file is this? Answered by a [`Page`].
    List {
        /// The path in the mount; empty for its root.
        path: Name,
        /// Where to go on in a directory.
        from: u32,
        /// What is to be told.
        wanted: Wanted,
    },
    /// Remove the copy of this path that a backing has beside the file. Answered by null.
    DropShadow {
        /// The path in the mount.
        path: Name,
        /// The backing.
        slot: u8,
    },
    /// What the scan at the start couldn't read? Answered by a list of [`Unread`].
    Unread,
    /// What is done, as it's done? Answered by many [`Event`](crate::trace::Event), until whoever asks goes.
    Trace(crate::trace::Filter),
    /// What is logged? With a filter: log this from now on. Answered by what is logged then.
    Log {
        /// A level, or filters as `KVFS_LOG` has them.
        filter: Option<String>,
    },
}

/// Something that a scan couldn't read, or that isn't shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unread {
    /// On which backing.
    pub slot: u8,
    /// The path, for people.
    pub path: String,
    /// What's wrong with it.
    pub what: String,
    /// It can be read, but something else has its path.
    pub is_hidden: bool,
}

/// What comes back: what was asked for, or a sentence that says why not.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done(serde_json::Value),
    Refused(String),
    /// One of many.
    Part(serde_json::Value),
}

/// Why a daemon gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It can't be reached, or answers something else.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

impl From<serde_json::Error> for AskError {
    fn from(e: serde_json::Error) -> AskError {
        AskError::Io(e.into())
    }
}

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where root's mounts have their sockets.
const ROOT_DIR: &str = "/run/kvfs";

fn socket_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return ROOT_DIR.into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("kvfs"),
        _ => std::env::temp_dir().join(format!("kvfs-{}", rustix::process::geteuid().as_raw())),
    }
}

/// The directory of the caller's own sockets, made if it isn't there; nobody else may look into it.
pub fn runtime_dir() -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
    let dir = socket_dir();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let meta = std::fs::symlink_metadata(&dir)?;
    // In a directory that all may write, another user may have been first.
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to another user", dir.display())));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(dir)
}

/// The user at the other end.
fn peer(stream: &UnixStream) -> Option<u32> {
    let peer = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials);
    peer.ok().map(|peer| peer.uid())
}

/// Whether a user may be at the other end: root, and whoever this process belongs to.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn socket_path(device: (u32, u32)) -> PathBuf {
    socket_dir().join(format!("{}:{}.sock", device.0, device.1))
}

/// Asks the daemon of the mount with this device number.
pub fn ask<T: DeserializeOwned>(device: (u32, u32), question: &Question) -> Result<T, AskError> {
    ask_with(device, question, None)
}

/// The same with a descriptor.
pub fn ask_with<T: DeserializeOwned>(
    device: (u32, u32),
    question: &Question,
    fd: Option<BorrowedFd<'_>>,
) -> Result<T, AskError> {
    let stream = put(device, question, fd)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer)? {
        Answer::Done(value) => Ok(serde_json::from_value(value)?),
        Answer::Refused(why) => Err(AskError::Refused(why)),
        Answer::Part(_) => Err(io::Error::other("more than one answer").into()),
    }
}

/// Puts a question.
fn put(device: (u32, u32), question: &Question, fd: Option<BorrowedFd<'_>>) -> Result<UnixStream, AskError> {
    let mut stream = UnixStream::connect(socket_path(device))?;
    if !peer(&stream).is_some_and(is_trusted) {
        return Err(io::Error::other("somebody else's process answers for this mount").into());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(question)?;
    line.push('\n');
    let sent = passing::send(&stream, line.as_bytes(), fd)?;
    stream.write_all(&line.as_bytes()[sent..])?;
    Ok(stream)
}
