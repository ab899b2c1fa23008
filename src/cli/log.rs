//! `kvfs log`: what a running mount logs.

use std::io::{self, Write};
use std::path::PathBuf;

use super::Failure;
use super::job::{failure, mount_of};
use crate::control::{Question, Status, ask};

/// Show or set what a mount logs, while it's in use
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// Where it's mounted
    mount_point: PathBuf,

    /// From now on: error, warn, info, debug, trace or off, or filters as in info,kvfs::fs=debug. A daemon that is
    /// started again begins with what KVFS_LOG said at the mount
    #[arg(value_name = "LEVEL|FILTER")]
    filter: Option<String>,
}

pub(super) fn run(args: &LogArgs) -> Result<(), Failure> {
    let mount = mount_of(&args.mount_point)?;
    let question = Question::Log { filter: args.filter.clone() };
    let by: String = ask(mount.device, &question).map_err(|e| match failure(&mount, e) {
        refused if refused.status == 52 => Failure::bad_value(refused.message),
        failure => failure,
    })?;
    let status: Status = ask(mount.device, &Question::Status).map_err(|e| failure(&mount, e))?;
    match writeln!(io::stdout(), "{by}, to {}", status.log) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::other(e)),
        _ => Ok(()),
    }
}
