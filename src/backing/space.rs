//! A backing's room: what its file system has, and the reserve that new files must leave.
//!
//! What always holds: `statvfs` is asked at most once in 20 ms while there is plenty, and every time when
//! the reserve is near, so a create costs no system call in the common case. What counts is what the file
//! system really has; to that comes, for a few seconds, what files that were just made will need, by the size
//! of those before them: so writers at once don't all take the last room.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{StatVfs, fstatvfs};
use serde::{Deserialize, Serialize};

const FRESH: Duration = Duration::from_millis(20);

/// So much above the reserve, the disk needn't be asked each time: no drive fills that in 20 ms.
const ROOMY: u64 = 2 << 30;

/// How much of a backing must stay free: below it, new files go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum MinFree {
    /// The larger of 2 GiB and 2 % of the backing, but no more than 5 % of it.
    Default,
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the backing.
    Percent(f64),
}

impl MinFree {
    /// The reserve of a backing of `total` bytes, in bytes.
    pub fn of(self, total: u64) -> u64 {
        let percent = |p: f64| (total as f64 * p / 100.0) as u64;
        match self {
            MinFree::Default => percent(2.0).max(2 << 30).min(percent(5.0)),
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(p) => percent(p),
        }
    }
}

impl FromStr for MinFree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{}, or a share (2%)", no_size(text));
        if let Some(share) = text.strip_suffix('%') {
            let share: f64 = share.trim().parse().map_err(|_| wrong())?;
            return if (0.0..100.0).contains(&share) { Ok(MinFree::Percent(share)) } else { Err(wrong()) };
        }
        parse_bytes(text).map(MinFree::Bytes).map_err(|_| wrong())
    }
}

/// A size, or a share of a backing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Limit {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the backing.
    Percent(f64),
}

impl Limit {
    /// The limit on a backing of `total` bytes, in bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Limit::Bytes(bytes) => bytes,
            Limit::Percent(p) => (total as f64 * p / 100.0) as u64,
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{}, or a share (2%)", no_size(text));
        if let Some(share) = text.strip_suffix('%') {
            let share: f64 = share.trim().parse().map_err(|_| wrong())?;
            return if (0.0..=100.0).contains(&share) { Ok(Limit::Percent(share)) } else { Err(wrong()) };
        }
        parse_bytes(text).map(Limit::Bytes).map_err(|_| wrong())
    }
}

/// Reads a size in bytes: `512`, `10G`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(no_size(text)),
    };
    let number: Option<u64> = digits.parse().ok();
    number.and_then(|n| n.checked_mul(1 << unit)).ok_or_else(|| no_size(text))
}

fn no_size(text: &str) -> String {
    format!("{text:?} is no size; write bytes with an optional K, M, G or T (10G)")
}

impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MinFree::Default => write!(f, "default"),
            MinFree::Bytes(bytes) => write!(f, "{bytes}"),
            MinFree::Percent(p) => write!(f, "{p}%"),
        }
    }
}

/// What a file system has, in bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Size.
    pub total: u64,
    /// Free, for root too.
    pub free: u64,
    /// Free for ordinary users.
    pub available: u64,
    /// Inodes; 0 where the file system makes them as needed.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

impl From<StatVfs> for Room {
    fn from(s: StatVfs) -> Room {
        let unit = if s.f_frsize == 0 { s.f_bsize } else { s.f_frsize };
        Room {
            total: s.f_blocks.saturating_mul(unit),
            free: s.f_bfree.saturating_mul(unit),
            available: s.f_bavail.saturating_mul(unit),
            inodes: s.f_files,
            inodes_free: s.f_ffree,
        }
    }
}

/// How long at least, and half as long as at most, a new file counts with what it's expected to need: writers
/// write a whole file at once.
const PROMISED_FOR: Duration = Duration::from_secs(1);

/// Keeps a backing's room in sight.
#[derive(Debug)]
pub struct Space {
    /// The reserve, in bytes.
    pub min_free: u64,
    /// The most that files may take here, in bytes.
    pub capacity: Option<u64>,
    started: Instant,
    /// When it was last asked, in ns since `started`, plus 1; 0 is never.
    asked: AtomicU64,
    /// What was available then.
    available: AtomicU64,
    /// What files take here, where a capacity has it counted.
    used: AtomicU64,
    telling: Mutex<()>,
    promises: Mutex<Promises>,
    /// What a file here needs, by those that were written lately: the largest of them, fading.
    typical: AtomicU64,
    /// All that was ever promised.
    granted: AtomicU64,
}

