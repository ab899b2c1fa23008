//! Work on a mount's set of backings that takes longer than an answer: backings that join and leave, draining,
//! rebalancing.
//!
//! What always holds: one job at a time; what a job has to go on with at the next mount is on a backing's drive
//! before the first file moves. A job that stops, in whatever way, has left every file whole on one backing.

mod drain;
mod job;
mod members;
mod mover;
mod orders;
mod pace;
mod rebalance;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Drives;
use crate::backing::{Backing, Defaults, Drain, SavedJob, State, remember_members};
use crate::direct::Direct;
use crate::fs::Fs;
use crate::index::Slot;
use job::{Ended, Job};
pub use job::{JobKind, JobState, JobStatus};
pub use members::Removal;
pub use orders::Order;

/// How long a mount that ends waits for a job to stop: it does at the next piece of a file.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the kernel may take to hear of what has changed, before a job ends.
const TOLD: Duration = Duration::from_secs(10);

/// Decides how the data of a backing that joins moves; or says why it can't join.
type Decide = Box<dyn Fn(&Backing) -> Result<(), String> + Send + Sync>;

/// What jobs need of the mount.
pub struct Context {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// The ioctl fast path.
    pub direct: Arc<Direct>,
    /// Where it's mounted.
    pub mount_point: PathBuf,
    /// What holds for a backing of which nothing else was said.
    pub defaults: Defaults,
    /// How the data of a new backing moves.
    pub decide: Decide,
}

/// A mount's jobs.
pub struct Jobs {
    context: Arc<Context>,
    drives: Arc<Drives>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// The running job, or the last one.
    job: Option<Arc<Job>>,
    /// Work of an earlier mount that hasn't begun yet.
    waiting: Vec<Work>,
    count: u64,
    /// The mount ends: nothing is begun any more.
    ending: bool,
}

/// What is to be done.
enum Work {
    Drain { slot: Slot, bandwidth: Option<u64> },
    Rebalance { bandwidth: Option<u64>, tolerance: f64 },
    Add { backing: Box<Backing>, made: crate::backing::Made },
    Remove { slot: Slot, force: bool },
}

impl Jobs {
    /// Finds the work that an earlier mount has left: its backings get no new files from now on.
    pub fn new(context: Arc<Context>, drives: Arc<Drives>) -> Arc<Jobs> {
        let mut now = Now::default();
        for backing in context.fs.backings().iter().filter(|b| !b.health.is_out()) {
            match backing.saved_job() {
                Ok(None) => {}
                Ok(Some(SavedJob::Drain { bandwidth })) => {
                    backing.set_state(State::Draining);
                    now.waiting.push(Work::Drain { slot: backing.slot, bandwidth });
                }
                Ok(Some(SavedJob::Rebalance { bandwidth, tolerance })) => {
                    now.waiting.push(Work::Rebalance { bandwidth, tolerance });
                }
                Err(e) => tracing::warn!(
                    "backing {}: its .kvfs-job can't be read ({e}) and is left alone; remove it, or give the order again",
                    backing.path.display()
                ),
            }
        }
        let (drains, leaving) = context.fs.unfinished();
        for (slot, Drain { bandwidth }) in drains {
            // Its drive couldn't be written, or a daemon died before it was.
            if !now.waiting.iter().any(|work| matches!(work, Work::Drain { slot: at, .. } if *at == slot)) {
                now.waiting.push(Work::Drain { slot, bandwidth });
            }
        }
        let going = leaving.into_iter().map(|(slot, force)| Work::Remove { slot, force });
        now.waiting.splice(0..0, going);
        Arc::new(Jobs { context, drives, now: Mutex::new(now) })
    }

    /// The mount answers: leftovers go, and work that an earlier mount has left goes on.
    pub fn resume(self: &Arc<Jobs>) {
        let jobs = self.clone();
        let run = move || {
            let fs = &jobs.context.fs;
            fs.tell_joined();
            fs.remove_leftovers(&fs.scan_report().leftovers);
            if !jobs.now.lock().waiting.is_empty() {
                fs.remove_twins(mover::THREADS);
            }
            jobs.resume_next();
        };
        if let Err(e) = std::thread::Builder::new().name("kvfs-resume".into()).spawn(run) {
            tracing::warn!("no thread to go on with earlier work: {e}");
        }
    }

    fn resume_next(self: &Arc<Jobs>) {
        let mut now = self.now.lock();
        if now.waiting.is_empty() || now.ending || is_running(&now) {
            return;
        }
        let work = now.waiting.remove(0);
        tracing::info!("going on with {} of an earlier mount", self.describe(&work));
        if let Err(e) = self.begin_locked(&mut now, work) {
            tracing::warn!("it can't go on: {e}");
        }
    }

    /// The running job, or the last one.
    pub fn status(&self) -> Option<JobStatus> {
        self.now.lock().job.as_ref().map(|job| job.status())
    }

    /// The running job, if it's one that can't be stopped to go on later: what it is.
    pub fn unstoppable(&self) -> Option<String> {
        let now = self.now.lock();
        let job = now.job.as_ref().filter(|_| is_running(&now))?;
        let stops = matches!(job.kind, JobKind::Drain | JobKind::Rebalance);
        (!stops).then(|| format!("{} {}", job.kind.name(), about(job)))
    }

    /// Begins, if nothing else is running.
    fn begin(self: &Arc<Jobs>, work: Work) -> Result<JobStatus, String> {
        let mut now = self.now.lock();
        self.idle(&now)?;
        self.begin_locked(&mut now, work)
    }

