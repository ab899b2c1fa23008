//! The kernel's door: mounting, the session, and the adapter from fuser to `fs`.
//!
//! What always holds: fuser is named nowhere else; and the process that serves a mount never touches its own
//! mount point except to unmount it (it would wait for itself, unkillably).

mod adapter;
mod answer;
mod convert;
mod help;
mod mount;
mod prune;
mod reply;
mod session;
mod watch;
mod watched;

pub use mount::{FS_TYPE, MountError, Mounted, UnmountError, check_mount_point, unmount};
pub use session::{Session, SessionError};
pub use watch::nobody_waits;
