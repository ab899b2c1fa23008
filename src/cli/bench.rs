//! `kvfs bench`: measures a mount that is there, beside other ways to the same drives.

mod direct;
mod samples;
mod ways;

use super::Failure;

/// Measure a mount
#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The ioctl fast path beside plain reads and writes of the same files
    Direct(direct::DirectArgs),
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.what {
        What::Direct(args) => direct::run(args),
    }
}
