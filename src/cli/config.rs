//! `kvfs config check`: what a mount by a file would be, without mounting.
//!
//! What always holds: nothing is made, changed or locked; what is refused here a mount would refuse in the same words.

use std::ffi::OsString;
use std::path::PathBuf;

use super::Failure;
use super::settings::{self, Resolved};
use crate::backing::{self, mountinfo::mounted_at};
use crate::config::MountConfig;
use crate::fuse::{FS_TYPE, where_mounted};

/// Look at a mount's file
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Look for faults without mounting, and print all options with their values and where each was said, as a file
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// The TOML file
    file: PathBuf,

    /// More words of the `kvfs mount` command: options, and where to mount if the file doesn't say it
    #[arg(last = true, value_name = "MOUNT OPTIONS")]
    options: Vec<OsString>,
}

pub(super) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let ConfigCommand::Check(args) = &args.command;
    let mut words = settings::line_of(&args.file);
    words.extend(args.options.iter().cloned());
    let said = settings::resolve(&words)?;
    check_quietly(&said)?;
    for line in settings::effective(&said)? {
        println!("{line}");
    }
    Ok(())
}

/// Whether it could be mounted, by all that can be seen without doing so. One that is mounted already is no fault.
pub(super) fn check_quietly(said: &Resolved) -> Result<MountConfig, Failure> {
    let point = where_mounted(said.args.mount_point()?)?;
    let mounted = mounted_at(&point).map_err(Failure::other)?;
    let config = said.args.config(mounted.is_some_and(|mount| mount.fs_type == FS_TYPE))?;
    backing::check(&config.backings, &config.mount_point, config.missing)?;
    Ok(config)
}
