//! Looking at files that were there before the mount: when they were used, who made them, what they take.
//!
//! The scan at the start reads names alone. What always holds: a survey looks at a file only if something
//! will be made of it: creators only where they matter, times only for `--evict lru`, sizes only where they
//! are counted; and only once room gets short, unless sizes are counted. It's in no hurry unless somebody
//! waits for room: half of the time it rests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use super::creators::{ANYONE, GONE, UNDECIDED};
use super::{Evict, Record, Retention, Seen, Store, is_known_by_memory, place, recency};
use crate::index::{CreatorCode, EntryId, Index, Kind, Slot};

/// Names looked at between rests.
const AT_A_TIME: u32 = 1024;

/// How far a survey is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) done: AtomicBool,
    pub(super) looked: AtomicU64,
    pub(super) of: AtomicU64,
}

/// A file to be looked at.
struct Unseen {
    entry: EntryId,
    file: crate::index::FileRef,
    dir: crate::index::DirId,
    name: Vec<u8>,
    path: Vec<u8>,
}

/// A survey under way.
pub(super) struct Survey {
    next: u32,
    end: u32,
    uses: HashMap<Slot, recency::Uses>,
    /// Before that, no process began that is there now and could be a client; `None`: can't be told.
    clients_since: Option<SystemTime>,
}

impl Survey {
    /// Of all files that the index has now.
    pub(super) fn begin(retention: &Retention, store: &dyn Store) -> Survey {
        let backings = store.backings();
        let uses = backings.iter().map(|b| (b.slot, recency::load(b))).collect();
        let end = store.index().read().end();
        retention.survey.of.store(u64::from(end), Relaxed);
        Survey { next: 0, end, uses, clients_since: clients_since(retention) }
    }

    /// Looks at some files; true when all were looked at. `hurried` says whether somebody waits.
    pub(super) fn go_on(&mut self, retention: &Retention, store: &dyn Store, hurried: bool) -> bool {
        let began = Instant::now();
        let until = self.next.saturating_add(AT_A_TIME).min(self.end);
        let unseen: Vec<Unseen> = {
            let index = store.index().read();
            (self.next..until).filter_map(|number| unseen(&index, number)).collect()
        };
        for file in unseen {
            self.look_at(retention, store, file);
        }
        self.next = until;
        retention.survey.looked.store(u64::from(until), Relaxed);
        let done = self.next >= self.end;
        if done {
            retention.survey.done.store(true, Relaxed);
        } else if !hurried {
            std::thread::sleep(began.elapsed().min(Duration::from_millis(100)));
        }
        done
    }

    fn look_at(&self, retention: &Retention, store: &dyn Store, file: Unseen) {
        let counting = store.index().read().is_counting();
        let by_memory = is_known_by_memory(&file.path);
        let recorded = self.uses.get(&file.file.slot).and_then(|uses| uses.get(&recency::key(&file.path)));
        let used = recorded.map(|seconds| recency::time(*seconds));
        let needs_time = retention.options.evict == Evict::Lru && used.is_none();
        let needs_creator = by_memory && retention.evicts();
        let seen = if counting || needs_time || needs_creator {
            store.look(file.dir, &file.name, file.file)
        } else {
            None
        };
        let index = store.index().read();
        if index.live(file.entry).is_none_or(|what| what.node() != file.file.node()) {
            return;
        }
        if let Some(used) = used.or(seen.as_ref().map(|seen| seen.used)) {
            index.used_at(file.entry, retention.clock.moment(used));
        }
        if needs_creator && index.use_of(file.entry).0 == ANYONE {
            index.set_creator(file.entry, self.creator(retention, seen.as_ref()));
        }
        if let (true, Some(seen)) = (counting, &seen)
            && index.size(file.entry) == 0
        {
            index.set_size(file.entry, seen.bytes);
        }
    }

    /// Who made a file of which only its creator knows.
    fn creator(&self, retention: &Retention, seen: Option<&Seen>) -> CreatorCode {
        let Some(seen) = seen else { return UNDECIDED };
        if let Some(record) = seen.record.as_deref().and_then(Record::decode) {
            return retention.creators.of_record(&record);
        }
        match self.clients_since {
            // Who is there now began when the file was finished already.
            Some(since) if seen.changed < since => GONE,
            _ => UNDECIDED,
        }
    }
}

/// When the oldest client that is there began; now, if there is none.
fn clients_since(retention: &Retention) -> Option<SystemTime> {
    let now = SystemTime::now();
    match retention.creators.oldest_client() {
        Ok(None) => Some(now),
        Ok(Some(uptime)) => {
            let text = std::fs::read_to_string("/proc/uptime").ok()?;
            let now_uptime: f64 = text.split(' ').next()?.parse().ok()?;
            // Start times are rounded to ticks: two of them to be sure.
            let ago = Duration::try_from_secs_f64((now_uptime - uptime + 0.02).max(0.0)).ok()?;
            now.checked_sub(ago)
        }
        Err(_) => None,
    }
}

fn unseen(index: &Index, number: u32) -> Option<Unseen> {
    let (entry, file) = index.file_entry(number)?;
    if file.kind != Kind::File {
        return None;
    }
    let (dir, name) = place(index, entry);
    let path = index.path_of(dir, &name);
    Some(Unseen { entry, file, dir, name, path })
}
