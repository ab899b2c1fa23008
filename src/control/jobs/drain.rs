//! Draining: every file leaves a backing.
//!
//! What always holds: it ends well only when no name is on the backing and no directory is on it alone, so that
//! nothing goes with the backing when it's removed. Files that are open are waited for.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;

use super::TOLD;
use super::job::{Ended, Job};
use super::mover::{Tally, move_all};
use crate::fs::{Fs, Item};
use crate::index::{Slot, SlotSet};

/// How long is waited before files that are open are tried again: the first time, and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// One pass over the files of a backing.
struct Pass<'a> {
    fs: &'a Fs,
    slot: Slot,
    /// What was found, and where to go on.
    found: Mutex<(VecDeque<Item>, Option<u32>)>,
}

impl Pass<'_> {
    fn next(&self) -> Option<Item> {
        let mut found = self.found.lock();
        loop {
            if let Some(item) = found.0.pop_front() {
                return Some(item);
            }
            let (items, next) = self.fs.items_on(self.slot, found.1?);
            *found = (items.into(), next);
        }
    }
}

pub(super) fn drain(fs: &Fs, job: &Job, slot: Slot) -> Ended {
    let mut pause = PAUSE[0];
    loop {
        let tally = pass(fs, job, slot);
        if let Some(fatal) = tally.fatal.lock().take() {
            return Err(fatal);
        }
        if job.is_stopped() {
            return Ok(String::new());
        }
        let shadows = remove_shadows(fs, job, slot);
        let left = fs.left_on(slot);
        job.left.store(left.0, Relaxed);
        if left == (0, 0) {
            fs.spread_dirs(slot).map_err(|e| format!("a directory can't be made on another backing: {e}"))?;
            // Somebody may have made one, or a lookup found a file, meanwhile.
            let losses = fs.losses(slot);
            if losses.files + losses.dirs == 0 {
                fs.told(TOLD);
                return Ok("no file is left; `kvfs backing remove` takes it out of the mount".into());
            }
            if !job.wait(PAUSE[0]) {
                return Ok(String::new());
            }
            continue;
        }
        let (moved, busy) = (tally.moved.load(Relaxed), tally.busy.load(Relaxed));
        if moved == 0 && busy == 0 && tally.stuck() >= left.0 {
            return Err(match shadows {
                Some(e) => format!("an older copy could not be removed: {e}"),
                None => format!("files stay: {}", tally.why_stuck()),
            });
        }
        if busy > 0 {
            job.note(format!("waiting for {busy} files that are open or were just changed"));
        }
        pause = if moved > 0 { PAUSE[0] } else { (pause * 2).min(PAUSE[1]) };
        if !job.wait(pause) {
            return Ok(String::new());
        }
    }
}

fn pass(fs: &Fs, job: &Job, slot: Slot) -> Tally {
    job.left.store(fs.left_on(slot).0, Relaxed);
    job.skipped.store(0, Relaxed);
    let pass = Pass { fs, slot, found: Mutex::new((VecDeque::new(), Some(0))) };
    let to = |item: &Item, bytes: u64, tried: SlotSet| fs.target_for(item, bytes, tried);
    move_all(fs, job, &|| pass.next(), &to, &|_, moved| {
        if moved.is_some() {
            let _ = job.left.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_sub(1)));
        }
    })
}

/// Older copies behind other backings' files need not be moved. What went wrong, if something did.
fn remove_shadows(fs: &Fs, job: &Job, slot: Slot) -> Option<String> {
    let mut failed = None;
    for (dir, name) in fs.shadowed_on(slot) {
        if let Err(e) = fs.remove_shadow(dir, &name, slot) {
            failed = Some(format!("{}: {e}", crate::printable::printable(&name)));
        }
    }
    if let Some(e) = &failed {
        job.error(e.clone());
    }
    failed
}
