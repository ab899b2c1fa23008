//! A backing's room: what its file system has, and the reserve that new files must leave.
//!
//! What always holds: `statvfs` is asked at most once in 20 ms while there is plenty, and every time when
//! the reserve is near, so a create costs no system call in the common case and no more than a few creates
//! slip past the reserve.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::{StatVfs, fstatvfs};

const FRESH: Duration = Duration::from_millis(20);

/// How much of a backing must stay free: below it, new files go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// Keeps a backing's room in sight.
#[derive(Debug)]
pub struct Space {
    /// The reserve, in bytes.
    pub min_free: u64,
    started: Instant,
    /// When it was last asked, in ns since `started`, plus 1; 0 is never.
    asked: AtomicU64,
    roomy: AtomicBool,
}

impl Space {
    /// Watches a backing that must keep `min_free` bytes.
    pub fn new(min_free: u64) -> Space {
        Space { min_free, started: Instant::now(), asked: AtomicU64::new(0), roomy: AtomicBool::new(false) }
    }

    /// What the backing has now.
    pub fn room(&self, root: BorrowedFd<'_>) -> io::Result<Room> {
        Ok(fstatvfs(root)?.into())
    }

    /// Whether a new file may go here. A backing that can't be asked has no room.
    pub fn has_room(&self, root: BorrowedFd<'_>) -> bool {
        let now = self.started.elapsed().as_nanos() as u64 + 1;
        let asked = self.asked.load(Relaxed);
        if asked != 0 && self.roomy.load(Relaxed) && now.saturating_sub(asked) < FRESH.as_nanos() as u64 {
            return true;
        }
        let Ok(room) = self.room(root) else { return false };
        self.roomy.store(room.available > self.min_free.saturating_mul(2), Relaxed);
        self.asked.store(now, Relaxed);
        room.available > self.min_free && (room.inodes == 0 || room.inodes_free > 0)
    }

    /// Forgets what was seen: the next question is asked of the disk. After an `ENOSPC`.
    pub fn distrust(&self) {
        self.asked.store(0, Relaxed);
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
        assert!(Space::new(0).has_room(root.as_fd()));
        assert!(!Space::new(u64::MAX).has_room(root.as_fd()));
    }
}
