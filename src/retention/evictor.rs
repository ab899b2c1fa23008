//! The thread that evicts.
//!
//! What always holds: it alone evicts; it holds no lock while it waits, and never waits for a client. It
//! frees what is missing by what the file system says, not by what it believes to have freed: file systems
//! give room back late, so it waits a moment before it takes more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::creators::GONE;
use super::plan::From;
use super::survey::Survey;
use super::{Class, Evict, Outcome, Retention, Store, plan, recency};
use crate::backing::Backing;
use crate::index::{MAX_BACKINGS, Slot, SlotSet};

/// How often room is looked at when nobody asks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the record of uses is written.
const SAVE: Duration = Duration::from_secs(600);
/// How long a file system may take to give room back.
const SETTLE: Duration = Duration::from_secs(2);
/// Victims chosen in one pass over the index.
const AT_A_TIME: usize = 4096;
/// After so many refusals the backing is left alone until the next round.
const REFUSALS: usize = 16;
/// How often files that couldn't be judged are looked at again while nothing else can go.
const JUDGE_AGAIN: Duration = Duration::from_secs(30);
/// From this share of the high mark on, in percent, it's worth knowing the files that were there before.
const SURVEY_FROM: f64 = 80.0;

/// Starts it. It ends when [`Retention::stop`] was called, and writes the record of uses then.
pub fn start(retention: Arc<Retention>, store: Arc<dyn Store>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("kvfs-evict".into()).spawn(move || {
        let mut evictor = Evictor {
            retention,
            store,
            survey: None,
            surveyed: None,
            saved: Instant::now(),
            exhausted: false,
        };
        // A panic here must not leave creates waiting for room for ever, nor end without a word.
        let run = std::panic::AssertUnwindSafe(|| evictor.run());
        if std::panic::catch_unwind(run).is_err() {
            tracing::error!("the evictor has panicked: nothing is evicted any more; remount to restart it");
            evictor.retention.stop();
        }
    })
}

struct Evictor {
    retention: Arc<Retention>,
    store: Arc<dyn Store>,
    survey: Option<Survey>,
    /// When the last survey ended.
    surveyed: Option<Instant>,
    saved: Instant,
    /// In the last round something was missing that couldn't be freed.
    exhausted: bool,
}

impl Evictor {
    fn run(&mut self) {
        while let Some((urgent, mut ordered)) = self.next_round() {
            self.bury_creators();
            self.look_around(urgent);
            self.exhausted = false;
            self.count();
            ordered.extend(self.beyond_the_total());
            for backing in self.store.backings().iter() {
                let wanted = ordered.iter().filter(|(slot, _)| *slot == backing.slot).map(|(_, n)| n).sum();
                if backing.evictable && self.retention.evicts() {
                    self.relieve(backing, wanted);
                }
            }
            ordered.clear();
            self.relieve_tenants();
            self.end_round();
            if self.saved.elapsed() > SAVE {
                self.save();
            }
        }
        self.save();
    }

    /// Waits for the next round: whether somebody waits for it, and what was ordered. `None` at the end.
    fn next_round(&self) -> Option<(bool, Vec<(Slot, u64)>)> {
        let mut pressure = self.retention.pressure.lock();
        pressure.surveying = self.survey.is_some();
        if !pressure.urgent && !pressure.stop && self.survey.is_none() {
            self.retention.changed.wait_for(&mut pressure, INTERVAL);
        }
        if pressure.stop {
            return None;
        }
        pressure.begun += 1;
        let urgent = std::mem::take(&mut pressure.urgent);
        Some((urgent, std::mem::take(&mut pressure.ordered)))
    }

    fn end_round(&self) {
        let mut pressure = self.retention.pressure.lock();
        pressure.surveying = self.survey.is_some();
        pressure.ended = pressure.begun;
        self.retention.changed.notify_all();
    }

    fn stopping(&self) -> bool {
        self.retention.pressure.lock().stop
    }

    /// Files of processes that have ended are orphans.
    fn bury_creators(&self) {
        for code in self.retention.creators.ended() {
            self.store.index().read().recode_creator(code, GONE);
            self.store.creator_ended(code);
            self.retention.creators.free(code);
        }
    }

