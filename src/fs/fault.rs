//! Points at which a test lets the daemon die: `KVFS_FAULT_ABORT_AT=after-copy` at the first time that it's
//! reached, `after-copy:5` at the fifth.
//!
//! What always holds: without the feature `fault-points` there are none.

/// Dies here, if that was asked for.
#[cfg(feature = "fault-points")]
pub(super) fn point(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    static AT: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let wanted = std::env::var("KVFS_FAULT_ABORT_AT").ok()?;
        let (name, nth) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some((name.to_owned(), AtomicU64::new(nth.parse().unwrap_or(1))))
    });
    if let Some((wanted, left)) = &*AT
        && wanted == name
        && left.fetch_sub(1, Relaxed) == 1
    {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(super) fn point(_: &str) {}
