//! How fast a job may copy, and how fast it does.
//!
//! What always holds: over any time, no more bytes are let through than the limit allows for that time and one
//! burst; threads that wait are let through in turn.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What may be moved at once, before anybody waits.
const BURST: Duration = Duration::from_millis(100);

/// A limit of bytes a second.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    /// When all that was let through will have had its time.
    paid: Instant,
}

impl Bucket {
    pub(super) fn new(rate: u64) -> Bucket {
        Bucket { rate: rate.max(1), paid: Instant::now() }
    }

    /// Takes so many bytes, and says when they may be moved.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        // What wasn't used is lost, but for a burst.
        let start = self.paid.max(now.checked_sub(BURST).unwrap_or(now));
        self.paid = start + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        start
    }
}

/// How long a rate is looked back for.
const WINDOW: Duration = Duration::from_secs(5);
/// What happened within this time is one sample.
const GRAIN: Duration = Duration::from_millis(100);

/// Bytes a second, lately.
#[derive(Debug)]
pub(super) struct Meter {
    started: Instant,
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    pub(super) fn new() -> Meter {
        Meter { started: Instant::now(), samples: VecDeque::new() }
    }

    pub(super) fn add(&mut self, bytes: u64, now: Instant) {
        match self.samples.back_mut() {
            Some((at, sum)) if now.duration_since(*at) < GRAIN => *sum += bytes,
            _ => self.samples.push_back((now, bytes)),
        }
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    pub(super) fn rate(&self, now: Instant) -> u64 {
        let recent = self.samples.iter().filter(|(at, _)| now.duration_since(*at) <= WINDOW);
        let time = now.duration_since(self.started).min(WINDOW).max(GRAIN);
        (recent.map(|(_, bytes)| *bytes).sum::<u64>() as f64 / time.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_over_any_time() {
        let mut bucket = Bucket::new(1000);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            now = now.max(bucket.take(100, now));
        }
        let took = now - start;
        assert!((Duration::from_millis(9700)..Duration::from_millis(9950)).contains(&took), "{took:?}");
        // After a pause there's one burst, not all that was left unused.
        let later = now + Duration::from_secs(100);
        let first = bucket.take(1000, later);
        assert!(first <= later);
        assert!(bucket.take(1, later) > later + Duration::from_millis(800));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::new();
        let start = meter.started;
        for i in 0..100 {
            meter.add(10, start + Duration::from_millis(100 * i));
        }
        let rate = meter.rate(start + Duration::from_secs(10));
        assert!((90..=110).contains(&rate), "{rate}");
        assert_eq!(meter.rate(start + Duration::from_secs(60)), 0);
    }
}
