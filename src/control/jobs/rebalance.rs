//! Rebalancing: files move from the fullest backing to the emptiest until all are about equally full.
//!
//! What always holds: what counts is what the file systems say, looked at again when the work seems done; what
//! was removed a moment ago and isn't free yet counts as free meanwhile. No file is moved that would leave its
//! new backing fuller than its old one, so the work ends.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::TOLD;
use super::job::{Ended, Job};
use super::mover::move_all;
use crate::backing::State;
use crate::fs::{Fs, Item};
use crate::index::{DirId, Slot, SlotSet};

/// How long a file system may take to free what was removed (XFS does it in the background).
const SETTLES: Duration = Duration::from_secs(3);
/// How often the file systems are asked meanwhile.
const FRESH: Duration = Duration::from_millis(500);

/// A file system that takes part, with the backings on it.
#[derive(Debug)]
struct Drive {
    device: u64,
    slots: Vec<Slot>,
    total: u64,
    /// What it says, corrected by what has moved lately.
    used: i64,
    /// What is on its way here, less what is on its way from here.
    flying: i64,
    /// Its files from here on haven't been tried. `None` when all have.
    next: Option<(usize, u32)>,
    /// Files that are next.
    found: VecDeque<Item>,
}

impl Drive {
    fn is_exhausted(&self) -> bool {
        self.found.is_empty() && self.next.is_none()
    }

    /// The used share, when what is on its way has arrived.
    fn share(&self) -> f64 {
        (self.used + self.flying) as f64 / self.total.max(1) as f64
    }
}

struct Plan<'a> {
    fs: &'a Fs,
    /// Share of a drive, 0 to 1.
    tolerance: f64,
    state: Mutex<PlanState>,
}

struct PlanState {
    drives: Vec<Drive>,
    measured: Instant,
    /// What was moved lately: when, from which drive, to which, how much.
    lately: VecDeque<(Instant, u64, i64)>,
    flying: Vec<Flight>,
}

/// A file on its way.
struct Flight {
    place: (DirId, Vec<u8>),
    from: Slot,
    to: Slot,
    bytes: i64,
}

impl PlanState {
    fn drive(&mut self, slot: Slot) -> Option<&mut Drive> {
        self.drives.iter_mut().find(|d| d.slots.contains(&slot))
    }

    fn take_off(&mut self, item: &Item, to: Slot, bytes: i64) {
        let from = item.file.slot;
        self.flying.push(Flight { place: (item.dir, item.name.clone()), from, to, bytes });
        self.weigh(from, to, bytes);
    }

    fn land(&mut self, item: &Item) {
        let is_it = |f: &Flight| f.place.0 == item.dir && f.place.1 == item.name;
        if let Some(at) = self.flying.iter().position(is_it) {
            let Flight { from, to, bytes, .. } = self.flying.swap_remove(at);
            self.weigh(from, to, -bytes);
        }
    }

    fn weigh(&mut self, from: Slot, to: Slot, bytes: i64) {
        self.drive(from).into_iter().for_each(|d| d.flying -= bytes);
        self.drive(to).into_iter().for_each(|d| d.flying += bytes);
    }
}

pub(super) fn rebalance(fs: &Fs, job: &Job, tolerance: f64) -> Ended {
    let mut moved = 0;
    loop {
        let plan = Plan::new(fs, tolerance / 100.0);
        let spread = plan.spread();
        if spread <= plan.tolerance {
            return Ok(format!("the backings' used shares are within {:.1} % of each other", spread * 100.0));
        }
        job.skipped.store(0, Relaxed);
        let to = |item: &Item, bytes: u64, tried: SlotSet| plan.target(item, bytes, tried);
        let tally = move_all(fs, job, &|| plan.next(job), &to, &|item, done| plan.has_ended(item, done));
        if let Some(fatal) = tally.fatal.lock().take() {
            return Err(fatal);
        }
        fs.told(TOLD);
        // What was removed has to be free before it's looked at again.
        if !job.wait(SETTLES) {
            return Ok(String::new());
        }
        let now = tally.moved.load(Relaxed);
        moved += now;
        if now == 0 {
            let spread = Plan::new(fs, plan.tolerance).spread();
            if spread <= plan.tolerance {
                continue;
            }
            let (busy, stuck) = (tally.busy.load(Relaxed), tally.why_stuck());
            let why = match (busy, stuck.is_empty()) {
                (0, true) => "every file left is too large, or there is none".into(),
                (0, false) => stuck,
                _ => format!("{busy} files are open"),
            };
            return Ok(format!(
                "{moved} files moved; the used shares differ by {:.1} % still: {why}",
                spread * 100.0
            ));
        }
    }
}