    /// Has the backings know what their files take, where that is counted.
    fn count(&self) {
        let index = self.store.index().read();
        if index.is_counting() {
            for backing in self.store.backings().iter() {
                backing.space.set_used(index.bytes_on(backing.slot));
            }
        }
    }

    /// What is to go from each backing because all files together take too much.
    fn beyond_the_total(&self) -> Vec<(Slot, u64)> {
        let Some(total) = self.retention.options.total else { return Vec::new() };
        let marks = self.retention.options.marks;
        let backings = self.store.backings();
        let used: Vec<(Slot, u64)> = {
            let index = self.store.index().read();
            backings.iter().map(|b| (b.slot, index.bytes_on(b.slot))).collect()
        };
        let all: u64 = used.iter().map(|(_, bytes)| bytes).sum();
        let share = |mark: f64| (total as f64 * mark / 100.0) as u64;
        // Those that are being written are going to take more.
        let coming = backings.iter().map(|b| b.space.typical()).max().unwrap_or(0).saturating_mul(4);
        if all.saturating_add(coming.min(total / 2)) <= share(marks.high) {
            return Vec::new();
        }
        let excess = all.saturating_sub(share(marks.low).saturating_sub(coming.min(total / 2)));
        let part = |bytes: u64| (u128::from(excess) * u128::from(bytes) / u128::from(all.max(1))) as u64;
        used.into_iter().map(|(slot, bytes)| (slot, part(bytes))).collect()
    }

    /// Looks at files that were there before the mount, if that is worth it.
    fn look_around(&mut self, urgent: bool) {
        if self.survey.is_none() && self.is_survey_due() {
            self.survey = Some(Survey::begin(&self.retention, &*self.store));
        }
        let Some(mut survey) = self.survey.take() else { return };
        let began = Instant::now();
        // Somebody who waits is helped by what is known already: a piece, then a round.
        while began.elapsed() < INTERVAL {
            if survey.go_on(&self.retention, &*self.store, urgent) {
                self.surveyed = Some(Instant::now());
                return;
            }
            if self.stopping() {
                return;
            }
        }
        self.survey = Some(survey);
    }

    fn is_survey_due(&self) -> bool {
        match self.surveyed {
            // What couldn't be judged then may be judged now.
            Some(at) => self.exhausted && self.retention.evicts() && at.elapsed() > JUDGE_AGAIN,
            None => {
                self.store.index().read().is_counting()
                    || self.retention.evicts() && self.store.backings().iter().any(|b| self.is_filling(b))
            }
        }
    }

    fn is_filling(&self, backing: &Backing) -> bool {
        let marks = self.retention.options.marks;
        backing.evictable
            && marks.level(backing).is_some_and(|level| {
                let used = level.allowed.saturating_sub(level.spare) as f64;
                used >= level.allowed as f64 * marks.high * SURVEY_FROM / 10_000.0 || level.missing() > 0
            })
    }

    /// Evicts from a backing until it's at its low mark, if it's above the high one; at least `ordered` bytes.
    fn relieve(&mut self, backing: &Backing, mut ordered: u64) {
        let (mut files, mut bytes) = ([0u64; 3], 0u64);
        while let Some(level) = self.retention.options.marks.level(backing) {
            let missing = level.missing().max(ordered);
            if missing == 0 || self.stopping() {
                break;
            }
            let evict = self.retention.options.evict;
            let from = From::Backing(backing.slot);
            let victims = plan::choose(self.store.index(), from, evict, AT_A_TIME);
            let (freed, gone) = self.take(victims, missing, &mut files);
            bytes += freed;
            ordered = ordered.saturating_sub(freed);
            if gone == 0 {
                self.exhausted = level.missing() > 0;
                break;
            }
            self.settle(backing, level.spare.saturating_add(freed.min(missing)));
        }
        let gone: u64 = files.iter().sum();
        if gone > 0 {
            tracing::info!(
                "backing {}: evicted {gone} files of {bytes} bytes: {} orphans, {} least recently used, {} of these with a living creator",
                backing.path.display(),
                files[0],
                files[1] + files[2],
                files[2]
            );
        }
    }

