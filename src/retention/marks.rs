//! When eviction begins and ends: the watermarks.
//!
//! What always holds: marks are shares of what kvfs may use of a backing (its size less the reserve, or its
//! capacity), and there is always room for some files of the usual size above the reserve, however small
//! the backing.

use crate::backing::{Backing, Space};

/// Watermarks, in percent of what kvfs may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Marks {
    /// Above it, files are evicted.
    pub high: f64,
    /// Until it's reached.
    pub low: f64,
}

impl Default for Marks {
    fn default() -> Marks {
        Marks { high: 95.0, low: 90.0 }
    }
}

/// What a backing has left, and what it should have, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// What kvfs may use in all.
    pub allowed: u64,
    /// What new files may still use.
    pub spare: u64,
    /// By how much files take more than they may.
    pub owed: u64,
    /// With less than that, files are evicted.
    pub begin: u64,
    /// Until there is that much.
    pub end: u64,
}

impl Level {
    /// How many bytes are to be freed.
    pub fn missing(&self) -> u64 {
        // With nothing to spare no file can be made, however small they are.
        let begin = if self.allowed > 0 { self.begin.max(1) } else { 0 };
        if self.spare < begin { self.end.max(1) - self.spare + self.owed } else { 0 }
    }
}

impl Marks {
    /// Where a backing stands. `None` when it can't be asked.
    pub fn level(&self, backing: &Backing) -> Option<Level> {
        let room = backing.room().ok()?;
        let space: &Space = &backing.space;
        // What other directories of the file system use is not ours to free.
        let of_disk = room.total.saturating_sub(room.free - room.available).saturating_sub(space.min_free);
        let allowed = of_disk.min(space.capacity.unwrap_or(u64::MAX));
        Some(self.of(allowed, space.balance(backing.root()), space.typical()))
    }

    /// Where a backing stands of which kvfs may use `allowed` bytes and has `balance` left, with files of
    /// `typical` bytes.
    pub(super) fn of(&self, allowed: u64, balance: i64, typical: u64) -> Level {
        let above = |mark: f64| (allowed as f64 * (100.0 - mark) / 100.0) as u64;
        // Files of more than an eighth of the backing would leave nothing to keep.
        let most = allowed / 2;
        let begin = above(self.high).max(typical.saturating_mul(4)).min(most);
        let end = above(self.low).max(typical.saturating_mul(8)).max(begin).min(most);
        let spare = u64::try_from(balance).unwrap_or(0);
        let owed = if balance < 0 { balance.unsigned_abs() } else { 0 };
        Level { allowed, spare, owed, begin, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_what_may_be_used() {
        let marks = Marks::default();
        let level = marks.of(1000, 51, 0);
        assert_eq!((level.begin, level.end, level.missing()), (50, 100, 0));
        assert_eq!(marks.of(1000, 49, 0).missing(), 51);
        assert_eq!(marks.of(1000, -300, 0).missing(), 400, "what is owed comes to it");
    }

    #[test]
    fn small_backings_keep_room_for_some_files() {
        let marks = Marks::default();
        let level = marks.of(1000, 0, 20);
        assert_eq!((level.begin, level.end), (80, 160));
        let level = marks.of(1000, 0, 400);
        assert_eq!((level.begin, level.end), (500, 500), "half of it stays in any case");
        assert_eq!(marks.of(0, 0, 400).missing(), 0);
        let to_the_brim = Marks { high: 100.0, low: 99.0 };
        assert_eq!((to_the_brim.of(1000, 1, 0).missing(), to_the_brim.of(1000, -5, 0).missing()), (0, 15));
    }
}
