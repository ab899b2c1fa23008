//! What an operator orders: the checks before a job begins.
//!
//! What always holds: an order that's refused has changed nothing, and the refusal says what to do instead.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::members::Removal;
use super::{JobKind, JobStatus, Jobs, Work, is_running};
use crate::backing::{Backing, Drain, Health, SavedJob, Spec, State, prepare_one};

/// An order about the set of backings. A backing is named by its path or its slot's number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A directory joins, with flags as in `--backing`. Answered by a [`JobStatus`].
    Add {
        /// Path and flags.
        spec: String,
    },
    /// All files leave a backing. Answered by a [`JobStatus`].
    Drain {
        /// Which.
        backing: String,
        /// Bytes a second at most.
        bandwidth: Option<u64>,
    },
    /// A drain is called off, under way or done. Answered by a sentence.
    CancelDrain {
        /// Which backing's.
        backing: String,
    },
    /// What would go with a backing. Answered by a [`Removal`].
    PreviewRemoval {
        /// Which.
        backing: String,
    },
    /// A backing goes. Answered by a [`JobStatus`].
    Remove {
        /// Which.
        backing: String,
        /// Though it has files.
        force: bool,
    },
    /// A backing takes something else from now on. Answered by a sentence.
    Set {
        /// Which.
        backing: String,
        /// `rw`, `ro` or `no-create`.
        state: String,
    },
    /// Files move until the backings are equally full. Answered by a [`JobStatus`].
    Rebalance {
        /// Bytes a second at most.
        bandwidth: Option<u64>,
        /// How much the backings may differ, in percent of their size.
        tolerance: f64,
    },
    /// The rebalance is called off. Answered by a sentence.
    CancelRebalance,
}

/// An order's answer, or a sentence that says why it's refused.
type Answer = Result<serde_json::Value, String>;

fn told(answer: impl Serialize) -> Answer {
    serde_json::to_value(answer).map_err(|e| e.to_string())
}

impl Jobs {
    /// Carries an order out, or begins to.
    pub fn order(self: &Arc<Jobs>, order: Order) -> Answer {
        match order {
            Order::Add { spec } => told(self.add(&spec)?),
            Order::Drain { backing, bandwidth } => told(self.drain(&*self.named(&backing)?, bandwidth)?),
            Order::CancelDrain { backing } => {
                let backing = self.named(&backing)?;
                if backing.state() != State::Draining {
                    return Err(format!("backing {} is not being drained", backing.path.display()));
                }
                told(self.set(&backing, State::ReadWrite)?)
            }
            Order::PreviewRemoval { backing } => told(self.preview(&*self.named(&backing)?)?),
            Order::Remove { backing, force } => told(self.remove(&*self.named(&backing)?, force)?),
            Order::Set { backing, state } => told(self.set(&*self.named(&backing)?, state.parse()?)?),
            Order::Rebalance { bandwidth, tolerance } => told(self.rebalance(bandwidth, tolerance)?),
            Order::CancelRebalance => told(self.cancel_rebalance()?),
        }
    }

    /// The backing that is meant.
    fn named(&self, name: &str) -> Result<Arc<Backing>, String> {
        let backings = self.context.fs.backings();
        let slot = name.parse().ok();
        let found = backings.iter().find(|b| slot == Some(b.slot.0) || b.path == Path::new(name));
        found.cloned().ok_or_else(|| {
            let known: Vec<String> =
                backings.iter().map(|b| format!("{} {}", b.slot.0, b.path.display())).collect();
            format!("{name} is no backing of this mount; there are {}", known.join(", "))
        })
    }

    fn add(self: &Arc<Jobs>, spec: &str) -> Result<JobStatus, String> {
        let spec: Spec = spec.parse()?;
        let fs = &self.context.fs;
        if spec.shared && !fs.others_change() {
            return Err(format!(
                "this mount was started without shared backings, so the kernel keeps what it was told for long; mount it again with {}:shared",
                spec.path.display()
            ));
        }
        // Nothing is made for an order that is refused anyway.
        self.idle(&self.now.lock())?;
        let there: Vec<_> = fs.backings().iter().map(|b| b.path.clone()).collect();
        let twin = |id| fs.backings().iter().find(|b| b.id() == id).map(|b| b.path.clone());
        let found = std::cell::RefCell::new(None);
        let slot = |id| {
            *found.borrow_mut() = twin(id);
            fs.slot_for(id)
        };
        let (backing, made) =
            prepare_one(&spec, &there, slot, &self.context.mount_point, self.context.defaults)
                .map_err(|e| e.to_string())?;
        if let Some(twin) = found.into_inner() {
            return Err(crate::backing::SetupError::SameIdentity(twin, backing.path).to_string());
        }
        (self.context.decide)(&backing)?;
        match backing.saved_job() {
            Ok(Some(SavedJob::Drain { .. })) => {
                // It was being drained when it left, and hasn't been told otherwise.
                backing.set_state(State::Draining);
            }
            Ok(_) => {}
            Err(e) => {
                return Err(format!("backing {}: its .kvfs-job can't be read: {e}", backing.path.display()));
            }
        }
        self.begin(Work::Add { backing: Box::new(backing), made })
    }