    /// Evicts from directories that are near their quotas.
    fn relieve_tenants(&mut self) {
        if !self.retention.evicts() {
            return;
        }
        let backings = self.store.backings();
        let slots: SlotSet = backings.iter().filter(|b| b.evictable).map(|b| b.slot).collect();
        let typical = backings.iter().map(|b| b.space.typical()).max().unwrap_or(0);
        let quotas: Vec<_> = self.store.index().read().quotas().collect();
        for (dir, limit, used) in quotas {
            let level = self.retention.options.marks.of(limit, limit.saturating_sub(used), typical);
            if level.missing() == 0 {
                continue;
            }
            let from = From::Below(dir, slots);
            let victims = plan::choose(self.store.index(), from, self.retention.options.evict, AT_A_TIME);
            let mut files = [0; 3];
            let (bytes, gone) = self.take(victims, level.missing(), &mut files);
            if gone > 0 {
                let path = self.store.index().read().path(dir);
                tracing::info!(
                    "{}: evicted {gone} files of {bytes} bytes, for its quota of {limit}",
                    String::from_utf8_lossy(&path)
                );
            }
        }
    }

    /// Takes victims until so many bytes are free: how many bytes and files were taken.
    fn take(&self, victims: Vec<plan::Victim>, missing: u64, files: &mut [u64; 3]) -> (u64, u64) {
        let (mut freed, mut gone, mut refusals) = (0, 0, 0);
        let counts = &self.retention.counts;
        for victim in victims {
            match self.store.evict(&victim) {
                Outcome::Gone(bytes) => {
                    freed += bytes;
                    gone += 1;
                    files[victim.class as usize] += 1;
                    counts.files[victim.class as usize].fetch_add(1, Relaxed);
                    counts.bytes.fetch_add(bytes, Relaxed);
                }
                Outcome::Spared => {
                    counts.spared.fetch_add(1, Relaxed);
                    // It's in use: others are to be looked at first the next time.
                    let index = self.store.index().read();
                    if index.live(victim.entry).is_some_and(|what| what.node() == victim.file.node()) {
                        index.used_at(victim.entry, self.retention.now());
                    }
                }
                Outcome::Failed => {
                    counts.failed.fetch_add(1, Relaxed);
                    refusals += 1;
                }
            }
            if freed >= missing || refusals > REFUSALS || self.stopping() {
                break;
            }
        }
        (freed, gone)
    }

    /// Waits until the backing has so much to spare, or has had time enough to say so.
    fn settle(&self, backing: &Backing, wanted: u64) {
        let began = Instant::now();
        loop {
            backing.space.distrust();
            if backing.space.capacity.is_some() {
                backing.space.set_used(self.store.index().read().bytes_on(backing.slot));
            }
            // Writers take some of it at once.
            if backing.space.spare(backing.root()) >= wanted / 2
                || began.elapsed() > SETTLE
                || self.stopping()
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn save(&mut self) {
        self.saved = Instant::now();
        if self.retention.options.evict != Evict::Lru {
            return;
        }
        for backing in self.store.backings().iter().filter(|b| b.evictable && b.slot.index() < MAX_BACKINGS) {
            if let Err(e) = recency::save(backing, self.store.index(), &self.retention.clock) {
                tracing::warn!(
                    "backing {}: the record of uses can't be written: {e}",
                    backing.path.display()
                );
            }
        }
    }
}

impl Retention {
    /// What would go, and in what order, to free so many bytes on a backing; `None` for what the marks say.
    pub fn plan(&self, store: &dyn Store, backing: &Backing, bytes: Option<u64>) -> super::BackingPlan {
        let level = self.options.marks.level(backing).unwrap_or_default();
        let wanted = bytes.unwrap_or_else(|| level.missing());
        let victims = match (backing.evictable, wanted) {
            (false, _) | (_, 0) => Vec::new(),
            _ => plan::choose(store.index(), From::Backing(backing.slot), self.options.evict, AT_A_TIME),
        };
        let mut plan = super::BackingPlan::new(backing, level, wanted);
        for victim in victims {
            if plan.bytes >= wanted {
                break;
            }
            if let Some(seen) = store.look(victim.dir, &victim.name, victim.file) {
                let path = store.index().read().path_of(victim.dir, &victim.name);
                plan.add(&path, &victim, seen.bytes, self.clock.time(victim.used));
            }
        }
        plan
    }

    /// How many files of each class a backing has, by slot.
    pub(super) fn classes(&self, store: &dyn Store) -> Vec<[u64; Class::ALL.len()]> {
        plan::count(store.index(), MAX_BACKINGS)
    }
}