    /// Says what is running, if something is.
    fn idle(&self, now: &Now) -> Result<(), String> {
        if now.ending {
            return Err("the mount is ending".into());
        }
        if let Some(job) = now.job.as_ref().filter(|_| is_running(now)) {
            let about =
                job.backing.as_ref().map(|path| format!(" of {}", path.display())).unwrap_or_default();
            return Err(format!(
                "a {}{about} is under way, and a mount does one such thing at a time; wait for it (`kvfs status` shows it) or call it off (--cancel)",
                job.kind.name()
            ));
        }
        match now.waiting.first() {
            Some(work) => Err(format!("{} of an earlier mount is about to go on", self.describe(work))),
            None => Ok(()),
        }
    }

    fn begin_locked(self: &Arc<Jobs>, now: &mut Now, work: Work) -> Result<JobStatus, String> {
        let path = |slot: Slot| {
            let backings = self.context.fs.backings();
            backings.get(slot).map(|b| (slot, b.path.clone())).ok_or("the backing was removed")
        };
        let (kind, about, bandwidth) = match &work {
            Work::Drain { slot, bandwidth } => (JobKind::Drain, Some(path(*slot)?), *bandwidth),
            Work::Rebalance { bandwidth, .. } => (JobKind::Rebalance, None, *bandwidth),
            Work::Add { backing, .. } => (JobKind::Add, Some((backing.slot, backing.path.clone())), None),
            Work::Remove { slot, .. } => (JobKind::Remove, Some(path(*slot)?), None),
        };
        now.count += 1;
        let job = Arc::new(Job::new(now.count, kind, about, bandwidth));
        now.job = Some(job.clone());
        let status = job.status();
        let (jobs, theirs) = (self.clone(), job.clone());
        let run = move || {
            // A fault of ours ends the job, and not all that would come after it.
            let ended = catch_unwind(AssertUnwindSafe(|| jobs.run(&theirs, work)));
            let ended =
                ended.unwrap_or_else(|_| Err("a fault in kvfs (a panic); see the log and report it".into()));
            jobs.has_ended(&theirs, ended);
        };
        match std::thread::Builder::new().name("kvfs-job".into()).spawn(run) {
            Ok(_) => Ok(status),
            Err(e) => {
                job.end(Err(e.to_string()));
                Err(format!("no thread to work with: {e}"))
            }
        }
    }

    fn run(&self, job: &Job, work: Work) -> Ended {
        let fs = &self.context.fs;
        match work {
            Work::Drain { slot, .. } => drain::drain(fs, job, slot),
            Work::Rebalance { tolerance, .. } => rebalance::rebalance(fs, job, tolerance),
            Work::Add { backing, made } => members::add(&self.context, job, *backing, made),
            Work::Remove { slot, force } => members::remove(&self.context, slot, force),
        }
    }

    fn has_ended(self: &Arc<Jobs>, job: &Job, ended: Ended) {
        // Stopped by the end of the mount, it goes on at the next.
        if matches!(job.kind, JobKind::Add | JobKind::Remove) {
            remember_members(&self.context.fs.backings());
        }
        let is_over = !job.is_stopped() || job.is_cancelled();
        if job.kind == JobKind::Rebalance && is_over {
            self.forget_saved(|saved| matches!(saved, SavedJob::Rebalance { .. }));
        }
        match &ended {
            Ok(_) if !is_over => {}
            Ok(note) => tracing::info!("{}{}: {note}", job.kind.name(), about(job)),
            Err(e) => tracing::warn!("{}{}: {e}", job.kind.name(), about(job)),
        }
        job.end(ended);
        self.resume_next();
    }

    fn describe(&self, work: &Work) -> String {
        let path = |slot: Slot| {
            let backings = self.context.fs.backings();
            backings.get(slot).map_or_else(|| slot.0.to_string(), |b| b.path.display().to_string())
        };
        match work {
            Work::Drain { slot, .. } => format!("the drain of {}", path(*slot)),
            Work::Rebalance { .. } => "the rebalance".into(),
            Work::Add { backing, .. } => format!("adding {}", backing.path.display()),
            Work::Remove { slot, .. } => format!("removing {}", path(*slot)),
        }
    }

    /// The mount has ended: what is under way stops, and goes on at the next mount.
    pub fn stop(&self) {
        let job = {
            let mut now = self.now.lock();
            now.ending = true;
            now.job.clone()
        };
        if let Some(job) = job {
            job.stop(false);
            if !job.ended_within(PATIENCE) {
                tracing::warn!(
                    "a {} doesn't stop; it's cut off, and goes on at the next mount",
                    job.kind.name()
                );
            }
        }
    }

    fn forget_saved(&self, which: impl Fn(&SavedJob) -> bool) {
        for backing in self.context.fs.backings().iter() {
            if let Ok(Some(saved)) = backing.saved_job()
                && which(&saved)
                && let Err(e) = backing.forget_job()
            {
                tracing::warn!("backing {}: its .kvfs-job can't be removed: {e}", backing.path.display());
            }
        }
    }
}

fn is_running(now: &Now) -> bool {
    now.job.as_ref().is_some_and(|job| job.status().state == JobState::Running)
}

fn about(job: &Job) -> String {
    job.backing.as_ref().map(|path| format!(" of {}", path.display())).unwrap_or_default()
}
