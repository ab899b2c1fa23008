//! A job: what it is, how far it is, and how it's told to stop.
//!
//! What always holds: its numbers only grow, but for what is left; it ends once, and says how.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::pace::{Bucket, Meter};
use crate::index::Slot;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// All files leave a backing.
    Drain,
    /// Files move until the backings are equally full.
    Rebalance,
    /// A backing joins.
    Add,
    /// A backing goes.
    Remove,
}

impl JobKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            JobKind::Drain => "drain",
            JobKind::Rebalance => "rebalance",
            JobKind::Add => "add",
            JobKind::Remove => "remove",
        }
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// At work, or waiting for files to be closed.
    Running,
    /// All is done.
    Done,
    /// It has ended, and not all is done.
    Failed,
    /// It was called off.
    Cancelled,
}

/// A job, as `kvfs status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its number, from 1 since the mount.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// The backing that it's about.
    pub backing: Option<PathBuf>,
    /// How far it is.
    pub state: JobState,
    /// Files moved.
    pub moved: u64,
    /// Files still to be moved, as far as that's known.
    pub left: u64,
    /// Files that could not be moved when they were last tried: open, or for another reason.
    pub skipped: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Bytes a second, over the last seconds.
    pub rate: u64,
    /// The most it may copy, in bytes a second.
    pub bandwidth: Option<u64>,
    /// Seconds since it began, until it ended.
    pub since_s: u64,
    /// What it waits for, or what came of it.
    pub note: String,
    /// The last thing that went wrong.
    pub error: Option<String>,
}

/// How a job ends: what came of it, or why it could not go on.
pub(super) type Ended = Result<String, String>;

/// A job at work.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) kind: JobKind,
    pub(super) slot: Option<Slot>,
    pub(super) backing: Option<PathBuf>,
    started: Instant,
    bandwidth: Option<u64>,
    bucket: Option<Mutex<Bucket>>,
    meter: Mutex<Meter>,
    pub(super) moved: AtomicU64,
    pub(super) left: AtomicU64,
    pub(super) skipped: AtomicU64,
    bytes: AtomicU64,
    told: Mutex<Told>,
    changed: Condvar,
}

struct Told {
    state: JobState,
    stop: bool,
    /// The operator has called it off, for good.
    cancelled: bool,
    note: String,
    error: Option<String>,
    took: Option<Duration>,
}

impl Job {
    pub(super) fn new(id: u64, kind: JobKind, about: Option<(Slot, PathBuf)>, bandwidth: Option<u64>) -> Job {
        let (slot, backing) = about.unzip();
        let told = Told {
            state: JobState::Running,
            stop: false,
            cancelled: false,
            note: String::new(),
            error: None,
            took: None,
        };
        Job {
            id,
            kind,
            slot,
            backing,
            started: Instant::now(),
            bandwidth,
            bucket: bandwidth.map(|rate| Mutex::new(Bucket::new(rate))),
            meter: Mutex::new(Meter::new()),
            moved: AtomicU64::new(0),
            left: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            told: Mutex::new(told),
            changed: Condvar::new(),
        }
    }

    /// Waits until so many bytes may be copied. False when the job is to stop.
    pub(super) fn pace(&self, bytes: u64) -> bool {
        if let Some(bucket) = &self.bucket {
            let until = bucket.lock().take(bytes, Instant::now());
            if !self.wait_until(until) {
                return false;
            }
        } else if self.is_stopped() {
            return false;
        }
        self.bytes.fetch_add(bytes, Relaxed);
        self.meter.lock().add(bytes, Instant::now());
        true
    }

    /// Waits. False when the job is to stop.
    pub(super) fn wait(&self, time: Duration) -> bool {
        self.wait_until(Instant::now() + time)
    }

    fn wait_until(&self, until: Instant) -> bool {
        let mut told = self.told.lock();
        while !told.stop && Instant::now() < until {
            self.changed.wait_until(&mut told, until);
        }
        !told.stop
    }

    /// Whether it's to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.told.lock().stop
    }

    /// Whether the operator has called it off.
    pub(super) fn is_cancelled(&self) -> bool {
        self.told.lock().cancelled
    }

    /// It's to stop; for good if `cancel`, else to go on at the next mount.
    pub(super) fn stop(&self, cancel: bool) {
        let mut told = self.told.lock();
        told.stop = true;
        told.cancelled |= cancel;
        self.changed.notify_all();
    }

    /// What it waits for.
    pub(super) fn note(&self, note: impl Into<String>) {
        self.told.lock().note = note.into();
    }

    /// What went wrong.
    pub(super) fn error(&self, error: impl Into<String>) {
        self.told.lock().error = Some(error.into());
    }

    pub(super) fn end(&self, ended: Ended) {
        let mut told = self.told.lock();
        told.state = match &ended {
            _ if told.cancelled => JobState::Cancelled,
            Ok(_) => JobState::Done,
            Err(_) => JobState::Failed,
        };
        told.took = Some(self.started.elapsed());
        match ended {
            Ok(note) => told.note = note,
            Err(error) => {
                told.note.clear();
                told.error = Some(error);
            }
        }
        self.changed.notify_all();
    }

    /// Waits until it has ended. False when it hasn't after so long.
    pub(super) fn ended_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut told = self.told.lock();
        while told.took.is_none() {
            if self.changed.wait_until(&mut told, deadline).timed_out() {
                return told.took.is_some();
            }
        }
        true
    }

    pub(super) fn status(&self) -> JobStatus {
        let told = self.told.lock();
        let took = told.took.unwrap_or_else(|| self.started.elapsed());
        let running = told.took.is_none();
        JobStatus {
            id: self.id,
            kind: self.kind,
            backing: self.backing.clone(),
            state: told.state,
            moved: self.moved.load(Relaxed),
            left: self.left.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            rate: if running { self.meter.lock().rate(Instant::now()) } else { self.average(took) },
            bandwidth: self.bandwidth,
            since_s: took.as_secs(),
            note: told.note.clone(),
            error: told.error.clone(),
        }
    }

    fn average(&self, took: Duration) -> u64 {
        (self.bytes.load(Relaxed) as f64 / took.as_secs_f64().max(0.001)) as u64
    }
}
