//! `kvfs worker`: what the daemon of a mount starts for itself, and nobody else.
//!
//! What always holds: a worker is its own process, so that a library that hangs or dies takes no mount with it.

use std::path::PathBuf;

use uuid::Uuid;

use super::Failure;
use crate::direct::gpu::{probe, serve};

/// A process that the daemon starts for itself
#[derive(Debug, clap::Args)]
pub(super) struct WorkerArgs {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, clap::Subcommand)]
enum Job {
    /// Moves data between files and the memory of a GPU
    Gpu(GpuArgs),
    /// Finds out how data can move between GPU memory and these directories
    ProbeCufile(ProbeArgs),
}

#[derive(Debug, clap::Args)]
struct GpuArgs {
    #[arg(long)]
    uuid: Uuid,
    #[arg(long)]
    hip: bool,
    #[arg(long)]
    cufile: bool,
    #[arg(long)]
    ring_slots: usize,
    #[arg(long)]
    slot_bytes: usize,
    #[arg(long)]
    submitters: usize,
}

#[derive(Debug, clap::Args)]
struct ProbeArgs {
    /// The name of the file to try with; `.kvfs-` is put before it
    #[arg(long, default_value = "probe")]
    name: String,
    #[arg(long)]
    hip: bool,
    dirs: Vec<PathBuf>,
}

pub(super) fn run(args: &WorkerArgs) -> Result<(), Failure> {
    match &args.job {
        Job::Gpu(gpu) => {
            let setup = serve::Setup {
                gpu: gpu.uuid,
                hip: gpu.hip,
                cufile: gpu.cufile,
                ring_slots: gpu.ring_slots,
                slot_bytes: gpu.slot_bytes,
                submitters: gpu.submitters,
            };
            // SAFETY: no thread has been started yet.
            unsafe { serve::run(setup) }.map_err(Failure::other)
        }
        Job::ProbeCufile(probe) => {
            // SAFETY: no thread has been started yet.
            unsafe { probe::child(&probe.name, probe.hip, &probe.dirs) }.map_err(Failure::other)
        }
    }
}

/// Runs a worker with these arguments: in the tests of `direct::gpu` this program isn't `kvfs`.
#[cfg(test)]
pub(crate) fn of_tests(args: Vec<String>) -> Result<(), String> {
    #[derive(clap::Parser)]
    struct Parser {
        #[command(flatten)]
        args: WorkerArgs,
    }
    let parsed = <Parser as clap::Parser>::try_parse_from(std::iter::once("worker".into()).chain(args));
    run(&parsed.map_err(|e| e.to_string())?.args).map_err(|f| f.to_string())
}
