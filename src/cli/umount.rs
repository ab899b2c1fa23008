//! `kvfs umount`: unmounts, and waits until the daemon has let go of the backings.

use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Failure, settings};
use crate::backing::mountinfo::named;
use crate::control::{Question, Status, ask};
use crate::fuse::{UnmountError, unmount, unmount_by_force};

/// How long the daemon may take to end once nothing is mounted.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmount
#[derive(Debug, clap::Args)]
pub(super) struct UmountArgs {
    /// Where it's mounted
    #[arg(required_unless_present = "config")]
    pub(super) mount_point: Option<PathBuf>,

    /// The file that it was mounted by, which says where
    #[arg(long, value_name = "FILE", conflicts_with = "mount_point")]
    pub(super) config: Option<PathBuf>,

    /// Detach a mount that is in use: gone for newcomers at once, and for good when the last file is closed
    #[arg(short, long)]
    pub(super) lazy: bool,

    /// End it though its daemon doesn't answer any more: what clients wait for fails (ECONNABORTED). For root alone
    #[arg(long)]
    pub(super) force: bool,
}

impl UmountArgs {
    fn mount_point(&self) -> Result<PathBuf, Failure> {
        match (&self.mount_point, &self.config) {
            (Some(point), _) => Ok(point.clone()),
            (None, Some(file)) => {
                Ok(settings::resolve(&settings::line_of(file))?.args.mount_point()?.to_owned())
            }
            // clap has refused that.
            (None, None) => Err(Failure::other("no mount point was given")),
        }
    }
}

pub(super) fn run(args: &UmountArgs) -> Result<(), Failure> {
    let mount_point = args.mount_point()?;
    let Ok(Some(mount)) = named(&mount_point) else {
        return Err(UnmountError::NotMounted(mount_point).into());
    };
    let point = &mount.point;
    if args.force {
        let ended = unmount_by_force(point);
        // Files are open, but all that's asked of them fails from now on.
        if !(args.lazy && matches!(ended, Err(UnmountError::Busy(_)))) {
            return Ok(ended?);
        }
    }
    if args.lazy {
        return Ok(unmount(point, true)?);
    }
    let daemon = ask::<Status>(mount.device, &Question::Status)
        .ok()
        .and_then(|status| Pid::from_raw(status.pid as i32))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    unmount(point, false)?;
    if let Some(daemon) = daemon {
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
