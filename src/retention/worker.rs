//! The thread that evicts from one file system.
//!
//! What always holds: it holds no lock while it waits, and never waits for a client. It frees what is missing
//! by what the file system says, not by what it believes to have freed: file systems give room back late, so
//! it waits a moment before it takes more. What can't go isn't tried again in the same round; a file system
//! that refuses is left alone for a while.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::evictor::INTERVAL;
use super::plan::{self, Choice, From};
use super::pressure::Worker;
use super::survey::Survey;
use super::{Evict, Outcome, Retention, Store, Victim, recency};
use crate::backing::Backing;
use crate::index::{EntryId, NodeId, SlotSet};

/// How often the record of uses is written.
const SAVE: Duration = Duration::from_secs(600);
/// How long a file system may take to give room back.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the kernel may take to forget files, when too many are held for it.
const FORGET: Duration = Duration::from_secs(1);
/// Victims chosen in one pass over the index.
const AT_A_TIME: usize = 4096;
/// After so many failures a file system is left alone.
const FAILURES: u32 = 16;
/// For so long.
const ALONE: Duration = Duration::from_secs(30);
/// So many files that can't go are passed over in one round.
const REFUSED: usize = 1 << 18;
/// How often files that couldn't be judged are looked at again while nothing else can go.
const JUDGE_AGAIN: Duration = Duration::from_secs(30);
/// When nothing could be freed, the next round begins so much later.
const REST: Duration = Duration::from_millis(50);
/// Of the thread, as nice(1) has it.
const NICE: i32 = 10;
/// From this share of the high mark on, in percent, it's worth knowing the files that were there before.
const SURVEY_FROM: f64 = 80.0;

/// Starts it. It ends with the mount, or when none of its backings is left.
pub(super) fn start(
    retention: &Arc<Retention>,
    store: &Arc<dyn Store>,
    device: u64,
) -> io::Result<JoinHandle<()>> {
    let state = retention.pressure.lock().enter(device);
    let mut evicting = Evicting {
        retention: retention.clone(),
        store: store.clone(),
        device,
        state,
        survey: None,
        surveyed: None,
        saved: Instant::now(),
        exhausted: false,
        alone_until: None,
        orders: Vec::new(),
    };
    let spawned = std::thread::Builder::new().name("kvfs-evict".into()).spawn(move || {
        give_way();
        // A panic here must not leave creates waiting for room for ever, nor end without a word.
        let run = std::panic::AssertUnwindSafe(|| evicting.run());
        if std::panic::catch_unwind(run).is_err() {
            tracing::error!("evicting has panicked; it's begun anew");
            std::thread::sleep(INTERVAL);
        }
        evicting.retention.leave(&evicting.state);
    });
    if spawned.is_err() {
        retention.pressure.lock().workers.retain(|worker| worker.device != device);
    }
    spawned
}

/// Where processors are short, clients and whoever answers them go first: whoever waits for room leaves them to
/// this thread anyway.
fn give_way() {
    // Linux takes a thread's id here, and that of the caller for none: setpriority(2), "C library/kernel differences".
    if let Err(e) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!("the thread that evicts keeps its priority: {e}");
    }
}

struct Evicting {
    retention: Arc<Retention>,
    store: Arc<dyn Store>,
    device: u64,
    state: Arc<Worker>,
    survey: Option<Survey>,
    /// When the last survey ended.
    surveyed: Option<Instant>,
    saved: Instant,
    /// In the last round something was missing that couldn't be freed.
    exhausted: bool,
    /// The file system has refused to remove files.
    alone_until: Option<Instant>,
    /// Bytes to be freed in any case.
    orders: Vec<(crate::index::Slot, u64)>,
}

