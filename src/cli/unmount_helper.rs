//! `kvfs unmount-helper`: for an ordinary user's daemon alone, whose sandbox keeps it from fusermount3.

use std::path::PathBuf;

use super::Failure;

/// Unmount when told to on standard input (the daemon calls this)
#[derive(Debug, clap::Args)]
pub(super) struct UnmountHelperArgs {
    mount_point: PathBuf,
}

pub(super) fn run(args: &UnmountHelperArgs) -> Result<(), Failure> {
    crate::fuse::unmount_helper(&args.mount_point).map_err(Failure::other)
}