impl<'a> Plan<'a> {
    fn new(fs: &'a Fs, tolerance: f64) -> Plan<'a> {
        let mut drives: Vec<Drive> = Vec::new();
        for backing in fs.backings().iter().filter(|b| b.state() == State::ReadWrite && b.is_open_to_files())
        {
            let Ok(room) = backing.room() else { continue };
            match drives.iter_mut().find(|d| d.device == backing.device) {
                Some(drive) => drive.slots.push(backing.slot),
                None => drives.push(Drive {
                    device: backing.device,
                    slots: vec![backing.slot],
                    total: room.total,
                    used: room.total.saturating_sub(room.free) as i64,
                    flying: 0,
                    next: Some((0, 0)),
                    found: VecDeque::new(),
                }),
            }
        }
        let state =
            PlanState { drives, measured: Instant::now(), lately: VecDeque::new(), flying: Vec::new() };
        Plan { fs, tolerance, state: Mutex::new(state) }
    }

    /// How far the shares are apart.
    fn spread(&self) -> f64 {
        let state = self.state.lock();
        let shares = || state.drives.iter().map(Drive::share);
        let most = shares().fold(0.0, f64::max);
        if state.drives.len() < 2 { 0.0 } else { most - shares().fold(f64::MAX, f64::min) }
    }

    /// The next file to move: of the fullest drive that has untried ones, as long as that's too full.
    fn next(&self, job: &Job) -> Option<Item> {
        let mut state = self.state.lock();
        self.measure(&mut state);
        let left = self.to_move(&state);
        let least = state.drives.iter().map(Drive::share).fold(f64::MAX, f64::min);
        loop {
            let untried = state.drives.iter_mut().filter(|d| !d.is_exhausted());
            let fullest = untried.max_by(|a, b| a.share().total_cmp(&b.share()))?;
            if fullest.share() - least <= self.tolerance {
                return None;
            }
            if let Some(item) = fullest.found.pop_front() {
                job.left.store(left, Relaxed);
                return Some(item);
            }
            let Some((at, from)) = fullest.next else { continue };
            let (items, next) = self.fs.items_on(fullest.slots[at], from);
            fullest.found = items.into();
            fullest.next = match next {
                Some(next) => Some((at, next)),
                None => (at + 1 < fullest.slots.len()).then_some((at + 1, 0)),
            };
        }
    }

    /// How many files that will be, by the size of those that were moved.
    fn to_move(&self, state: &PlanState) -> u64 {
        let (total, used) =
            state.drives.iter().fold((0u64, 0i64), |(t, u), d| (t.saturating_add(d.total), u + d.used));
        let mean = used as f64 / total.max(1) as f64 + self.tolerance / 2.0;
        let over = |d: &Drive| ((d.share() - mean).max(0.0) * d.total as f64) as u64;
        let bytes: u64 = state.drives.iter().map(over).sum();
        let sizes = state.lately.iter().map(|(_, _, bytes)| *bytes).filter(|bytes| *bytes > 0);
        let (count, sum) = sizes.fold((0u64, 0i64), |(n, sum), bytes| (n + 1, sum + bytes));
        (sum as u64).checked_div(count).map_or(0, |size| bytes / size.max(1))
    }

    /// The emptiest backing that has room for it, if it's no fuller than the file's own with it. The file counts
    /// as being there from now on.
    fn target(&self, item: &Item, bytes: u64, tried: SlotSet) -> Option<Slot> {
        let mut state = self.state.lock();
        state.land(item);
        let source = state.drives.iter().find(|d| d.slots.contains(&item.file.slot))?;
        let bytes = i64::try_from(bytes).ok()?;
        let with = |d: &Drive, more: i64| (d.used + d.flying + more) as f64 / d.total.max(1) as f64;
        let after = with(source, -bytes);
        let fits = |d: &&Drive| d.device != source.device && with(d, bytes) <= after;
        let mut drives: Vec<&Drive> = state.drives.iter().filter(fits).collect();
        drives.sort_by(|a, b| a.share().total_cmp(&b.share()));
        let has_room = |slot: &Slot| !tried.has(*slot) && self.fs.has_room_for(*slot, bytes.unsigned_abs());
        let slot = drives.into_iter().flat_map(|d| &d.slots).copied().find(has_room)?;
        state.take_off(item, slot, bytes);
        Some(slot)
    }

    /// A file has been moved, or hasn't.
    fn has_ended(&self, item: &Item, moved: Option<(Slot, u64)>) {
        let mut state = self.state.lock();
        state.land(item);
        let Some((to, bytes)) = moved else { return };
        let now = Instant::now();
        for (slot, bytes) in [(item.file.slot, -(bytes as i64)), (to, bytes as i64)] {
            let Some(drive) = state.drive(slot) else { continue };
            drive.used += bytes;
            let device = drive.device;
            state.lately.push_back((now, device, bytes));
        }
    }

    /// Asks the file systems again.
    fn measure(&self, state: &mut PlanState) {
        if state.measured.elapsed() < FRESH {
            return;
        }
        state.measured = Instant::now();
        state.lately.retain(|(at, ..)| at.elapsed() < SETTLES);
        let backings = self.fs.backings();
        for drive in &mut state.drives {
            let Some(backing) = drive.slots.first().and_then(|slot| backings.get(*slot)) else { continue };
            let Ok(room) = backing.room() else { continue };
            // What came is there; what went may be there still.
            let gone = state.lately.iter().filter(|(_, device, bytes)| *device == drive.device && *bytes < 0);
            drive.used =
                room.total.saturating_sub(room.free) as i64 + gone.map(|(_, _, bytes)| *bytes).sum::<i64>();
        }
    }
}
