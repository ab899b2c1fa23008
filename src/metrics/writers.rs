//! Who made files lately, and where: for `kvfs top`.
//!
//! What always holds: there are at most [`MOST`] lines; whose file it was is looked up when a thread is new, or was
//! silent for a moment, so that an id which has changed hands isn't taken for who had it before by more than that.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Lines, each of a thread and a backing.
const MOST: NonZeroUsize = NonZeroUsize::new(1024).expect("more than 0");
/// After so long without a file a thread is looked up anew.
const SILENT: Duration = Duration::from_secs(1);

/// A process that made files on a backing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Writer {
    /// Its id, in the daemon's pid namespace.
    pub pid: u32,
    /// Its name (`/proc/PID/comm`).
    pub name: String,
    /// The GPU that its last file there belongs to, where placement has found that out.
    pub gpu: Option<u64>,
    /// The backing's slot.
    pub backing: u8,
    /// Files that it has made there, as far as that's remembered.
    pub files: u64,
    /// Seconds since the last one.
    pub idle_s: f64,
}

struct Line {
    pid: u32,
    name: String,
    gpu: Option<u64>,
    files: u64,
    last: Instant,
}

/// The lines.
pub struct Writers(Mutex<LruCache<(u32, u8), Line>>);

impl Default for Writers {
    fn default() -> Writers {
        Writers(Mutex::new(LruCache::new(MOST)))
    }
}

impl Writers {
    /// A thread has made a file on a backing, for this GPU. `who` says whose thread it is: id and name.
    pub fn wrote(
        &self,
        tid: u32,
        backing: u8,
        gpu: Option<u64>,
        who: impl FnOnce() -> Option<(u32, String)>,
    ) {
        let now = Instant::now();
        {
            let mut lines = self.0.lock();
            if let Some(line) = lines.get_mut(&(tid, backing))
                && now.duration_since(line.last) < SILENT
            {
                (line.files, line.last, line.gpu) = (line.files + 1, now, gpu);
                return;
            }
        }
        // Without the lock: `/proc` is read.
        let Some((pid, name)) = who() else { return };
        let mut lines = self.0.lock();
        let before = lines.pop(&(tid, backing)).filter(|line| line.pid == pid && line.name == name);
        let files = before.map_or(0, |line| line.files) + 1;
        lines.put((tid, backing), Line { pid, name, gpu, files, last: now });
    }

    /// Those of whom something is remembered, by process and backing; who wrote last comes first.
    pub fn recent(&self) -> Vec<Writer> {
        let now = Instant::now();
        let mut all: Vec<Writer> = Vec::new();
        for ((_, backing), line) in self.0.lock().iter() {
            match all.iter_mut().find(|w| (w.pid, w.backing, &w.name) == (line.pid, *backing, &line.name)) {
                Some(writer) => writer.files += line.files,
                None => all.push(Writer {
                    pid: line.pid,
                    name: line.name.clone(),
                    gpu: line.gpu,
                    backing: *backing,
                    files: line.files,
                    idle_s: now.saturating_duration_since(line.last).as_secs_f64(),
                }),
            }
        }
        all
    }
}
