//! Between the index's moments and times of day.
//!
//! What always holds: a moment is a second of a span that begins long before the mount; what lies before the
//! span is its first moment, so it's still known to have been used, only not when.

use std::time::{Duration, SystemTime};

use crate::index::Moment;

/// How far back before the mount uses are told apart: half of what 24 bits of seconds can tell (97 days).
const BEFORE: Duration = Duration::from_secs(1 << 23);

/// Moments of one mount.
#[derive(Debug)]
pub struct Clock {
    base: SystemTime,
}

impl Clock {
    /// For a mount that begins now.
    pub fn starting_at(now: SystemTime) -> Clock {
        Clock { base: now.checked_sub(BEFORE).unwrap_or(SystemTime::UNIX_EPOCH) }
    }

    /// The moment of a time; never 0, which is no moment.
    pub fn moment(&self, time: SystemTime) -> Moment {
        let seconds = time.duration_since(self.base).map_or(0, |since| since.as_secs());
        Moment(u32::try_from(seconds).unwrap_or(u32::MAX).clamp(1, Moment::MAX.0))
    }

    /// The time of a moment; `None` for no moment.
    pub fn time(&self, moment: Moment) -> Option<SystemTime> {
        (moment.0 > 0).then(|| self.base + Duration::from_secs(u64::from(moment.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_seconds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let clock = Clock::starting_at(now);
        assert_eq!(clock.time(clock.moment(now)), Some(now));
        assert!(clock.moment(now - Duration::from_secs(1)) < clock.moment(now));
        assert_eq!(clock.moment(SystemTime::UNIX_EPOCH), Moment(1));
        assert_eq!(clock.moment(now + Duration::from_secs(1 << 40)), Moment::MAX);
        assert_eq!(clock.time(Moment(0)), None);
    }
}