/// What new files are expected to need: those of this period and of the one before.
#[derive(Debug, Default)]
struct Promises {
    period: u64,
    bytes: [u64; 2],
}

impl Promises {
    /// Goes on to a period: how many bytes were promised and not written in time.
    fn go_on(&mut self, period: u64) -> u64 {
        let [now, before] = self.bytes;
        let late = match period.saturating_sub(self.period) {
            0 => return 0,
            1 => {
                self.bytes = [0, now];
                before
            }
            _ => {
                self.bytes = [0, 0];
                now + before
            }
        };
        self.period = self.period.max(period);
        late
    }
}

/// Room that a new file is expected to need. To be given back by [`Space::written`].
#[derive(Debug)]
pub struct Promise {
    period: u64,
    bytes: u64,
}

impl Space {
    /// Watches a backing that must keep `min_free` bytes and may have at most `capacity` bytes of files.
    pub fn new(min_free: u64, capacity: Option<u64>) -> Space {
        Space {
            min_free,
            capacity,
            started: Instant::now(),
            asked: AtomicU64::new(0),
            available: AtomicU64::new(0),
            used: AtomicU64::new(0),
            telling: Mutex::default(),
            promises: Mutex::default(),
            typical: AtomicU64::new(0),
            granted: AtomicU64::new(0),
        }
    }

    /// What the backing has now.
    pub fn room(&self, root: BorrowedFd<'_>) -> io::Result<Room> {
        Ok(fstatvfs(root)?.into())
    }

    /// What new files may still use, in bytes: what's free, less the reserve and what files that are being
    /// written are expected to need; 0 for a backing that can't be asked, or has no inode left.
    pub fn spare(&self, root: BorrowedFd<'_>) -> u64 {
        u64::try_from(self.balance(root)).unwrap_or(0)
    }

    /// The same; below 0 by how much there is too little.
    pub fn balance(&self, root: BorrowedFd<'_>) -> i64 {
        let promised = self.promised();
        let now = self.started.elapsed().as_nanos() as u64 + 1;
        let asked = self.asked.load(Relaxed);
        let mut available = self.available.load(Relaxed);
        let roomy = available > self.min_free.saturating_add(promised).saturating_add(ROOMY);
        if asked == 0 || !roomy || now.saturating_sub(asked) >= FRESH.as_nanos() as u64 {
            let Ok(room) = self.room(root) else { return 0 };
            let no_inode = room.inodes != 0 && room.inodes_free == 0;
            available = if no_inode { room.available.min(self.min_free) } else { room.available };
            self.available.store(available, Relaxed);
            self.asked.store(now, Relaxed);
        }
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let free = signed(available).saturating_sub(signed(self.min_free));
        let allowed = self
            .capacity
            .map_or(i64::MAX, |most| signed(most).saturating_sub(signed(self.used.load(Relaxed))));
        free.min(allowed).saturating_sub(signed(promised))
    }

    /// Whether a new file may go here: there's room for one like those before it.
    pub fn has_room(&self, root: BorrowedFd<'_>) -> bool {
        self.spare(root) > self.typical()
    }

    /// What a file here needs, in bytes, by those that were written lately. 0 before the first.
    pub fn typical(&self) -> u64 {
        self.typical.load(Relaxed)
    }

    /// A file is about to be written.
    pub fn promise(&self) -> Promise {
        let mut promises = self.promises();
        let (period, bytes) = (promises.period, self.typical());
        promises.bytes[0] += bytes;
        self.granted.fetch_add(bytes, Relaxed);
        Promise { period, bytes }
    }

    /// It was written, and has so many bytes; `None` when it came to nothing.
    pub fn written(&self, promise: Promise, size: Option<u64>) {
        let mut promises = self.promises();
        let ago = promises.period.saturating_sub(promise.period);
        if let Some(bytes) = promises.bytes.get_mut(ago as usize) {
            *bytes = bytes.saturating_sub(promise.bytes);
        }
        drop(promises);
        if let Some(size) = size {
            let fade = |typical: u64| Some(size.max(typical - typical.saturating_sub(size) / 8));
            let _ = self.typical.fetch_update(Relaxed, Relaxed, fade);
        }
    }

