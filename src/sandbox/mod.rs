//! What the daemon gives up once it has what it needs, so that a fault in it is worth less to whoever finds one.
//!
//! What always holds: capabilities that no part needs are gone before the first thread starts, for good and for
//! whatever the daemon starts; the filter of system calls is put on all threads when the mount is about to answer,
//! and each thread and process that comes later has it too. Where the system refuses either, the mount goes
//! on without, and says so. docs/SECURITY.md has the lists, and why.

mod capabilities;
mod filter;

pub use capabilities::drop_capabilities;
#[cfg(feature = "fault-points")]
pub(crate) use filter::not_refused;

/// Whether the daemon gives up what it doesn't need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SandboxMode {
    /// As far as the system lets it.
    #[default]
    Auto,
    /// It keeps all that it was started with.
    Off,
}

/// Why a filter can't be put on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel says no.
    #[error("the kernel refuses the filter of system calls: {0}")]
    Refused(seccompiler::Error),
    /// It can't be made for this processor.
    #[error("the filter of system calls can't be made: {0}")]
    NotMade(seccompiler::BackendError),
}

/// Forbids what no part of the daemon calls, on all threads and for good. What has come of it, for `status`.
pub fn enter(mode: SandboxMode) -> String {
    if mode == SandboxMode::Off {
        return "off (--sandbox off)".into();
    }
    match filter::install() {
        Ok(()) => "on".into(),
        Err(e) => {
            tracing::warn!("going on without a sandbox: {e}");
            format!("off ({e})")
        }
    }
}
