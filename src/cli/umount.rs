//! `kvfs umount`: unmounts, and waits until the daemon has let go of the backings.

use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Failure;
use crate::backing::mountinfo::named;
use crate::control::{Question, Status, ask};
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
    let Ok(Some(mount)) = named(&args.mount_point) else {
        return Err(UnmountError::NotMounted(args.mount_point.clone()).into());
    };
    let point = &mount.point;
    let daemon = ask::<Status>(mount.device, &Question::Status)
        .ok()
        .and_then(|status| Pid::from_raw(status.pid as i32))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    unmount(point, args.lazy)?;
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
