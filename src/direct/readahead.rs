//! Reading files ahead, in the background.
//!
//! What always holds: it's a favour: what doesn't fit the queue, can't be opened or may not be read is left
//! out; nobody waits for it.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use rustix::fs::{Advice, fadvise};

use crate::fs::{Caller, Found, Fs};

/// Files that may wait.
const QUEUE: usize = 1024;

/// Bytes that every device reads ahead if asked to; the rest of a longer range is left out without an error
/// (force_page_cache_ra in mm/readahead.c).
const AT_ONCE: NonZeroU64 = NonZeroU64::new(128 << 10).unwrap();

struct Wanted {
    caller: Caller,
    found: Found,
}

/// The queue and its thread.
pub(super) struct Readahead {
    queue: SyncSender<Wanted>,
}

impl Readahead {
    pub(super) fn start(fs: Arc<Fs>) -> std::io::Result<Readahead> {
        let (queue, wanted) = sync_channel::<Wanted>(QUEUE);
        std::thread::Builder::new().name("kvfs-readahead".into()).spawn(move || {
            for Wanted { caller, found } in wanted {
                match fs.open_found(&caller, &found) {
                    Ok(file) => read_ahead(&file),
                    Err(e) => tracing::debug!("not read ahead: {e}"),
                }
            }
        })?;
        Ok(Readahead { queue })
    }

    /// Queues files in their order; says how many found room.
    pub(super) fn queue(&self, caller: &Caller, files: Vec<Found>) -> usize {
        let mut queued = 0;
        for found in files {
            if self.queue.try_send(Wanted { caller: *caller, found }).is_err() {
                break;
            }
            queued += 1;
        }
        queued
    }
}

fn read_ahead(file: &OwnedFd) {
    let size = rustix::fs::fstat(file).map_or(0, |stat| stat.st_size.cast_unsigned());
    for at in (0..size).step_by(AT_ONCE.get() as usize) {
        if let Err(e) = fadvise(file, at, Some(AT_ONCE), Advice::WillNeed) {
            return tracing::debug!("not read ahead: {e}");
        }
    }
}