impl Evicting {
    fn run(&mut self) {
        while let Some(urgent) = self.next_round() {
            let backings = self.backings();
            if backings.is_empty() {
                return;
            }
            self.retention.bury_creators(&*self.store, !self.orders.is_empty());
            self.look_around(&backings, urgent);
            self.exhausted = false;
            // An order goes by all files: it waits until they are known.
            let orders = if self.survey.is_none() { std::mem::take(&mut self.orders) } else { Vec::new() };
            for backing in &backings {
                self.store.let_go(backing.slot);
                self.count(backing);
                let ordered = orders.iter().filter(|(slot, _)| *slot == backing.slot).map(|(_, n)| n).sum();
                let wanted = self.beyond_the_total(backing).max(ordered);
                if backing.evictable && self.retention.evicts() && !self.is_left_alone(backing) {
                    self.relieve(backing, wanted);
                }
            }
            self.relieve_tenants(&backings);
            if self.saved.elapsed() > SAVE {
                self.save(&backings);
            }
            let survey = self.survey.as_ref().map(Survey::progress);
            self.retention.end_round(&self.state, survey, !self.orders.is_empty());
        }
        self.save(&self.backings());
    }

    fn backings(&self) -> Vec<Arc<Backing>> {
        let backings = self.store.backings();
        let is_mine = |b: &&Arc<Backing>| b.device == self.device && !b.health.is_out();
        backings.iter().filter(is_mine).cloned().collect()
    }

    /// Waits for the next round: whether somebody waits for it. `None` at the end.
    fn next_round(&mut self) -> Option<bool> {
        let slots: Vec<_> = self.backings().iter().map(|b| b.slot).collect();
        let mut pressure = self.retention.pressure.lock();
        let rested = Instant::now() + REST;
        while self.exhausted && !pressure.stop {
            if self.retention.changed.wait_until(&mut pressure, rested).timed_out() {
                break;
            }
        }
        let next = Instant::now() + INTERVAL;
        while !pressure.is_asked(&self.state) && !pressure.stop && self.survey.is_none() {
            if self.retention.changed.wait_until(&mut pressure, next).timed_out() {
                break;
            }
        }
        if pressure.stop {
            return None;
        }
        let urgent = pressure.is_asked(&self.state);
        let (mine, others) = pressure.ordered.drain(..).partition(|(slot, _)| slots.contains(slot));
        pressure.ordered = others;
        self.orders.extend::<Vec<_>>(mine);
        pressure.begin(&self.state);
        Some(urgent)
    }

    fn stopping(&self) -> bool {
        self.state.beat();
        self.retention.pressure.lock().stop
    }

    /// Has the backing know what its files take, where that is counted.
    fn count(&self, backing: &Backing) {
        let index = self.store.index().read();
        if index.is_counting() {
            backing.space.set_used(|| index.bytes_on(backing.slot));
        }
    }

    /// What is to go from a backing because all files together take too much.
    fn beyond_the_total(&self, backing: &Backing) -> u64 {
        let Some(total) = self.retention.options.total else { return 0 };
        let marks = self.retention.options.marks;
        let backings = self.store.backings();
        let used = |b: &Backing| self.store.index().read().bytes_on(b.slot);
        let all: u64 = backings.iter().map(|b| used(b)).sum();
        let share = |mark: f64| (total as f64 * mark / 100.0) as u64;
        // Those that are being written are going to take more.
        let coming = backings.iter().map(|b| b.space.typical()).max().unwrap_or(0).saturating_mul(4);
        if all.saturating_add(coming.min(total / 2)) <= share(marks.high) {
            return 0;
        }
        let excess = all.saturating_sub(share(marks.low).saturating_sub(coming.min(total / 2)));
        (u128::from(excess) * u128::from(used(backing)) / u128::from(all.max(1))) as u64
    }

    /// Looks at files that were there before the mount, if that is worth it.
    fn look_around(&mut self, backings: &[Arc<Backing>], urgent: bool) {
        let wanted = self.orders.iter().any(|(_, n)| *n > 0)
            || self.retention.pressure.lock().wants_survey(&self.state);
        if self.survey.is_none() && self.is_survey_due(backings, wanted) {
            self.survey = Some(Survey::begin(&self.retention, &*self.store, backings.iter().map(|b| &**b)));
        }
        let Some(mut survey) = self.survey.take() else { return };
        let began = Instant::now();
        // Somebody who waits is helped by what is known already: a piece, then a round.
        while began.elapsed() < INTERVAL {
            if survey.go_on(&self.retention, &*self.store, urgent || wanted).is_none() {
                self.surveyed = Some(Instant::now());
                self.retention.pressure.lock().has_surveyed(&self.state);
                return;
            }
            if self.stopping() {
                return;
            }
        }
        self.survey = Some(survey);
    }

