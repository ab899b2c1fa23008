//! Handing a mount over to another executable.
//!
//! What always holds: whoever orders it has asked the new executable before. Nothing waits until this daemon has
//! told the parent; then its work ends where it can, requests that come are left to the next daemon, and this one
//! goes. What it was at then is sent again, as after a crash.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use serde::{Deserialize, Serialize};

use super::Jobs;
use crate::backing::{Backing, Health};
use crate::direct::Direct;
use crate::fs::{Fs, fault_point};
use crate::supervise::{HANDED_OVER, Handover, HandoverOutcome, State, Survival};
use crate::version;

/// How long requests at work may take to end; those that are longer are sent again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer takes to be written, at most: one that isn't is given by the next daemon.
const WRITTEN: Duration = Duration::from_millis(2);

/// What the running daemon is, and how it was started: for the one that is to take over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Running {
    /// Its version, and build if there is one.
    pub version: String,
    /// The version of what it hands over.
    pub state_version: u8,
    /// Its words, the program first.
    pub words: Vec<OsString>,
    /// Where it was started, which relative paths are relative to.
    pub dir: PathBuf,
}

/// An order to hand over; with it comes the executable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Successor {
    /// A number for the order, to find in the status what came of it.
    pub id: uuid::Uuid,
    /// Its version.
    pub version: String,
    /// What it's called.
    pub path: PathBuf,
}

/// A mount's upgrades.
pub struct Upgrades {
    fs: Arc<Fs>,
    direct: Arc<Direct>,
    jobs: Arc<Jobs>,
    survival: Survival,
    is_under_way: AtomicBool,
}

impl Upgrades {
    /// Of this mount.
    pub fn new(fs: Arc<Fs>, direct: Arc<Direct>, jobs: Arc<Jobs>, survival: Survival) -> Arc<Upgrades> {
        Arc::new(Upgrades { fs, direct, jobs, survival, is_under_way: AtomicBool::new(false) })
    }

    /// The last one.
    pub fn last(&self) -> Option<Handover> {
        Handover::last(self.survival.state.as_ref()?)
    }

    /// What a successor has to know, or why there can't be one.
    pub fn running(&self) -> Result<Running, String> {
        let state = self.state()?;
        Ok(Running {
            version: version::described().into(),
            state_version: version::state_version(),
            dir: started_in().or_else(|| std::env::current_dir().ok()).unwrap_or_else(|| "/".into()),
            words: state.started().unwrap_or_else(|| std::env::args_os().collect()),
        })
    }

    fn state(&self) -> Result<&Arc<State>, String> {
        let state = self.survival.state.as_ref().filter(|_| self.survival.keeper.is_there());
        state.ok_or_else(|| {
            "nobody would start the new daemon: this mount is without a parent (--supervise off, or in the foreground); unmount it and mount it with --supervise on".into()
        })
    }

    /// Hands over, if nothing is in the way: from the answer on it's done.
    pub fn begin(self: &Arc<Upgrades>, to: Successor, executable: Option<OwnedFd>) -> Result<(), String> {
        let state = self.state()?.clone();
        let executable = executable.ok_or("no executable came with the order")?;
        is_executable(&executable, &to)?;
        if let Some(job) = self.jobs.unstoppable() {
            return Err(format!("{job} is under way; wait until it has ended (`kvfs status` shows it)"));
        }
        let hung = |b: &&Arc<Backing>| b.health.get() == Health::Hung;
        if let Some(backing) = self.fs.backings().iter().find(hung) {
            return Err(format!(
                "the drive of backing {} doesn't answer, so this daemon couldn't end; wait until it does (`kvfs status` shows it)",
                backing.path.display()
            ));
        }
        if self.is_under_way.swap(true, SeqCst) {
            return Err("an upgrade of this mount is under way".into());
        }
        let begun = self.tell_parent(&state, to, &executable);
        if begun.is_err() {
            self.is_under_way.store(false, SeqCst);
        }
        let handover = begun?;
        let upgrades = self.clone();
        let go = move || upgrades.hand_over(&state, handover);
        // The parent has been told: without a thread the next daemon comes when this one ends.
        std::thread::Builder::new().name("kvfs-upgrade".into()).spawn(go).map(drop).map_err(|e| {
            format!("no thread to hand over with ({e}); the new executable serves when this daemon ends")
        })
    }

    fn tell_parent(&self, state: &State, to: Successor, executable: &OwnedFd) -> Result<Handover, String> {
        let versions = (version::described().to_owned(), to.version);
        let mut handover = Handover::new(to.id, versions, to.path, executable.as_fd())
            .map_err(|e| format!("the executable can't be looked at: {e}"))?;
        handover.keep(state);
        if let Err(e) = self.survival.keeper.upgrade(executable.as_fd()) {
            let why = format!(
                "{} can't be told ({e}), so nobody would start the new daemon; unmount, and mount anew",
                self.survival.keeper.name()
            );
            handover.outcome = HandoverOutcome::Failed(why.clone());
            handover.keep(state);
            return Err(why);
        }
        Ok(handover)
    }

    fn hand_over(&self, state: &State, handover: Handover) {
        // With or without a fault of ours: clients wait from somewhere in there on.
        let _ = catch_unwind(AssertUnwindSafe(|| self.end_work(state, handover)));
        // Not through the end of the mount: all that is kept stays.
        // SAFETY: ends this process, whose threads may be anywhere, as after a crash.
        unsafe { libc::_exit(HANDED_OVER.into()) }
    }

    fn end_work(&self, state: &State, mut handover: Handover) {
        tracing::info!("handing over to kvfs {} ({})", handover.to, handover.executable.display());
        fault_point("upgrade told");
        version::test_point("end");
        // What clients don't wait for, first.
        self.jobs.stop();
        self.fs.retention.stop();
        handover.pauses();
        handover.keep(state);
        let door = &self.fs.work.door;
        door.close();
        fault_point("upgrade closed");
        if !door.is_empty_within(PATIENCE, || self.direct.in_flight() == 0) {
            tracing::info!("requests that take long are left to the next daemon");
        }
        std::thread::sleep(WRITTEN);
    }
}

/// Where the first daemon was started, if it went to the background: by our own word to those after it.
fn started_in() -> Option<PathBuf> {
    std::env::args_os().skip_while(|word| word != "--started-in").nth(1).map(PathBuf::from)
}

/// What will be executed can be.
fn is_executable(executable: &OwnedFd, to: &Successor) -> Result<(), String> {
    let is_regular = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
    if fstat(executable).is_ok_and(|stat| is_regular(stat.st_mode) && stat.st_mode & 0o111 != 0) {
        return Ok(());
    }
    Err(format!("{} is no file that can be executed; name the kvfs that is to take over", to.path.display()))
}
