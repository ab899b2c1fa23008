//! What `kvfs status` says of GPUs.
#![allow(unreachable_pub)] // It's public with the status that it's part of.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::probe::{Finding, Findings};
use crate::direct::abi::{Path, Why};
use crate::index::Slot;

pub use super::worker::WorkerStatus;

/// How data moves to GPU memory, and who moves it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuStatus {
    /// Whether the mount's options allow it.
    pub enabled: bool,
    /// Whether it's known yet what can be used.
    pub probed: bool,
    /// `cuda` or `hip`, once there is a GPU of that kind.
    pub driver: Option<String>,
    /// The GPUs.
    pub gpus: Vec<Uuid>,
    /// By backing.
    pub backings: Vec<GpuPath>,
    /// The processes that do it.
    pub workers: Vec<WorkerStatus>,
}

/// How data moves between a backing and GPU memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuPath {
    /// The backing.
    pub slot: u8,
    /// How.
    pub path: Path,
    /// Why not in a better way.
    pub why: Why,
    /// The same for people.
    pub detail: String,
}

impl GpuStatus {
    pub(super) fn new(
        enabled: bool,
        found: Option<(bool, &Findings, &HashMap<Slot, Finding>)>,
        workers: Vec<WorkerStatus>,
    ) -> GpuStatus {
        let Some((hip, findings, dirs)) = found else {
            return GpuStatus { enabled, workers, ..GpuStatus::default() };
        };
        let path = |(slot, finding): (&Slot, &Finding)| GpuPath {
            slot: slot.0,
            path: finding.path,
            why: finding.why,
            detail: finding.detail.clone(),
        };
        let mut backings: Vec<_> = dirs.iter().map(path).collect();
        backings.sort_by_key(|backing| backing.slot);
        let driver = (!findings.gpus.is_empty()).then(|| if hip { "hip" } else { "cuda" }.to_owned());
        GpuStatus { enabled, probed: true, driver, gpus: findings.gpus.clone(), backings, workers }
    }
}