    fn is_survey_due(&self, backings: &[Arc<Backing>], wanted: bool) -> bool {
        match self.surveyed {
            // What couldn't be judged then may be judged now.
            Some(at) => self.exhausted && self.retention.evicts() && at.elapsed() > JUDGE_AGAIN,
            None => {
                wanted
                    || self.store.index().read().is_counting()
                    || self.retention.evicts() && backings.iter().any(|b| self.is_filling(b))
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

    fn is_left_alone(&mut self, backing: &Backing) -> bool {
        if self.alone_until.is_some_and(|until| Instant::now() < until) {
            return true;
        }
        self.alone_until = None;
        if let Err(e) = backing.probe() {
            self.leave_alone(backing, &e.to_string());
        }
        self.alone_until.is_some()
    }

    fn leave_alone(&mut self, backing: &Backing, why: &str) {
        let (path, s) = (backing.path.display(), ALONE.as_secs());
        tracing::warn!("backing {path}: nothing can be evicted from it ({why}); it's tried again in {s} s");
        self.alone_until = Some(Instant::now() + ALONE);
    }

    /// Evicts from a backing until it's at its low mark, if it's above the high one; at least `ordered` bytes.
    fn relieve(&mut self, backing: &Backing, mut ordered: u64) {
        let mut taken = Taken::default();
        while let Some(level) = self.retention.options.marks.level(backing) {
            let missing = level.missing().max(ordered);
            if missing == 0 || self.stopping() {
                break;
            }
            let before = (taken.gone(), taken.bytes, taken.refused.len());
            let room = Ledger::of(backing);
            let victims = self.choose(From::Backing(backing.slot), &taken);
            self.take(victims, missing, &mut taken);
            let freed = taken.bytes - before.1;
            ordered = ordered.saturating_sub(freed);
            if taken.failures > FAILURES {
                let why = taken.failure.take().unwrap_or_default();
                self.leave_alone(backing, &why);
                break;
            }
            if taken.gone() > before.0 {
                self.retention.ended.notify_all();
                self.settle(backing, room, freed);
            } else if taken.refused.len() == before.2 || taken.refused.len() > REFUSED {
                // Somebody may have ended just now.
                if self.retention.bury_creators(&*self.store, true) {
                    continue;
                }
                self.exhausted = true;
                break;
            }
        }
        let [orphans, found, remembered] = taken.files;
        if taken.gone() > 0 {
            tracing::info!(
                "backing {}: evicted {} files of {} bytes: {orphans} orphans, {} least recently used, {remembered} of these with a living creator",
                backing.path.display(),
                taken.gone(),
                taken.bytes,
                found + remembered,
            );
        }
    }

    /// Evicts from directories that are near their quotas: of the files that go first there, those on these
    /// backings. The others' threads see to the rest.
    fn relieve_tenants(&mut self, backings: &[Arc<Backing>]) {
        if !self.retention.evicts() {
            return;
        }
        let all = self.store.backings();
        let evictable: SlotSet = all.iter().filter(|b| b.evictable).map(|b| b.slot).collect();
        let mine: SlotSet = backings.iter().map(|b| b.slot).collect();
        let typical = all.iter().map(|b| b.space.typical()).max().unwrap_or(0);
        let quotas: Vec<_> = self.store.index().read().quotas().collect();
        for (dir, limit, used) in quotas {
            let balance = i64::try_from(limit)
                .unwrap_or(i64::MAX)
                .saturating_sub(i64::try_from(used).unwrap_or(i64::MAX));
            let level = self.retention.options.marks.of(limit, balance, typical);
            if level.missing() == 0 || self.alone_until.is_some() {
                continue;
            }
            let mut taken = Taken::default();
            let mut victims = self.choose(From::Below(dir, evictable), &taken);
            let mut enough = 0;
            victims.retain(|victim| {
                let is_wanted = enough < level.missing();
                enough += self.store.index().read().size(victim.entry);
                is_wanted && mine.has(victim.file.slot)
            });
            self.take(victims, u64::MAX, &mut taken);
            if taken.gone() > 0 {
                let path = self.store.index().read().path(dir);
                tracing::info!(
                    "{}: evicted {} files of {} bytes, for its quota of {limit}",
                    crate::printable::printable(&path),
                    taken.gone(),
                    taken.bytes
                );
            }
        }
    }

    fn choose(&self, from: From, taken: &Taken) -> Vec<Victim> {
        let stays = |entry: EntryId, node: NodeId| {
            !taken.refused.is_empty() && taken.refused.contains(&entry) || self.store.is_open(node)
        };
        let choice = Choice {
            from,
            evict: self.retention.options.evict,
            most: AT_A_TIME,
            unseen_from: self.survey.as_ref().map(|survey| survey.next),
            stays: &stays,
        };
        plan::choose(self.store.index(), &choice)
    }

    /// Takes victims until so many bytes are free.
    fn take(&self, victims: Vec<Victim>, missing: u64, taken: &mut Taken) {
        let counts = &self.retention.counts;
        let enough = taken.bytes.saturating_add(missing);
        for victim in victims {
            if !self.kernel_forgets(&victim) {
                return;
            }
            match self.store.evict(&victim) {
                Outcome::Gone { files, bytes } => {
                    taken.bytes += bytes;
                    taken.files[victim.class as usize] += files;
                    counts.files[victim.class as usize].fetch_add(files, Relaxed);
                    counts.bytes.fetch_add(bytes, Relaxed);
                }
                Outcome::Spared => {
                    counts.spared.fetch_add(1, Relaxed);
                    taken.refused.insert(victim.entry);
                }
                Outcome::Failed(why) => {
                    counts.failed.fetch_add(1, Relaxed);
                    taken.refused.insert(victim.entry);
                    taken.failures += 1;
                    taken.failure = Some(why);
                }
            }
            if taken.bytes >= enough || taken.failures > FAILURES || self.stopping() {
                return;
            }
        }
    }

    /// Waits a moment if the kernel has too many evicted files to forget.
    fn kernel_forgets(&self, victim: &Victim) -> bool {
        let began = Instant::now();
        while self.store.is_behind() {
            if self.stopping() || began.elapsed() > FORGET {
                return false;
            }
            self.store.let_go(victim.file.slot);
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Waits until the backing has the room that was freed, or has had time enough to say so.
    fn settle(&self, backing: &Backing, before: Ledger, freed: u64) {
        let began = Instant::now();
        loop {
            self.store.let_go(backing.slot);
            backing.space.distrust();
            self.count(backing);
            let now = Ledger::of(backing);
            // Writers take some of it at once.
            let taken = now.granted - before.granted + before.promised;
            if now.available.saturating_add(taken) >= before.available.saturating_add(freed / 2)
                || began.elapsed() > SETTLE
                || self.stopping()
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn save(&mut self, backings: &[Arc<Backing>]) {
        self.saved = Instant::now();
        if self.retention.options.evict != Evict::Lru {
            return;
        }
        for backing in backings.iter().filter(|b| b.evictable) {
            self.state.beat();
            let knows_all = self.surveyed.is_some();
            if let Err(e) = recency::save(backing, self.store.index(), &self.retention.clock, knows_all) {
                tracing::warn!(
                    "backing {}: the record of uses can't be written: {e}",
                    backing.path.display()
                );
            }
        }
    }
}

/// What a backing has free, and what writers may take of it.
#[derive(Clone, Copy)]
struct Ledger {
    available: u64,
    granted: u64,
    promised: u64,
}

impl Ledger {
    fn of(backing: &Backing) -> Ledger {
        let (granted, promised) = (backing.space.granted(), backing.space.promised());
        let available = backing.room().map_or(0, |room| room.available);
        Ledger { available, granted, promised }
    }
}

/// What a round has taken from a backing.
#[derive(Default)]
struct Taken {
    /// By class.
    files: [u64; 3],
    bytes: u64,
    /// Files that couldn't go.
    refused: HashSet<EntryId>,
    failures: u32,
    failure: Option<String>,
}

impl Taken {
    fn gone(&self) -> u64 {
        self.files.iter().sum()
    }
}
