//! Points at which a test lets the daemon die: `KVFS_FAULT_ABORT_AT=after-copy` at the first time that it's
//! reached, `after-copy:5` at the fifth.
//!
//! And points at which a daemon is killed once for each request: by a name that says at which, `x@unlink after@y`;
//! or is late, `x@60 ms at release begins`.
//!
//! What always holds: without the feature `fault-points` there are none.

/// Dies here, if that was asked for.
#[cfg(feature = "fault-points")]
pub(crate) fn point(name: &str) {
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
pub(crate) fn point(_: &str) {}

/// The same, for the first daemon of a mount alone: those after it do this again.
#[cfg(feature = "fault-points")]
pub(super) fn first_point(name: &str, state: &Option<std::sync::Arc<crate::supervise::State>>) {
    if state.as_ref().is_some_and(|state| state.starts() == 1) {
        point(name);
    }
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(super) fn first_point(_: &str, _: &Option<std::sync::Arc<crate::supervise::State>>) {}

/// Is killed here if the name asks for it, unless a daemon was killed over this request before.
#[cfg(feature = "fault-points")]
pub(crate) fn crash_point(point: &str, name: &[u8]) {
    let asked = std::str::from_utf8(name).ok().and_then(|name| name.split('@').nth(1));
    if asked == Some("deadly") && point.ends_with("before") {
        std::process::abort();
    }
    if asked == Some(point) && !crate::supervise::was_begun() {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub(crate) fn crash_point(_: &str, _: &[u8]) {}

#[cfg(feature = "fault-points")]
impl super::Fs {
    /// Is killed, or late, by the name of a file that the request doesn't say.
    pub(super) fn file_point(&self, point: &str, node: super::NodeId) {
        let Some(crate::index::Node::File(slot, ino)) = node.node() else { return };
        let Ok((_, name, _)) = self.place_of(slot, ino) else { return };
        crash_point(point, &name);
        let words = name.split(|&byte| byte == b'@').filter_map(|word| std::str::from_utf8(word).ok());
        for (time, at) in words.filter_map(|word| word.split_once(" ms at ")) {
            if at == point {
                std::thread::sleep(std::time::Duration::from_millis(time.parse().unwrap_or(0)));
            }
        }
    }
}

#[cfg(not(feature = "fault-points"))]
impl super::Fs {
    /// Nothing.
    #[inline]
    pub(super) fn file_point(&self, _: &str, _: super::NodeId) {}
}
