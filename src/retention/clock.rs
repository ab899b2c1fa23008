//! Between the index's moments and times of day.
//!
//! What always holds: a moment is a second of a span that begins long before the present; what lies before the
//! span is its first moment, so it's still known to have been used, only not when. The span moves on with
//! time, and all moments with it: both under the index's lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use crate::index::{Index, Moment};

/// How far back uses are told apart at least: half of what 24 bits of seconds can tell (97 days).
const BEFORE: u64 = 1 << 23;
/// How much room for the future is left when the span moves on, in seconds: more than a day.
const LEFT: u32 = 1 << 17;

/// Moments of one mount.
#[derive(Debug)]
pub struct Clock {
    /// In seconds since 1970.
    base: AtomicU64,
}

impl Clock {
    /// For a mount that begins now.
    pub fn starting_at(now: SystemTime) -> Clock {
        Clock { base: AtomicU64::new(seconds(now).saturating_sub(BEFORE)) }
    }

    /// The moment of a time; never 0, which is no moment.
    pub fn moment(&self, time: SystemTime) -> Moment {
        let since = seconds(time).saturating_sub(self.base.load(Relaxed));
        Moment(u32::try_from(since).unwrap_or(u32::MAX).clamp(1, Moment::MAX.0))
    }

    /// The time of a moment; `None` for no moment.
    pub fn time(&self, moment: Moment) -> Option<SystemTime> {
        let seconds = self.base.load(Relaxed) + u64::from(moment.0);
        (moment.0 > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// Whether the span is about to end.
    pub fn is_late(&self, now: SystemTime) -> bool {
        self.moment(now).0 > Moment::MAX.0 - LEFT
    }

    /// Moves the span on, so that it has room for another half of it.
    pub fn move_on(&self, index: &mut Index, now: SystemTime) {
        let base = seconds(now).saturating_sub(BEFORE);
        let by = base.saturating_sub(self.base.load(Relaxed));
        index.age(u32::try_from(by).unwrap_or(u32::MAX));
        self.base.fetch_add(by, Relaxed);
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{DirId, FileRef, Kind, PackedIno, Slot};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    #[test]
    fn moments_are_seconds() {
        let clock = Clock::starting_at(now());
        assert_eq!(clock.time(clock.moment(now())), Some(now()));
        assert!(clock.moment(now() - Duration::from_secs(1)) < clock.moment(now()));
        assert_eq!(clock.moment(SystemTime::UNIX_EPOCH), Moment(1));
        assert_eq!(clock.moment(now() + Duration::from_secs(1 << 40)), Moment::MAX);
        assert_eq!(clock.time(Moment(0)), None);
    }

    #[test]
    fn a_mount_may_live_longer_than_the_span() {
        let clock = Clock::starting_at(now());
        let mut index = Index::new(1);
        let file =
            |ino| FileRef { slot: Slot(0), ino: PackedIno::plain(ino).unwrap(), kind: Kind::File, reason: 0 };
        let [early, late, unknown] =
            [1, 2, 3].map(|n| index.add_file(DirId::ROOT, &[n], file(u64::from(n))).unwrap().unwrap());
        index.used_at(early, clock.moment(now()));
        let mut at = now();
        for _ in 0..300 {
            at += DAY;
            if clock.is_late(at) {
                clock.move_on(&mut index, at);
                assert!(!clock.is_late(at));
            }
            index.used_at(late, clock.moment(at));
            assert_eq!(clock.time(index.use_of(late).1), Some(at), "every use is told apart");
        }
        assert!(index.use_of(early).1 < index.use_of(late).1, "the order stays");
        assert!(index.use_of(early).1 > index.use_of(unknown).1);
    }
}
