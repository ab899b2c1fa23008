//! `kvfs bind-socket`: for the daemon alone, which must not touch its own mount.

use std::path::PathBuf;

use super::Failure;

/// Bind the daemon's socket in a mount (the daemon calls this)
#[derive(Debug, clap::Args)]
pub(super) struct BindSocketArgs {
    mount_point: PathBuf,
    major: u32,
    minor: u32,
}

/// The exit status is the errno.
pub(super) fn run(args: &BindSocketArgs) -> Result<(), Failure> {
    crate::direct::bind_socket(&args.mount_point, (args.major, args.minor)).map_err(|e| Failure {
        status: e.raw_os_error().and_then(|errno| u8::try_from(errno).ok()).unwrap_or(libc::EIO as u8),
        message: format!("the socket can't be bound in {}: {e}", args.mount_point.display()),
    })
}
