//! The kernel's door: mounting, the session, and the adapter from fuser to `fs`.
//!
//! What always holds: fuser is named nowhere else; and the process that serves a mount never touches its own
//! mount point except to unmount it (it would wait for itself, unkillably).

mod adapter;
mod answer;
mod convert;
mod handshake;
mod help;
mod helper;
mod listing;
mod mount;
mod prune;
mod reply;
mod session;
mod start;
mod timing;
mod traced;
mod uring;
mod wanted;
mod watch;
mod watched;

pub(crate) use helper::serve as unmount_helper;
pub use mount::{
    FS_TYPE, MountError, Mounted, UnmountError, check_mount_point, detach_dead, remount, remount_read_only,
    unmount, unmount_by_force, where_mounted,
};
pub use session::{Running, Session, SessionError};
pub use uring::{Chosen as ChosenTransport, choose_transport};
pub use watch::nobody_waits;
