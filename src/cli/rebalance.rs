//! `kvfs rebalance`: files move from full backings to empty ones.

use std::path::PathBuf;

use super::Failure;
use super::job::{bandwidth, follow, mount_of, order};
use crate::control::{JobStatus, Order};

/// Move files until the backings are equally full. Goes on after a crash or a remount
#[derive(Debug, clap::Args)]
pub(super) struct RebalanceArgs {
    /// Where the kvfs is mounted
    mount_point: PathBuf,

    /// The most to copy in a second: 500M [default: no limit]
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<String>,

    /// How much the backings may differ at the end, in percent of their size
    #[arg(long, value_name = "PERCENT", default_value = "2%")]
    tolerance: String,

    /// Return at once
    #[arg(long)]
    detach: bool,

    /// Call the rebalance off: files that were moved stay where they are
    #[arg(long, conflicts_with_all = ["bandwidth", "tolerance", "detach"])]
    cancel: bool,
}

pub(super) fn run(args: &RebalanceArgs) -> Result<(), Failure> {
    let bandwidth = bandwidth(args.bandwidth.as_deref())?;
    let number = args.tolerance.trim().trim_end_matches('%').trim_end().parse();
    let Ok(tolerance) = number.map_err(drop).and_then(in_range) else {
        return Err(Failure::bad_value(format!(
            "--tolerance: {:?} is no share; write a number from 0 to 100 (2%)",
            args.tolerance
        )));
    };
    let mount = mount_of(&args.mount_point)?;
    if args.cancel {
        let said: String = order(&mount, Order::CancelRebalance)?;
        println!("{said}");
        return Ok(());
    }
    let job: JobStatus = order(&mount, Order::Rebalance { bandwidth, tolerance })?;
    if args.detach { Ok(()) } else { follow(&mount, &job) }
}

fn in_range(number: f64) -> Result<f64, ()> {
    if (0.0..=100.0).contains(&number) { Ok(number) } else { Err(()) }
}