    fn drain(self: &Arc<Jobs>, backing: &Backing, bandwidth: Option<u64>) -> Result<JobStatus, String> {
        let mut now = self.now.lock();
        self.idle(&now)?;
        if backing.health.is_out() {
            return Err(format!("backing {} is out: {}", backing.path.display(), backing.health.get()));
        }
        let takes = |b: &&Arc<Backing>| b.slot != backing.slot && b.is_open_to_files();
        if self.context.fs.backings().iter().find(takes).is_none() {
            return Err(format!(
                "no other backing takes new files, so those of {} have nowhere to go; add one, or set one rw",
                backing.path.display()
            ));
        }
        match backing.save_job(&SavedJob::Drain { bandwidth }) {
            // A drive that its file system has made read-only can be emptied all the same.
            Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                tracing::warn!(
                    "backing {} is on a read-only file system: its drain won't go on at the next mount, and its files stay there as older copies",
                    backing.path.display()
                );
            }
            saved => saved.map_err(|e| {
                let path = backing.path.display();
                format!("backing {path}: what is to be done can't be written down there: {e}")
            })?,
        }
        self.context.fs.record_state(backing.slot, backing.state(), Some(Drain { bandwidth }));
        backing.set_state(State::Draining);
        tracing::info!("draining {}", backing.path.display());
        self.begin_locked(&mut now, Work::Drain { slot: backing.slot, bandwidth })
    }

    fn rebalance(self: &Arc<Jobs>, bandwidth: Option<u64>, tolerance: f64) -> Result<JobStatus, String> {
        if !(0.0..=100.0).contains(&tolerance) {
            return Err(format!("a tolerance of {tolerance} % can't be; it's 0 to 100"));
        }
        let mut now = self.now.lock();
        self.idle(&now)?;
        let backings = self.context.fs.backings();
        let first = backings.iter().find(|b| b.state() == State::ReadWrite && b.is_open_to_files());
        let first = first.ok_or("no backing takes new files; set one rw")?;
        first.save_job(&SavedJob::Rebalance { bandwidth, tolerance }).map_err(|e| {
            format!("backing {}: what is to be done can't be written down there: {e}", first.path.display())
        })?;
        tracing::info!("rebalancing");
        self.begin_locked(&mut now, Work::Rebalance { bandwidth, tolerance })
    }

    fn cancel_rebalance(&self) -> Result<String, String> {
        let job = {
            let mut now = self.now.lock();
            now.waiting.retain(|work| !matches!(work, Work::Rebalance { .. }));
            now.job.clone().filter(|job| is_running(&now) && job.kind == JobKind::Rebalance)
        };
        self.forget_saved(|saved| matches!(saved, SavedJob::Rebalance { .. }));
        let Some(job) = job else { return Err("no rebalance is under way".into()) };
        job.stop(true);
        Ok("the rebalance is called off; what was moved stays where it is".into())
    }

    fn preview(&self, backing: &Backing) -> Result<Removal, String> {
        self.may_go(backing)?;
        let losses = self.context.fs.losses(backing.slot);
        Ok(Removal {
            path: backing.path.clone(),
            files: losses.files,
            bytes: losses.bytes,
            shadows: losses.shadows,
            dirs: losses.dirs,
            open: losses.open,
        })
    }

    fn may_go(&self, backing: &Backing) -> Result<(), String> {
        if self.context.fs.backings().len() > 1 {
            return Ok(());
        }
        Err(format!("{} is the last backing of this mount; `kvfs umount` ends it", backing.path.display()))
    }

    fn remove(self: &Arc<Jobs>, backing: &Backing, force: bool) -> Result<JobStatus, String> {
        let mut now = self.now.lock();
        self.idle(&now)?;
        self.may_go(backing)?;
        let losses = self.context.fs.losses(backing.slot);
        let (files, path) = (losses.files + losses.shadows, backing.path.display());
        if !force && (files > 0 || losses.dirs > 0) {
            let what = if files > 0 {
                format!("has {files} files")
            } else {
                format!("alone has {} directories", losses.dirs)
            };
            return Err(format!(
                "backing {path} {what}; `kvfs backing drain` moves all to the others (--force removes it with what it has)"
            ));
        }
        self.begin_locked(&mut now, Work::Remove { slot: backing.slot, force })
    }

    fn set(&self, backing: &Backing, state: State) -> Result<String, String> {
        let path = backing.path.display();
        let draining = backing.state() == State::Draining;
        if draining {
            let mut now = self.now.lock();
            now.waiting.retain(|work| !matches!(work, Work::Drain { slot, .. } if *slot == backing.slot));
            let is_it = |job: &Arc<super::Job>| job.kind == JobKind::Drain && job.slot == Some(backing.slot);
            if let Some(job) = now.job.as_ref().filter(|job| is_running(&now) && is_it(job)) {
                job.stop(true);
            }
            drop(now);
            if backing.health.is_out() {
                return Err(format!("backing {path} is out: its drain can't be taken back there"));
            }
            backing
                .forget_job()
                .map_err(|e| format!("backing {path}: its drain can't be taken back there: {e}"))?;
        }
        self.context.fs.record_state(backing.slot, state, None);
        backing.set_state(state);
        tracing::info!("backing {path} is {state}");
        if state == State::ReadWrite && backing.health.get() != Health::Well {
            return self.drives.take_in(backing);
        }
        let called_off = if draining { "; its drain is called off" } else { "" };
        let writers = self.context.fs.opens_on(backing.slot).1;
        Ok(match state {
            State::ReadOnly if writers > 0 => format!(
                "{path} is {state} now{called_off}; {writers} files that are open for writing go on until they're closed"
            ),
            _ => format!("{path} is {state} now{called_off}"),
        })
    }
}
