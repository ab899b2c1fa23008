//! `kvfs umount`: unmounts, and waits until the daemon has let go of the backings.

use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Failure;
use crate::backing::mountinfo::mounted_at;
use crate::control::{Question, ask};
use crate::fuse::{UnmountError, unmount};

/// How long the daemon may take to end once nothing is mounted.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmount
#[derive(Debug, clap::Args)]
pub(super) struct UmountArgs {
    /// Where it's mounted
    mount_point: PathBuf,

    /// Detach a mount that is in use: gone for newcomers at once, and for good when the last file is closed
    #[arg(short, long)]
    lazy: bool,
}

pub(super) fn run(args: &UmountArgs) -> Result<(), Failure> {
    // By its parent: the mount itself may hang.
    let point = std::path::absolute(&args.mount_point).unwrap_or(args.mount_point.clone());
    let point = match (point.parent().map(std::fs::canonicalize), point.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => point,
    };
    let Ok(Some(mount)) = mounted_at(&point) else {
        return Err(UnmountError::NotMounted(point).into());
    };
    let daemon = ask(mount.device, Question::Status)
        .ok()
        .and_then(|status| Pid::from_raw(status.pid as i32))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    unmount(&point, args.lazy)?;
    if let Some(daemon) = daemon
        && !args.lazy
    {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&daemon, PollFlags::IN)], Some(&timeout)) == Ok(0) {
            return Err(Failure::other(format!(
                "{} is unmounted, but its daemon still runs after {} s; see its log",
                point.display(),
                PATIENCE.as_secs()
            )));
        }
    }
    Ok(())
}
