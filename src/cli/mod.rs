//! The command line: one file per subcommand.
//!
//! What always holds: a command that fails says one sentence on standard error and ends with an exit status
//! of that fault's own (`exit`).

mod background;
mod backing;
mod bench;
mod bind_socket;
pub mod doctor;
mod evict;
mod exit;
mod job;
mod locate;
mod logging;
mod mount;
mod mount_args;
mod rebalance;
mod status;
mod supervised;
mod takeover;
mod umount;
mod unmount_helper;
mod upgrade;
pub(crate) mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use exit::{Failure, exit_status};

/// One directory over all the NVMe drives of a GPU server, for LLM KV caches.
#[derive(Debug, Parser)]
#[command(name = "kvfs", version = crate::version::described(), max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount backing directories as one
    Mount(mount_args::MountArgs),
    /// Unmount
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Show a mount: backings, files, room, passthrough or not and why
    Status(status::StatusArgs),
    /// Hand a mount over to this kvfs, or to another, while it's in use: clients wait a moment
    Upgrade(upgrade::UpgradeArgs),
    /// Make room: remove what may be removed, or show what that would be
    Evict(evict::EvictArgs),
    /// Add, drain, remove and set the backings of a mount that is in use
    Backing(backing::BackingArgs),
    /// Move files until the backings are equally full. Goes on after a crash or a remount
    Rebalance(rebalance::RebalanceArgs),
    /// Tell where files are: the backing, the real path, and why they were placed there
    Locate(locate::LocateArgs),
    /// Measure a mount beside other ways to the same drives
    Bench(bench::BenchArgs),
    /// Bind the daemon's socket in a mount
    #[command(hide = true)]
    BindSocket(bind_socket::BindSocketArgs),
    /// Unmount for the daemon
    #[command(hide = true)]
    UnmountHelper(unmount_helper::UnmountHelperArgs),
    /// Tell what is usable on this machine, what is missing and how to get it
    Doctor(doctor::DoctorArgs),
    #[command(hide = true, name = takeover::NAME)]
    CanTakeOver(takeover::TakeoverArgs),
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

/// Parses the command line and runs the subcommand.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let status = exit::of_usage(&e);
            if status == exit::BAD_VALUE {
                eprintln!("kvfs: {}", exit::one_sentence(&e));
            } else {
                let _ = e.print();
            }
            return ExitCode::from(status);
        }
    };
    let result = match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::CanTakeOver(args) => takeover::run(&args),
        Command::Evict(args) => evict::run(&args),
        Command::Backing(args) => backing::run(&args),
        Command::Rebalance(args) => rebalance::run(&args),
        Command::Locate(args) => locate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BindSocket(args) => bind_socket::run(&args),
        Command::UnmountHelper(args) => unmount_helper::run(&args),
        Command::Worker(args) => worker::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kvfs: {failure}");
            ExitCode::from(failure.status)
        }
    }
}
