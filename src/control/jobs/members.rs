//! Backings that join and leave, as jobs.
//!
//! What always holds: a backing that has left is closed as far as nobody has a file of it open, so its drive can
//! be unmounted; the answer says if that has to wait.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::job::{Ended, Job};
use super::{Context, TOLD};
use crate::backing::{Backing, Made, Passthrough};
use crate::index::Slot;

/// How long requests on a backing that has left may take to end.
const CLOSED: Duration = Duration::from_secs(2);

/// What would go with a backing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The backing.
    pub path: PathBuf,
    /// Files that no other backing has a copy of.
    pub files: u64,
    /// What its files take in bytes, if that's counted.
    pub bytes: Option<u64>,
    /// Files of which an older copy on another backing appears instead.
    pub shadows: u64,
    /// Directories that no other backing has.
    pub dirs: u64,
    /// Files there that are open.
    pub open: u64,
}

pub(super) fn add(context: &Context, job: &Job, backing: Backing, made: Made) -> Ended {
    let (fs, slot, path) = (&context.fs, backing.slot, backing.path.clone());
    context.direct.backing_joins(&backing);
    let passthrough = backing.passthrough().clone();
    job.note("reading it");
    let brought = fs.join(backing).map_err(|e| format!("{} can't join: {e}", path.display()))?;
    made.keep();
    fs.remove_leftovers(&brought.leftovers);
    fs.told(TOLD);
    fs.record_joined(slot);
    for problem in brought.problems.iter().take(20) {
        tracing::warn!("backing {}: skipped {problem}", path.display());
    }
    let mut note = format!("it's backing {} now, with {} files that weren't there", slot.0, brought.files);
    if brought.duplicates > 0 {
        note +=
            &format!("; {} paths are on other backings too, the newest copy is the file", brought.duplicates);
    }
    if brought.in_use > 0 {
        note += &format!(
            " ({} newer copies have to wait for the next mount: the older ones are open)",
            brought.in_use
        );
    }
    if !brought.problems.is_empty() {
        note += &format!("; {} names are not shown, see the log", brought.problems.len());
    }
    if let Passthrough::Off(why) = passthrough {
        note += &format!("; its data goes through the daemon: {why}");
    }
    note += "; list it in --backing (or fstab) for the next mount";
    Ok(note)
}

pub(super) fn remove(context: &Context, slot: Slot, force: bool) -> Ended {
    let fs = &context.fs;
    let backing = fs.backings().get(slot).cloned().ok_or("the backing was removed already")?;
    let path = backing.path.clone();
    if !force {
        let unknown =
            fs.count_on_drive(slot).map_err(|e| format!("{} can't be read: {e}", path.display()))?;
        if unknown > 0 {
            return Err(format!(
                "{} has {unknown} names that this mount doesn't show, put there by somebody else or hidden by a directory of another backing; look at them there, or remove it with --force",
                path.display()
            ));
        }
    }
    let open = fs.losses(slot).open;
    // A failed drive can't be told; it's not asked at the next mount either.
    if let Err(e) = backing.forget_job()
        && !force
    {
        return Err(format!("{}: its .kvfs-job can't be removed: {e}", path.display()));
    }
    drop(backing);
    let parted = fs.part(slot, force).map_err(|e| match e.errno() {
        Errno::BUSY => format!("{} has got a file meanwhile; drain it again", path.display()),
        _ => format!("{} can't be removed: {e}", path.display()),
    })?;
    context.direct.backing_left(slot);
    fs.told(TOLD);
    fs.record_left(slot);
    let closed = parted.backing.is_none_or(|backing| closes(backing, &path));
    let mut note = format!("{} is no longer part of the mount", path.display());
    if parted.files > 0 {
        note += &format!(", and {} files with it", parted.files);
    }
    if parted.stuck > 0 {
        note += &format!("; {} names stay in listings, for requests on them don't come back", parted.stuck);
    }
    note += match (open, closed) {
        (0, true) => "; its drive can be unmounted",
        (0, false) => "; its drive can be unmounted when the requests on it have ended",
        _ => "; files of it that are open go on working, and its drive can be unmounted when they're closed",
    };
    note += "; take it out of --backing (or fstab)";
    Ok(note)
}

/// Waits for the requests that still use the backing. Whether all that was open of it is closed.
fn closes(backing: Arc<Backing>, path: &Path) -> bool {
    let deadline = Instant::now() + CLOSED;
    let mut backing = Some(backing);
    loop {
        // Ours is the last one: dropped with it are root and marker.
        backing = backing.and_then(|b| match Arc::try_unwrap(b) {
            Ok(last) => {
                drop(last);
                None
            }
            Err(shared) => Some(shared),
        });
        if backing.is_none() && open_below(path) == 0 {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many descriptors of this process are at or below a path.
fn open_below(path: &Path) -> usize {
    let Ok(all) = std::fs::read_dir("/proc/self/fd") else { return 0 };
    let is_below = |fd: &std::fs::DirEntry| {
        // Where it leads, without going there.
        std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(path))
    };
    all.filter_map(Result::ok).filter(is_below).count()
}
