//! What a daemon answers on its control socket.
//!
//! What always holds: an answer begins at once; work that takes longer is begun, and asked about later.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::{About, Given, Jobs, Question, Stats, Status, Unread, Upgrades, listing};
use crate::backing::Backing;
use crate::direct::Direct;
use crate::fs::Fs;
use crate::index::Slot;
use crate::printable::printable;
use crate::retention::EvictPlan;
use crate::trace;

/// A running mount.
pub struct Daemon {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// The ioctl fast path.
    pub direct: Arc<Direct>,
    /// Work on the backings.
    pub jobs: Arc<Jobs>,
    /// Handing over to another executable.
    pub upgrades: Arc<Upgrades>,
    /// What else there is to tell.
    pub about: About,
}

impl Daemon {
    /// The answer to a question, or a sentence that says why there is none.
    pub fn answer(&self, question: Question, fd: Option<OwnedFd>) -> Result<Given, String> {
        let answer = match question {
            Question::Status => {
                let job = self.jobs.status();
                let last_upgrade = self.upgrades.last();
                let status = Status::of(&self.fs, &self.direct, &self.about);
                serde_json::to_value(Status { job, last_upgrade, ..status })
            }
            Question::Stats { status } => {
                let (stats, now) = self.stats();
                serde_json::to_value(Stats { status: status.then(|| Box::new(now)), ..stats })
            }
            Question::Job => serde_json::to_value(self.jobs.status()),
            Question::Order(order) => return self.jobs.order(order).map(Given::One),
            Question::Running => serde_json::to_value(self.upgrades.running()?),
            Question::Upgrade(to) => serde_json::to_value(self.upgrades.begin(to, fd)?),
            Question::Evict { dry_run, bytes, backing } => {
                serde_json::to_value(self.evict(dry_run, bytes, backing.as_deref())?)
            }
            Question::List { path, from, wanted } => {
                let page = listing::page(&self.fs, path.as_bytes(), from, wanted);
                serde_json::to_value(page.ok_or("there is no such file or directory in the mount")?)
            }
            Question::DropShadow { path, slot } => {
                let dropped = self.fs.drop_shadow(path.as_bytes(), Slot(slot));
                serde_json::to_value(dropped.map_err(|e| e.to_string())?)
            }
            Question::Unread => serde_json::to_value(self.unread()),
            Question::Trace(filter) => {
                return Ok(Given::Many(Box::new(move |parts| trace::follow(filter, parts))));
            }
            Question::Log { filter } => serde_json::to_value(crate::log::log_by(filter.as_deref())?),
        };
        answer.map(Given::One).map_err(|e| e.to_string())
    }

    /// What the scan at the start couldn't read.
    fn unread(&self) -> Vec<Unread> {
        let problems = self.fs.scan_report().problems.iter();
        let unread = problems.map(|problem| {
            let (slot, path) = (problem.slot.0, printable(&problem.path));
            Unread { slot, path, what: problem.what.clone(), is_hidden: problem.is_hidden }
        });
        unread.collect()
    }

    /// What was counted so far, and how it is now.
    pub fn stats(&self) -> (Stats, Status) {
        let status = Status::of(&self.fs, &self.direct, &self.about);
        (Stats::of(&self.fs, &status), status)
    }

    fn evict(&self, dry_run: bool, bytes: Option<u64>, backing: Option<&str>) -> Result<EvictPlan, String> {
        let retention = &self.fs.retention;
        if !retention.evicts() {
            return Err("nothing may be evicted: mounted with --evict never".into());
        }
        let backings: Vec<Arc<Backing>> = match backing {
            Some(name) => vec![self.backing(name)?],
            None => self.fs.backings().iter().cloned().collect(),
        };
        let plan = |b: &Arc<Backing>| retention.plan(&*self.fs, b, bytes);
        let surveying = dry_run && retention.is_surveying_for_a_plan();
        let plan = EvictPlan {
            evict: retention.options.evict.name().into(),
            surveying,
            backings: if dry_run && !surveying { backings.iter().map(plan).collect() } else { Vec::new() },
        };
        if !dry_run {
            retention.order(backings.iter().map(|b| (b.slot, bytes.unwrap_or(0))).collect());
        }
        Ok(plan)
    }

    /// A backing by its slot or its path.
    fn backing(&self, name: &str) -> Result<Arc<Backing>, String> {
        let is_it = |b: &&Arc<Backing>| name == b.slot.0.to_string() || b.path == Path::new(name);
        let backings = self.fs.backings();
        backings.iter().find(is_it).cloned().ok_or_else(|| {
            let known: Vec<_> =
                backings.iter().map(|b| format!("{} ({})", b.slot.0, b.path.display())).collect();
            format!("{name:?} is no backing of this mount; there are {}", known.join(", "))
        })
    }
}
