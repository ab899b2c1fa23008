//! A mount whose daemon is started again when it dies: starting the parent, and being the daemon it starts.
//!
//! What always holds: every daemon of a mount is started with the same words, those of the operator and a few
//! of ours; so one that takes over is configured as the first was.

use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;

use super::Failure;
use super::background::Parent;
use crate::backing::{Backing, Made, SetRecord, prepare_with, restore};
use crate::config::MountConfig;
use crate::control::Supervised;
use crate::direct::RecoveredBuffers;
use crate::fs::Recovered;
use crate::supervise::{
    Handover, HandoverOutcome, Keeper, Kept, Lifeline, Notify, Start, State, Survival, Tag, Work, supervise,
};

/// Our own words to a daemon that a parent starts.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct SupervisedArgs {
    /// A parent starts this process, and keeps what it needs
    #[arg(long, hide = true)]
    supervised: bool,

    /// Where the first daemon says how it went
    #[arg(long, hide = true, value_name = "FD")]
    ready_fd: Option<RawFd>,

    /// Where the operator was: paths may be relative to it
    #[arg(long, hide = true, value_name = "DIR")]
    started_in: Option<PathBuf>,
}

/// A daemon as it begins: what it has from one before it, and to whom it says how it went.
pub(super) struct Beginning {
    pub(super) survival: Survival,
    pub(super) kept: Kept,
    /// The session's device, if a daemon before had it.
    pub(super) device: Option<OwnedFd>,
    pub(super) parent: Parent,
}

impl Beginning {
    /// Nobody has been before, and nobody will come after.
    pub(super) fn alone(parent: Parent) -> Beginning {
        Beginning { survival: Survival::default(), kept: Kept::default(), device: None, parent }
    }

    /// What there is to tell of it.
    pub(super) fn status(&self, recovered: Recovered, buffers: RecoveredBuffers) -> Supervised {
        let state = self.survival.state.as_ref();
        Supervised {
            by: self.survival.keeper.name().into(),
            daemons: state.map_or(1, |state| state.starts()),
            last_end: state.filter(|state| state.is_recovered()).map(|_| self.kept.how()),
            files: recovered.handles,
            lost: recovered.lost,
            buffers: buffers.buffers,
            lost_buffers: buffers.lost,
        }
    }

    /// The backings: those that a daemon before had, else those that the operator names.
    pub(super) fn backings(&mut self, config: &MountConfig) -> Result<(Vec<Backing>, Made), Failure> {
        if self.device.is_none() {
            let prepared =
                prepare_with(&config.backings, &config.mount_point, config.defaults, config.missing);
            return Ok(prepared?);
        }
        let set = self.survival.state.as_ref().and_then(|state| SetRecord::parse(&state.set()?));
        let set = set.ok_or_else(|| {
            Failure::other("the daemon before has not written down which backings the mount has; mount anew")
        })?;
        let mut without = Vec::new();
        let backings = restore(&set, |slot| {
            let kept = self.kept.take(Tag::Lock(slot.0));
            without.extend(kept.is_none().then_some(slot));
            kept
        })?;
        // Whoever takes in a drive that's away locks it anew.
        for away in backings.iter().filter(|backing| backing.is_stand_in) {
            self.survival.keeper.release(Tag::Lock(away.slot.0));
        }
        // Of a backing that had left a moment before.
        self.kept.locks().for_each(|tag| self.survival.keeper.release(tag));
        for backing in backings.iter().filter(|backing| without.contains(&backing.slot)) {
            backing.keep_lock(&self.survival.keeper);
        }
        Ok((backings, Made::default()))
    }

    /// The words that the mount was started with, if a daemon before has kept them.
    pub(super) fn started(&self) -> Option<Vec<OsString>> {
        self.survival.state.as_ref().filter(|_| self.device.is_some())?.started()
    }

    /// Keeps them for daemons after this one.
    pub(super) fn keep_started(&self, words: &[OsString]) {
        if self.survival.state.as_ref().is_some_and(|state| !state.keep_started(words)) {
            tracing::warn!("there's no room to keep the options; a daemon after this one reads them anew");
        }
    }

    /// This daemon is about to be ready: that's what became of an upgrade.
    pub(super) fn settle_upgrade(&self) {
        let state = self.survival.state.as_ref().filter(|state| state.is_recovered());
        let settled = state.and_then(|state| Handover::settle(state, self.kept.fell_back));
        match settled.as_ref().map(|upgrade| (&upgrade.outcome, upgrade)) {
            None => {}
            Some((HandoverOutcome::Failed(why), upgrade)) => {
                tracing::error!("not upgraded to kvfs {}: {why}", upgrade.to);
            }
            Some((_, upgrade)) => tracing::info!(
                "upgraded from kvfs {} to {}; requests waited {} ms",
                upgrade.from,
                upgrade.to,
                upgrade.pause_ms
            ),
        }
    }