    /// Has it known what files take here, as far as that's counted. What is told last was also found out last.
    pub fn set_used(&self, bytes: impl FnOnce() -> u64) {
        let _telling = self.telling.lock();
        self.used.store(bytes(), Relaxed);
    }

    /// Forgets what was seen: the next question is asked of the disk. After an `ENOSPC`.
    pub fn distrust(&self) {
        self.asked.store(0, Relaxed);
    }

    /// What all files together that were made here since the mount were expected to need, in bytes.
    pub fn granted(&self) -> u64 {
        self.granted.load(Relaxed)
    }

    /// What files that are being written are expected to need, in bytes.
    pub fn promised(&self) -> u64 {
        self.promises().bytes.iter().sum()
    }

    /// The promises of the present period.
    fn promises(&self) -> MutexGuard<'_, Promises> {
        let mut promises = self.promises.lock();
        let late = promises.go_on(self.started.elapsed().as_nanos() as u64 / PROMISED_FOR.as_nanos() as u64);
        if late > 0 {
            // Files are made here that aren't written at once: they can't be waited for.
            let fade = |typical: u64| Some(typical >> (late / typical.max(1)).clamp(1, 63));
            let _ = self.typical.fetch_update(Relaxed, Relaxed, fade);
        }
        promises
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!("10G".parse(), Ok(MinFree::Bytes(10 << 30)));
        assert_eq!("512MiB".parse(), Ok(MinFree::Bytes(512 << 20)));
        assert_eq!("0".parse(), Ok(MinFree::Bytes(0)));
        assert_eq!("2.5%".parse(), Ok(MinFree::Percent(2.5)));
        for bad in ["", "G", "-1", "1X", "100%", "nan%", "99999999999T", "1 G"] {
            assert!(bad.parse::<MinFree>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_reserve_fits_large_and_small_drives() {
        assert_eq!(MinFree::Default.of(4 << 40), ((4u64 << 40) as f64 * 0.02) as u64);
        assert_eq!(MinFree::Default.of(64 << 30), 2 << 30);
        assert_eq!(MinFree::Default.of(1000), 50, "5 % of a tiny test drive");
    }

    #[test]
    fn a_reserve_larger_than_the_drive_leaves_no_room() {
        let root = std::fs::File::open("/tmp").unwrap();
        use std::os::fd::AsFd;
        assert!(Space::new(0, None).has_room(root.as_fd()));
        assert!(!Space::new(u64::MAX, None).has_room(root.as_fd()));
        assert!(!Space::new(0, Some(0)).has_room(root.as_fd()));
        let space = Space::new(0, Some(1000));
        space.set_used(|| 400);
        assert_eq!(space.spare(root.as_fd()), 600);
        space.set_used(|| 1400);
        assert_eq!((space.spare(root.as_fd()), space.balance(root.as_fd())), (0, -400));
    }

    #[test]
    fn files_being_written_count_with_what_they_will_need() {
        let root = std::fs::File::open("/tmp").unwrap();
        use std::os::fd::AsFd;
        let space = Space::new(0, Some(100));
        let first = space.promise();
        assert_eq!(space.spare(root.as_fd()), 100, "nothing is known of the first file");
        space.written(first, Some(40));
        assert_eq!(space.typical(), 40);
        let (second, third) = (space.promise(), space.promise());
        assert_eq!(space.spare(root.as_fd()), 20);
        assert!(!space.has_room(root.as_fd()), "a third of 40 doesn't fit into 100");
        space.written(second, None);
        space.written(third, Some(8));
        assert_eq!((space.spare(root.as_fd()), space.typical()), (100, 36), "a smaller file fades the size");
    }

    #[test]
    fn promises_end_by_themselves() {
        let mut promises = Promises { period: 7, bytes: [10, 0] };
        assert_eq!((promises.go_on(8), promises.bytes), (0, [0, 10]));
        promises.bytes[0] = 5;
        assert_eq!((promises.go_on(9), promises.bytes), (10, [0, 5]));
        promises.bytes[0] = 3;
        assert_eq!((promises.go_on(30), promises.bytes), (8, [0, 0]));
        assert_eq!((promises.go_on(29), promises.period), (0, 30), "a clock that's read a moment late");
    }
}
