//! The command line: one file per subcommand.
//!
//! What always holds: a command that fails says one sentence on standard error and ends with an exit status
//! of that fault's own (`exit`).

mod background;
mod backing;
mod bench;
mod bind_socket;
mod config;
mod debug;
pub mod doctor;
mod evict;
mod exit;
mod fsck;
mod generate;
mod import;
mod job;
mod locate;
mod log;
mod logging;
mod ls;
mod mount;
mod mount_args;
mod mount_helper;
mod rebalance;
mod settings;
mod stats;
mod status;
mod supervised;
mod takeover;
mod top;
mod trace;
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
    Mount(Box<mount_args::MountArgs>),
    /// Unmount
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Look at a mount's file
    Config(config::ConfigArgs),
    /// Show a mount: backings, files, room, passthrough or not and why
    Status(status::StatusArgs),
    /// Show what a mount has counted: operations and their latency, lookups, bytes, placement, evictions
    Stats(stats::StatsArgs),
    /// Watch a mount: drives, operations, and who writes. Keys: q, s (sort), p (pause)
    Top(top::TopArgs),
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
    /// List files with their backings, and why they are there
    Ls(ls::LsArgs),
    /// Show operations as they happen
    Trace(trace::TraceArgs),
    /// Show or set what a mount logs, while it's in use
    Log(log::LogArgs),
    /// Check backings, or a mount in use: duplicates, leftovers, what can't be read
    Fsck(fsck::FsckArgs),
    /// Show what a mount over existing directories of LMCache, SGLang or vLLM would serve
    Import(import::ImportArgs),
    /// Collect what helps to find a fault into one file, with nothing private in it
    Debug(debug::DebugArgs),
    /// Measure drives, or a mount beside other ways to the same drives
    Bench(bench::BenchArgs),
    /// Bind the daemon's socket in a mount
    #[command(hide = true)]
    BindSocket(bind_socket::BindSocketArgs),
    #[command(hide = true, name = "mount.kvfs")]
    MountHelper(mount_helper::MountHelperArgs),
    #[command(hide = true, name = "umount.kvfs")]
    UmountHelper(mount_helper::UmountHelperArgs),
    /// Unmount for the daemon
    #[command(hide = true)]
    UnmountHelper(unmount_helper::UnmountHelperArgs),
    /// Tell what is usable on this machine, what is missing and how to get it
    Doctor(doctor::DoctorArgs),
    /// Write man pages or shell completions
    Generate(generate::GenerateArgs),
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
            // fsck(8) has statuses of its own.
            let is_fsck = std::env::args_os().nth(1).is_some_and(|word| word == "fsck");
            let shown = if is_fsck && status != 0 { fsck::USAGE } else { status };
            if status == exit::BAD_VALUE {
                eprintln!("kvfs: {}", exit::one_sentence(&e));
            } else {
                let _ = e.print();
            }
            return ExitCode::from(shown);
        }
    };
    let result = match cli.command {
        Command::Mount(_) => mount::run(std::env::args_os().collect()),
        Command::Umount(args) => umount::run(&args),
        Command::Config(args) => config::run(&args),
        Command::MountHelper(args) => mount_helper::mount(&args),
        Command::UmountHelper(args) => mount_helper::umount(&args),
        Command::Status(args) => status::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::CanTakeOver(args) => takeover::run(&args),
        Command::Evict(args) => evict::run(&args),
        Command::Backing(args) => backing::run(&args),
        Command::Rebalance(args) => rebalance::run(&args),
        Command::Locate(args) => locate::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Log(args) => log::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Debug(args) => debug::run(&args),
        Command::Fsck(args) => return fsck::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BindSocket(args) => bind_socket::run(&args),
        Command::UnmountHelper(args) => unmount_helper::run(&args),
        Command::Worker(args) => worker::run(&args),
        Command::Generate(args) => generate::run(&args),
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
