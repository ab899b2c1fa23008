//! What retention tells of itself.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::marks::Level;
use super::{Class, Retention, Store, Victim};
use crate::backing::Backing;

/// Victims named in a plan; all are counted.
const NAMED: usize = 1000;

/// Retention, as `kvfs status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetentionStatus {
    /// `never`, `orphans` or `lru`.
    pub evict: String,
    /// Above it files are evicted: percent of what kvfs may use.
    pub high_water: f64,
    /// Until it's reached.
    pub low_water: f64,
    /// The most that all files together may take, in bytes.
    pub capacity_total: Option<u64>,
    /// Whether files are being evicted, or are about to be.
    pub evicting: bool,
    /// Files evicted so far whose only reader was gone.
    pub evicted_orphans: u64,
    /// Files evicted so far because they were used least recently.
    pub evicted_lru: u64,
    /// Of these, files that a living process has in its memory.
    pub evicted_remembered: u64,
    /// Bytes that they took.
    pub evicted_bytes: u64,
    /// Files that were to go and were found in use.
    pub spared: u64,
    /// Files that a backing refused to remove.
    pub failed: u64,
    /// Creates that had to wait for room.
    pub waited: u64,
    /// Creates that found none in the end.
    pub refused: u64,
    /// Names gone through by the survey of files from before the mount, and how many there are; 0 of 0 while
    /// there is none.
    pub surveyed: (u64, u64),
    /// The backings, in the order of their slots.
    pub backings: Vec<BackingRetention>,
}

/// A backing's part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackingRetention {
    /// Its slot.
    pub slot: u8,
    /// The most that its files may take, in bytes.
    pub capacity: Option<u64>,
    /// What they take, where it's counted.
    pub used: Option<u64>,
    /// What new files may still use, in bytes.
    pub spare: u64,
    /// With less than that to spare, files are evicted.
    pub begin: u64,
    /// Until there is that much.
    pub end: u64,
    /// Files that nobody can read any more.
    pub orphans: u64,
    /// Files that a living process has in its memory, or may have.
    pub remembered: u64,
}

/// What an eviction would take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvictPlan {
    /// The rule.
    pub evict: String,
    /// Whether files from before the mount have yet to be looked at: ask again.
    pub surveying: bool,
    /// By backing.
    pub backings: Vec<BackingPlan>,
}

/// What an eviction would take from a backing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackingPlan {
    /// Its slot.
    pub slot: u8,
    /// Its path.
    pub path: PathBuf,
    /// Whether anything may be evicted from it.
    pub evictable: bool,
    /// What new files may still use, in bytes.
    pub spare: u64,
    /// With less than that to spare, files are evicted.
    pub begin: u64,
    /// Until there is that much.
    pub end: u64,
    /// Bytes to be freed.
    pub wanted: u64,
    /// Files that would go.
    pub files: u64,
    /// What they take, in bytes.
    pub bytes: u64,
    /// The first of them.
    pub victims: Vec<PlannedVictim>,
}

/// A file that would go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedVictim {
    /// Its path below the mount.
    pub path: String,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// Why it would go.
    pub why: String,
    /// Seconds since it was last used, as far as that is known.
    pub idle_s: Option<u64>,
}

impl BackingPlan {
    pub(super) fn new(backing: &Backing, level: Level, wanted: u64) -> BackingPlan {
        BackingPlan {
            slot: backing.slot.0,
            path: backing.path.clone(),
            evictable: backing.evictable,
            spare: level.spare,
            begin: level.begin,
            end: level.end,
            wanted,
            files: 0,
            bytes: 0,
            victims: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, path: &[u8], victim: &Victim, bytes: u64, used: Option<SystemTime>) {
        self.files += 1;
        self.bytes += bytes;
        if self.victims.len() < NAMED {
            self.victims.push(PlannedVictim {
                path: crate::printable::printable(path),
                bytes,
                why: victim.class.name().into(),
                idle_s: used.and_then(|used| used.elapsed().ok()).map(|idle| idle.as_secs()),
            });
        }
    }
}

impl Retention {
    /// How it is.
    pub fn status(&self, store: &dyn Store) -> RetentionStatus {
        let counts = &self.counts;
        let of = |class: Class| counts.files[class as usize].load(Relaxed);
        let classes = self.classes(store);
        let counting = store.index().read().is_counting();
        let backing = |b: &std::sync::Arc<Backing>| {
            let level = self.options.marks.level(b).unwrap_or_default();
            let [orphans, _, remembered] = classes[b.slot.index()];
            BackingRetention {
                slot: b.slot.0,
                capacity: b.space.capacity,
                used: counting.then(|| store.index().read().bytes_on(b.slot)),
                spare: level.spare,
                begin: level.begin,
                end: level.end,
                orphans,
                remembered,
            }
        };
        RetentionStatus {
            evict: self.options.evict.name().into(),
            high_water: self.options.marks.high,
            low_water: self.options.marks.low,
            capacity_total: self.options.total,
            evicting: self.is_evicting(),
            evicted_orphans: of(Class::Orphan),
            evicted_lru: of(Class::Found) + of(Class::Remembered),
            evicted_remembered: of(Class::Remembered),
            evicted_bytes: counts.bytes.load(Relaxed),
            spared: counts.spared.load(Relaxed),
            failed: counts.failed.load(Relaxed),
            waited: counts.waited.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            surveyed: self.surveyed(),
            backings: store.backings().iter().map(backing).collect(),
        }
    }
}