    fn with(keeper: Keeper, mut kept: Kept, parent: Parent) -> Result<Beginning, Failure> {
        let device = kept.take(Tag::Device);
        if device.is_none() {
            // Of a mount that never came to be, or has ended: nobody will ask for it.
            kept.drain().for_each(|tag| keeper.release(tag));
        }
        let state = match kept.take(Tag::State).filter(|_| device.is_some()) {
            Some(fd) => State::take_over(fd),
            None => State::create(),
        };
        let state = Arc::new(state.map_err(Failure::other)?);
        let work = Arc::new(Work::new(Some(state.clone()), kept.crashed()));
        let lifeline = Lifeline::new(&keeper, state.starts(), kept.lifelines()).map_err(Failure::other)?;
        let (keeper, lifeline) = (Arc::new(keeper), Arc::new(lifeline));
        let survival = Survival { state: Some(state), keeper, work, lifeline };
        Ok(Beginning { survival, kept, device, parent })
    }
}

impl SupervisedArgs {
    /// Whether this process is one that a parent started; then what it has.
    pub(super) fn begin(&self) -> Result<Option<Beginning>, Failure> {
        if !self.supervised {
            return Ok(None);
        }
        let (keeper, kept) = Keeper::parent().map_err(|e| {
            Failure::other(format!("--supervised is for kvfs itself, not for operators: {e}"))
        })?;
        if let Some(dir) = &self.started_in {
            // If it has gone only relative paths are missed.
            let _ = std::env::set_current_dir(dir);
        }
        let beginning = Beginning::with(keeper, kept, Parent::none())?;
        let first = beginning.device.is_none();
        // The pipe is there for the first daemon alone.
        let parent = match self.ready_fd.filter(|_| first) {
            Some(fd) => {
                // SAFETY: the parent left it open for this process at this number.
                let pipe = unsafe { OwnedFd::from_raw_fd(fd) };
                // What this process starts mustn't keep whoever waits at the other end.
                rustix::io::fcntl_setfd(&pipe, FdFlags::CLOEXEC).map_err(Failure::other)?;
                Parent::at(pipe)
            }
            None => Parent::none(),
        };
        Ok(Some(Beginning { parent, ..beginning }))
    }

    /// Paths have been looked at: a daemon in the background keeps no directory busy.
    pub(super) fn let_go(&self) {
        if self.ready_fd.is_some() {
            let _ = std::env::set_current_dir("/");
        }
    }
}

/// systemd, if it waits for a word of this process.
pub(super) fn notify() -> Result<Option<Notify>, Failure> {
    Notify::systemd().map_err(|e| Failure::other(format!("systemd can't be told ($NOTIFY_SOCKET): {e}")))
}

/// What systemd keeps for this unit, if it does.
pub(super) fn by_systemd() -> Result<Option<Beginning>, Failure> {
    match Keeper::systemd() {
        Ok(Some((keeper, kept))) => Beginning::with(keeper, kept, Parent::none()).map(Some),
        Ok(None) => Ok(None),
        Err(e) => Err(Failure::other(format!("systemd's store of descriptors can't be used: {e}"))),
    }
}

/// Becomes the parent of the daemons that serve the mount. The exit status of the last one.
/// `said`: the line that the mount is started with.
pub(super) fn be_parent(
    said: &[OsString],
    ready: Option<OwnedFd>,
    started_in: Option<PathBuf>,
) -> Result<u8, Failure> {
    // What is kept is open here.
    super::mount::raise_file_limit();
    let executable = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::other(format!("kvfs's own executable can't be opened: {e}")))?;
    let mut ours: Vec<OsString> = vec!["--supervised".into()];
    if let Some(fd) = &ready {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(Failure::other)?;
        ours.extend(["--ready-fd".into(), fd.as_raw_fd().to_string().into()]);
    }
    if let Some(dir) = started_in {
        ours.extend(["--started-in".into(), dir.into()]);
    }
    // Behind the subcommand: the line may end with `--` and paths.
    let mut words = said.to_vec();
    let at = words.len().min(2);
    words.splice(at..at, ours);
    let text = |word: OsString| CString::new(word.into_vec()).map_err(Failure::other);
    let words = words.into_iter().map(text).collect::<Result<_, _>>()?;
    let variable = |(name, value): (OsString, OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).map_err(Failure::other)
    };
    let environment = std::env::vars_os().map(variable).collect::<Result<_, _>>()?;
    supervise(Start { executable, words, environment, ready, notify: notify()? })
        .map_err(|e| Failure::other(format!("the daemon can't be started: {e}")))
}
