//! Looking at files that were there before the mount: when they were used, who made them, what they take.
//!
//! The scan at the start reads names alone. What always holds: a survey looks at a file only if something
//! will be made of it: creators only where they matter, times only for `--evict lru`, sizes only where they
//! are counted; and only once room gets short, unless sizes are counted. It's in no hurry unless somebody
//! waits for room: half of the time it rests. Each file system is surveyed by itself.

use std::time::{Duration, Instant, SystemTime};

use super::creators::{ANYONE, GONE, UNDECIDED};
use super::{Evict, Record, Retention, Seen, Store, is_known_by_memory, place, recency};
use crate::backing::Backing;
use crate::index::{CreatorCode, EntryId, Index, Kind, Moment, Slot};

/// Names gone through between rests.
const AT_A_TIME: u32 = 1024;

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
    /// From this entry on nothing was looked at yet.
    pub(super) next: u32,
    end: u32,
    uses: Vec<(Slot, recency::Uses)>,
    /// Before that, no process began that is there now and could be a client; `None`: can't be told.
    clients_since: Option<SystemTime>,
}

impl Survey {
    /// Of all files that the index has now on these backings.
    pub(super) fn begin<'a>(
        retention: &Retention,
        store: &dyn Store,
        backings: impl Iterator<Item = &'a Backing>,
    ) -> Survey {
        let end = store.index().read().end();
        let uses = |b: &Backing| {
            let uses =
                if retention.options.evict == Evict::Lru { recency::load(b) } else { Default::default() };
            (b.slot, uses)
        };
        Survey { next: 0, end, uses: backings.map(uses).collect(), clients_since: clients_since(retention) }
    }

    /// Looks at some files; `None` when all were looked at, else how far it is. `hurried` says whether
    /// somebody waits.
    pub(super) fn go_on(&mut self, retention: &Retention, store: &dyn Store, hurried: bool) -> Option<u32> {
        let began = Instant::now();
        let until = self.next.saturating_add(AT_A_TIME).min(self.end);
        let unseen: Vec<(Unseen, &recency::Uses)> = {
            let index = store.index().read();
            let is_counting = index.is_counting();
            (self.next..until)
                .filter_map(|number| self.unseen(retention, &index, number, is_counting))
                .collect()
        };
        let looked = !unseen.is_empty();
        for (file, uses) in unseen {
            self.look_at(retention, store, file, uses);
        }
        self.next = until;
        if self.next >= self.end {
            return None;
        }
        if looked && !hurried {
            std::thread::sleep(began.elapsed().min(Duration::from_millis(100)));
        }
        Some(self.next)
    }

    /// How far it is, in names: so many of so many.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.next.into(), self.end.into())
    }

    /// A file of these backings of which something isn't known yet.
    fn unseen(
        &self,
        retention: &Retention,
        index: &Index,
        number: u32,
        is_counting: bool,
    ) -> Option<(Unseen, &recency::Uses)> {
        let (entry, file) = index.file_entry(number)?;
        let (_, uses) = self.uses.iter().find(|(slot, _)| *slot == file.slot)?;
        let (creator, used) = index.use_of(entry);
        let lacks_time = retention.options.evict == Evict::Lru && used == Moment(0);
        let lacks_creator = retention.evicts() && matches!(creator, ANYONE | UNDECIDED);
        let lacks_size = is_counting && index.size(entry) == 0;
        if file.kind != Kind::File || !(lacks_time || lacks_creator || lacks_size) {
            return None;
        }
        let (dir, name) = place(index, entry);
        let path = index.path_of(dir, &name);
        if !lacks_time && !lacks_size && !is_known_by_memory(&path) {
            return None;
        }
        Some((Unseen { entry, file, dir, name, path }, uses))
    }

    fn look_at(&self, retention: &Retention, store: &dyn Store, file: Unseen, uses: &recency::Uses) {
        let (is_counting, (creator, moment)) = {
            let index = store.index().read();
            (index.is_counting(), index.use_of(file.entry))
        };
        let recorded = uses.of(&file.path).map(recency::time);
        let needs_time = retention.options.evict == Evict::Lru && recorded.is_none() && moment == Moment(0);
        let needs_creator =
            retention.evicts() && matches!(creator, ANYONE | UNDECIDED) && is_known_by_memory(&file.path);
        let seen = if is_counting || needs_time || needs_creator {
            store.look(file.dir, &file.name, file.file)
        } else {
            None
        };
        let code = needs_creator.then(|| self.creator(retention, seen.as_ref()));
        let index = store.index().read();
        if index.live(file.entry).is_none_or(|what| what.node() != file.file.node()) {
            return;
        }
        if moment == Moment(0)
            && let Some(used) = recorded.or(seen.as_ref().map(|seen| seen.used))
        {
            index.used_at(file.entry, retention.clock.moment(used));
        }
        // Somebody may have written it meanwhile.
        if let Some((code, record)) = code
            && index.use_of(file.entry).0 == creator
        {
            index.set_creator(file.entry, retention.creators.confirmed(code, record.as_ref()));
        }
        if let (true, Some(seen)) = (is_counting, &seen)
            && index.size(file.entry) == 0
        {
            index.count_found(file.entry, seen.links, seen.bytes);
        }
    }

    /// Who made a file of which only its creator knows.
    fn creator(&self, retention: &Retention, seen: Option<&Seen>) -> (CreatorCode, Option<Record>) {
        let Some(seen) = seen else { return (UNDECIDED, None) };
        if let Some(record) = seen.record.as_deref().and_then(Record::decode) {
            return (retention.creators.of_record(&record), Some(record));
        }
        match self.clients_since {
            // Who is there now began when the file was finished already.
            Some(since) if seen.changed < since => (GONE, None),
            _ => (UNDECIDED, None),
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
