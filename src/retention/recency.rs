//! What is known of uses, kept on the backing so that a later mount knows it too.
//!
//! A file's own times don't tell when it was last read: backings are mounted with `noatime` or `relatime`.
//! What always holds: the record is a hint; one that is damaged, old or missing is no error, and files that
//! it doesn't name are judged by their own times. It's written whole, beside the old one, and then renamed.

use std::io::{self, BufWriter, Read, Write};
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use xxhash_rust::xxh3::xxh3_64;

use super::Clock;
use crate::backing::Backing;
use crate::index::{Index, Slot};

const NAME: &str = ".kvfs-recency";
const NEW: &str = ".kvfs-recency.new";
/// Format, and version of it.
const MAGIC: &[u8; 8] = b"kvfsuse1";
/// A hash of the path, and seconds since 1970.
const RECORD: usize = 12;
/// Names looked at while the index is locked.
const AT_A_TIME: u32 = 4096;

/// When files were last used, by a hash of their paths: sorted by it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Uses(Vec<(u64, u32)>);

impl Uses {
    /// In seconds since 1970.
    pub(super) fn of(&self, path: &[u8]) -> Option<u32> {
        let key = key(path);
        self.0.binary_search_by_key(&key, |(known, _)| *known).ok().map(|n| self.0[n].1)
    }
}

/// The hash that a path is known by.
fn key(path: &[u8]) -> u64 {
    xxh3_64(path)
}

/// Reads a backing's record; empty where there is none that can be read.
pub(super) fn load(backing: &Backing) -> Uses {
    read(backing).unwrap_or_else(|e| {
        if e.kind() != io::ErrorKind::NotFound {
            tracing::warn!("backing {}: the record of uses can't be read: {e}", backing.path.display());
        }
        Uses::default()
    })
}

fn read(backing: &Backing) -> io::Result<Uses> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat(backing.root(), NAME, flags, Mode::empty())?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
}

fn parse(bytes: &[u8]) -> Option<Uses> {
    let records = bytes.strip_prefix(MAGIC)?;
    let (records, sum) = records.split_at(records.len().checked_sub(8)?);
    if records.len() % RECORD != 0 || xxh3_64(records).to_le_bytes() != *sum {
        return None;
    }
    let record = |r: &[u8]| {
        let (key, time) = r.split_at(8);
        Some((u64::from_le_bytes(key.try_into().ok()?), u32::from_le_bytes(time.try_into().ok()?)))
    };
    let mut uses: Vec<(u64, u32)> = records.chunks_exact(RECORD).filter_map(record).collect();
    uses.sort_unstable();
    Some(Uses(uses))
}

/// Writes a backing's record. What isn't known of a use, unless `knows_all`, the old record may know.
pub(super) fn save(
    backing: &Backing,
    index: &RwLock<Index>,
    clock: &Clock,
    knows_all: bool,
) -> io::Result<()> {
    let old = if knows_all { Uses::default() } else { read(backing).unwrap_or_default() };
    let records = collect(backing.slot, index, clock, &old);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Left by a mount that ended in the middle of this.
    let _ = unlinkat(backing.root(), NEW, AtFlags::empty());
    let file = std::fs::File::from(openat(backing.root(), NEW, flags, Mode::from_raw_mode(0o600))?);
    let mut out = BufWriter::new(&file);
    out.write_all(MAGIC)?;
    out.write_all(&records)?;
    out.write_all(&xxh3_64(&records).to_le_bytes())?;
    out.flush()?;
    drop(out);
    file.sync_data()?;
    renameat(backing.root(), NEW, backing.root(), NAME)?;
    Ok(())
}

fn collect(slot: Slot, index: &RwLock<Index>, clock: &Clock, old: &Uses) -> Vec<u8> {
    let mut records = Vec::new();
    let mut from = 0;
    loop {
        let index = index.read();
        let end = index.end().min(from + AT_A_TIME);
        for number in from..end {
            let Some((entry, file)) = index.file_entry(number) else { continue };
            if file.slot != slot {
                continue;
            }
            let (dir, name) = index.place(entry);
            let path = index.path_of(dir, name);
            let used = clock.time(index.use_of(entry).1).and_then(seconds);
            if let Some(used) = used.or_else(|| old.of(&path)) {
                records.extend_from_slice(&key(&path).to_le_bytes());
                records.extend_from_slice(&used.to_le_bytes());
            }
        }
        if end == index.end() {
            return records;
        }
        from = end;
    }
}

fn seconds(time: SystemTime) -> Option<u32> {
    u32::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// The time of a record.
pub(super) fn time(seconds: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(records: &[(u64, u32)]) -> Vec<u8> {
        let records: Vec<u8> =
            records.iter().flat_map(|(k, t)| [&k.to_le_bytes()[..], &t.to_le_bytes()].concat()).collect();
        [&MAGIC[..], &records, &xxh3_64(&records).to_le_bytes()].concat()
    }

    #[test]
    fn a_record_is_read_whole_or_not_at_all() {
        let bytes = file(&[(1, 10), (2, 20)]);
        assert_eq!(parse(&bytes), Some(Uses(vec![(1, 10), (2, 20)])));
        assert_eq!(parse(&file(&[])), Some(Uses::default()));
        for damaged in
            [&bytes[..bytes.len() - 1], &bytes[1..], b"", b"kvfsuse1", &[&bytes[..], b"x"].concat()]
        {
            assert_eq!(parse(damaged), None);
        }
        let (a, b) = (key(b"dir/a"), key(b"b"));
        let uses = parse(&file(&[(a, 7), (b, 8)])).unwrap();
        assert_eq!([&b"dir/a"[..], b"b", b"c"].map(|path| uses.of(path)), [Some(7), Some(8), None]);
        let mut flipped = bytes;
        flipped[12] ^= 1;
        assert_eq!(parse(&flipped), None);
    }
}
