//! Which kvfs this is.
//!
//! What always holds: the version is the crate's. With the feature `fault-points` a test has another one by the
//! name of a copy: `kvfs@9.9.9`.

use std::sync::LazyLock;

/// What tells builds of a version apart, if whoever built it said so (the environment variable `KVFS_BUILD`).
pub const BUILD: Option<&str> = option_env!("KVFS_BUILD");

/// The version.
pub fn version() -> String {
    test_word(0).unwrap_or_else(|| env!("CARGO_PKG_VERSION").into())
}

/// Version and build, for people.
pub fn described() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| match BUILD {
        Some(build) => format!("{} ({build})", version()),
        None => version(),
    });
    &TEXT
}

/// The version of what daemons hand to each other.
pub fn state_version() -> u8 {
    let other = test_word(1).and_then(|word| word.strip_prefix("state=")?.parse().ok());
    other.unwrap_or(crate::supervise::STATE_VERSION)
}

/// Dies here, ends, or gets no further, if this is a copy that a test has made for that: `kvfs@9.9.9@dies at start`.
pub(crate) fn test_point(point: &str) {
    let Some(word) = test_word(1) else { return };
    if word.strip_prefix("dies at ") == Some(point) {
        std::process::abort();
    }
    if word.strip_prefix("ends at ") == Some(point) {
        std::process::exit(0);
    }
    while word.strip_prefix("stays at ") == Some(point) {
        std::thread::park();
    }
}

/// The nth word behind an `@` in the name of the executable.
#[cfg(feature = "fault-points")]
fn test_word(n: usize) -> Option<String> {
    let own = std::fs::read_link("/proc/self/exe").ok()?;
    own.file_name()?.to_str()?.split('@').nth(n + 1).map(str::to_owned)
}

/// There are none.
#[cfg(not(feature = "fault-points"))]
fn test_word(_: usize) -> Option<String> {
    None
}
