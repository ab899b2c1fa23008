//! What the probe has found, and ops that came before it had.
//!
//! What always holds: ops wait here only where a daemon before this one has answered for their buffers; they go on
//! once, when the probe has ended, or are dropped with the mount and fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::by_cufile;
use super::error::GpuError;
use super::probe::{Finding, Findings};
use crate::direct::abi::{Path, Why};
use crate::direct::engine::Op;
use crate::index::Slot;

/// What the probe has found.
pub(super) struct Found {
    pub(super) hip: bool,
    pub(super) findings: Findings,
    /// By slot.
    pub(super) dirs: HashMap<Slot, Finding>,
}

impl Found {
    /// The best of all backings, or else what the first of them has to say.
    pub(super) fn best(&self) -> (Path, Why) {
        let mut slots: Vec<&Slot> = self.dirs.keys().collect();
        slots.sort();
        let dirs: Vec<&Finding> = slots.into_iter().filter_map(|slot| self.dirs.get(slot)).collect();
        let best = dirs.iter().find(|d| by_cufile(d.path)).or(dirs.iter().find(|d| d.path != Path::None));
        best.or(dirs.first()).map_or((Path::None, Why::NotProbed), |d| (d.path, d.why))
    }

    /// Whether there's a backing that cuFile can read.
    pub(super) fn has_cufile(&self) -> bool {
        self.dirs.values().any(|finding| by_cufile(finding.path))
    }
}

/// Where it's found.
#[derive(Default)]
pub(super) struct Probed {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    found: Option<Arc<Found>>,
    early: Vec<Op>,
}

impl Probed {
    /// What was found, once the probe has ended.
    pub(super) fn get(&self) -> Option<Arc<Found>> {
        self.state.lock().found.clone()
    }

    /// Waits for the probe.
    pub(super) fn wait(&self, deadline: Instant) -> Result<Arc<Found>, GpuError> {
        let mut state = self.state.lock();
        loop {
            if let Some(found) = &state.found {
                return Ok(found.clone());
            }
            if self.ended.wait_until(&mut state, deadline).timed_out() {
                return Err(GpuError::NotProbed);
            }
        }
    }

    /// The probe has ended; the ops that waited for it.
    pub(super) fn set(&self, found: Found) -> Vec<Op> {
        let mut state = self.state.lock();
        state.found = Some(Arc::new(found));
        self.ended.notify_all();
        std::mem::take(&mut state.early)
    }

    /// Keeps ops that come before the probe has ended; gives them back if it has.
    pub(super) fn unless_early(&self, ops: Vec<Op>) -> Vec<Op> {
        let mut state = self.state.lock();
        if state.found.is_some() {
            return ops;
        }
        state.early.extend(ops);
        Vec::new()
    }

    /// Changes what is known of backings, once something is.
    pub(super) fn change_dirs(&self, change: impl FnOnce(&mut HashMap<Slot, Finding>)) {
        let mut state = self.state.lock();
        if let Some(old) = state.found.as_deref() {
            let mut dirs = old.dirs.clone();
            change(&mut dirs);
            state.found = Some(Arc::new(Found { hip: old.hip, findings: old.findings.clone(), dirs }));
        }
    }
}
