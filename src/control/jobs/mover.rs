//! Threads that move files, and what they make of those that can't be moved.
//!
//! What always holds: one file's fault is that file's; a backing that doesn't answer any more ends the work,
//! and every file stays where it is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::job::Job;
use crate::fs::{Buffer, Fs, Item, NotMoved};
use crate::index::{Slot, SlotSet};

/// Files on their way at once. A small one waits for the device several times, and for nothing else.
const THREADS: usize = 4;

/// Files that were tried and are where they were, by the reason.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) moved: AtomicU64,
    /// Open, or changed while they were copied: to be tried again.
    pub(super) busy: AtomicU64,
    /// For no other backing has room.
    pub(super) no_room: AtomicU64,
    /// For they have several names.
    pub(super) linked: AtomicU64,
    /// For their name is taken on the other backing, or they can't be read or copied.
    pub(super) faulty: AtomicU64,
    /// What ended the work.
    pub(super) fatal: Mutex<Option<String>>,
}

impl Tally {
    /// Those that trying again alone won't move.
    pub(super) fn stuck(&self) -> u64 {
        self.no_room.load(Relaxed) + self.linked.load(Relaxed) + self.faulty.load(Relaxed)
    }

    /// Why they can't be moved, for people.
    pub(super) fn why_stuck(&self) -> String {
        let reasons = [
            (&self.no_room, "for which no other backing has room"),
            (&self.linked, "with several names (hard links)"),
            (&self.faulty, "that could not be copied"),
        ];
        let told = reasons.iter().filter(|(n, _)| n.load(Relaxed) > 0);
        told.map(|(n, what)| format!("{} {what}", n.load(Relaxed))).collect::<Vec<_>>().join(", ")
    }
}

/// The next file to be moved.
type Next<'a> = dyn Fn() -> Option<Item> + Sync + 'a;
/// Where a file of so many bytes may go, but for the backings that were tried.
type To<'a> = dyn Fn(&Item, u64, SlotSet) -> Option<Slot> + Sync + 'a;
/// Told what became of a file: where it is and what it takes, if it was moved.
type Did<'a> = dyn Fn(&Item, Option<(Slot, u64)>) + Sync + 'a;

/// Moves what `next` gives, file by file, until it gives nothing more.
pub(super) fn move_all(fs: &Fs, job: &Job, next: &Next<'_>, to: &To<'_>, did: &Did) -> Tally {
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let work = || {
                let mut buffer = Buffer::new();
                while !job.is_stopped()
                    && tally.fatal.lock().is_none()
                    && let Some(item) = next()
                {
                    let moved = one(fs, job, &item, to, &mut buffer, &tally);
                    did(&item, moved);
                }
            };
            let started = std::thread::Builder::new().name("kvfs-move".into()).spawn_scoped(scope, work);
            if let Err(e) = started {
                *tally.fatal.lock() = Some(format!("no thread to move files with: {e}"));
            }
        }
    });
    tally
}

fn one(
    fs: &Fs,
    job: &Job,
    item: &Item,
    to: &To<'_>,
    buffer: &mut Buffer,
    tally: &Tally,
) -> Option<(Slot, u64)> {
    match attempt(fs, job, item, to, buffer) {
        Ok((target, bytes)) => {
            tally.moved.fetch_add(1, Relaxed);
            job.moved.fetch_add(1, Relaxed);
            return Some((target, bytes));
        }
        Err((NotMoved::Gone | NotMoved::Cancelled, _)) => return None,
        Err((NotMoved::Open | NotMoved::Changed, _)) => {
            tally.busy.fetch_add(1, Relaxed);
        }
        Err((NotMoved::NoRoom, _)) => {
            tally.no_room.fetch_add(1, Relaxed);
        }
        Err((NotMoved::Linked, _)) => {
            tally.linked.fetch_add(1, Relaxed);
        }
        Err((e @ (NotMoved::Taken | NotMoved::Source(_) | NotMoved::Target(_)), target)) => {
            tally.faulty.fetch_add(1, Relaxed);
            fault(fs, job, item, e, target, tally);
        }
    }
    job.skipped.fetch_add(1, Relaxed);
    None
}

type Failed = (NotMoved, Option<Slot>);

fn attempt(fs: &Fs, job: &Job, item: &Item, to: &To<'_>, buffer: &mut Buffer) -> Result<(Slot, u64), Failed> {
    let bytes = fs.weigh(item).map_err(|e| (e, None))?;
    let mut tried = SlotSet::EMPTY;
    let mut failed = (NotMoved::NoRoom, None);
    while let Some(target) = to(item, bytes, tried) {
        match fs.relocate(item, target, buffer, &|bytes| job.pace(bytes)) {
            Ok(bytes) => return Ok((target, bytes)),
            // Another may do.
            Err(e @ (NotMoved::NoRoom | NotMoved::Taken)) => {
                tried = tried.with(target);
                failed = (e, Some(target));
            }
            Err(e) => return Err((e, Some(target))),
        }
    }
    Err(failed)
}

/// Says what went wrong with a file, and whether its backing is to blame.
fn fault(fs: &Fs, job: &Job, item: &Item, why: NotMoved, target: Option<Slot>, tally: &Tally) {
    let path = fs.path_of_item(item);
    let backings = fs.backings();
    let name = |slot: Option<Slot>| {
        slot.and_then(|slot| backings.get(slot)).map_or_else(String::new, |b| b.path.display().to_string())
    };
    let (text, suspect) = match why {
        NotMoved::Taken => (format!("{path}: {} has a file of that name already", name(target)), None),
        NotMoved::Source(e) => {
            let from = Some(item.file.slot);
            (format!("{path}: can't be read from {}: {}", name(from), words(e)), from)
        }
        NotMoved::Target(e) => {
            (format!("{path}: can't be written to {}: {}", name(target), words(e)), target)
        }
        _ => return,
    };
    job.error(text.clone());
    let dead = suspect.and_then(|slot| backings.get(slot)).filter(|backing| backing.probe().is_err());
    match dead {
        Some(backing) => {
            let fatal = format!("{text}; backing {} doesn't answer any more", backing.path.display());
            tally.fatal.lock().get_or_insert(fatal);
        }
        None => tracing::warn!("{}: {text}", job.kind.name()),
    }
}

fn words(e: Errno) -> std::io::Error {
    e.into()
}
