//! Mounting and unmounting: our own mount(2) as root, `fusermount3` as an ordinary user.
//!
//! What always holds: a mount point is judged by the kernel's list of mounts first and touched only after
//! that, so a dead mount there hangs nobody; and what is unmounted is ours: same place, same device number.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use rustix::fs::{Mode, OFlags};

use super::helper::Helper;
use crate::backing::mountinfo::{self, Mount, mounted_at};
use crate::config::KernelOption;

/// The type that mounts show (`fuse` and our subtype).
pub const FS_TYPE: &str = "fuse.kvfs";

const DEVICE: &str = "/dev/fuse";

/// Why a mount isn't possible. Each message is one sentence that names the value and the way out.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There's nothing at that path.
    #[error("mount point {0} does not exist; create it with: mkdir -p {0}")]
    Missing(PathBuf),
    /// Not a directory.
    #[error("mount point {0} is not a directory; choose an empty directory")]
    NotADirectory(PathBuf),
    /// There are files in it, which the mount would hide.
    #[error("mount point {0} is not empty; the mount would hide what is in it, choose an empty directory")]
    NotEmpty(PathBuf),
    /// A kvfs is mounted there.
    #[error("kvfs is already mounted at {0}; unmount it first with: kvfs umount {0}")]
    AlreadyMounted(PathBuf),
    /// The FUSE device isn't there.
    #[error(
        "{DEVICE} does not exist; load the kernel module (modprobe fuse) or pass the device into the container"
    )]
    NoDevice,
    /// The kernel or fusermount3 said no.
    #[error(
        "not permitted to mount at {0} ({1}); mount as root, or install fusermount3 and own the mount point"
    )]
    NotPermitted(PathBuf, String),
    /// Anything else.
    #[error("mounting at {0} failed: {1}")]
    Io(PathBuf, io::Error),
}

/// Makes sure that a mount may go there; returns the path, absolute and without symbolic links.
pub fn check_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let io = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => MountError::Missing(path.to_owned()),
        io::ErrorKind::NotADirectory => MountError::NotADirectory(path.to_owned()),
        _ => MountError::Io(path.to_owned(), e),
    };
    let refuse_mounted = |point: &Path| match mounted_at(point) {
        Ok(Some(mount)) if mount.fs_type == FS_TYPE => Err(MountError::AlreadyMounted(point.to_owned())),
        Ok(_) => Ok(()),
        Err(e) => Err(MountError::Io(point.to_owned(), e)),
    };
    // By its parent first: looking at a dead mount itself fails, at a hung one hangs.
    let absolute = std::path::absolute(path).map_err(io)?;
    let point = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map_err(io)?.join(name),
        _ => absolute,
    };
    refuse_mounted(&point)?;
    let point = point.canonicalize().map_err(io)?;
    refuse_mounted(&point)?;
    if !point.metadata().map_err(io)?.is_dir() {
        return Err(MountError::NotADirectory(point));
    }
    if std::fs::read_dir(&point).map_err(io)?.next().is_some() {
        return Err(MountError::NotEmpty(point));
    }
    if !Path::new(DEVICE).exists() {
        return Err(MountError::NoDevice);
    }
    Ok(point)
}

/// The path of a mount that is there, absolute and without symbolic links. The mount itself isn't touched.
pub fn where_mounted(path: &Path) -> Result<PathBuf, MountError> {
    let io = |e: io::Error| MountError::Io(path.to_owned(), e);
    let absolute = std::path::absolute(path).map_err(io)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(io)?.join(name)),
        _ => Ok(absolute),
    }
}

/// How long a mount may take to show that it's dead: that one is says so at once.
const DEAD_WITHIN: Duration = Duration::from_secs(2);

/// Takes away a mount of kvfs whose daemon, and whoever would start another, has ended without unmounting: nothing can
/// bring it to life again. Whether there was one. Any other mount is left as it is.
pub fn detach_dead(path: &Path) -> Result<bool, UnmountError> {
    let Ok(point) = where_mounted(path) else { return Ok(false) };
    let mut found = false;
    while matches!(mounted_at(&point), Ok(Some(mount)) if mount.fs_type == FS_TYPE) && is_dead(&point) {
        unmount(&point, true)?;
        found = true;
    }
    Ok(found)
}

/// Whether the kernel answers for a connection that's closed. One that hangs isn't.
fn is_dead(point: &Path) -> bool {
    let (tell, told) = std::sync::mpsc::channel();
    let point = point.to_owned();
    // It may never come back, from a mount that hangs.
    let asks = std::thread::spawn(move || tell.send(rustix::fs::statfs(&point).err()));
    let dead = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED];
    let Ok(error) = told.recv_timeout(DEAD_WITHIN) else { return false };
    // Whoever mounts in the background forks, and has no other thread then.
    let _ = asks.join();
    error.is_some_and(|error| dead.contains(&error))
}

/// A mount of ours, as long as it's mounted.
#[derive(Debug)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// Its device number; the minor is the connection's in `/sys/fs/fuse/connections`.
    pub device: (u32, u32),
    /// Who unmounts it where this process can't.
    helper: OnceLock<Helper>,
}

/// Mounts at `point`; the descriptor is the session's `/dev/fuse`.
///
/// As root other users are let in, and the kernel checks their permissions. As an ordinary user only that
/// user is, unless `allow_other` (which `/etc/fuse.conf` must allow).
pub(super) fn mount(
    point: &Path,
    source: &str,
    kernel: &[KernelOption],
    allow_other: bool,
) -> Result<(OwnedFd, Mounted), MountError> {
    let fd = if rustix::process::geteuid().is_root() {
        mount_as_root(point, source, flags_of(kernel))?
    } else {
        mount_by_helper(point, kernel, allow_other)?
    };
    match mounted_at(point) {
        Ok(Some(mount)) if mount.fs_type == FS_TYPE => Ok((fd, Mounted::at(point, mount.device))),
        Ok(_) => {
            Err(MountError::Io(point.to_owned(), io::Error::other("the mount is not in the list of mounts")))
        }
        Err(e) => Err(MountError::Io(point.to_owned(), e)),
    }
}

/// mount(2)'s flags; a mount of ours is always nosuid and nodev.
fn flags_of(kernel: &[KernelOption]) -> MsFlags {
    let flag = |option: &KernelOption| match option {
        KernelOption::ReadOnly => MsFlags::MS_RDONLY,
        KernelOption::NoExec => MsFlags::MS_NOEXEC,
        KernelOption::NoAtime => MsFlags::MS_NOATIME,
        KernelOption::NoDirAtime => MsFlags::MS_NODIRATIME,
        KernelOption::RelAtime => MsFlags::MS_RELATIME,
        KernelOption::StrictAtime => MsFlags::MS_STRICTATIME,
        // Not in nix: include/uapi/linux/mount.h
        KernelOption::NoSymFollow => MsFlags::from_bits_retain(256),
    };
    kernel.iter().map(flag).fold(MsFlags::MS_NOSUID | MsFlags::MS_NODEV, |all, one| all | one)
}

/// Gives the kvfs at `point` (absolute, without symbolic links) these of the kernel's options and no others.
pub fn remount(point: &Path, kernel: &[KernelOption]) -> Result<(), MountError> {
    let flags = flags_of(kernel) | MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&str>, point, None::<&str>, flags, None::<&str>).map_err(|e| match e {
        Errno::EPERM => MountError::NotPermitted(point.to_owned(), e.to_string()),
        _ => MountError::Io(point.to_owned(), e.into()),
    })
}

/// Has a kvfs take no more changes; its other options stay. Refused as in use while a file is open to be written.
pub fn remount_read_only(mount: &Mount) -> Result<(), UnmountError> {
    let is_set = |option: &KernelOption| mount.options.split(',').any(|set| set == option.name());
    let kernel: Vec<KernelOption> =
        KernelOption::ALL.into_iter().filter(|o| *o == KernelOption::ReadOnly || is_set(o)).collect();
    let flags = flags_of(&kernel) | MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&str>, &mount.point, None::<&str>, flags, None::<&str>).map_err(|e| match e {
        Errno::EBUSY => UnmountError::Busy(mount.point.clone()),
        e => UnmountError::Io(mount.point.clone(), e.into()),
    })
}

fn mount_as_root(point: &Path, source: &str, flags: MsFlags) -> Result<OwnedFd, MountError> {
    let failed = |e: io::Error| match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => MountError::NotPermitted(point.to_owned(), e.to_string()),
        Some(libc::ENODEV) => MountError::NoDevice,
        _ => MountError::Io(point.to_owned(), e),
    };
    let fd = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| if e == rustix::io::Errno::NOENT { MountError::NoDevice } else { failed(e.into()) })?;
    // Documentation/filesystems/fuse/fuse.rst: mount options. The root is a directory (S_IFDIR).
    let data =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fd.as_raw_fd());
    nix::mount::mount(Some(source), point, Some(FS_TYPE), flags, Some(data.as_str()))
        .map_err(|e| failed(e.into()))?;
    Ok(fd)
}

/// `fusermount3` mounts and hands the descriptor over on a socket whose number is in `_FUSE_COMMFD`
/// (libfuse, lib/mount.c).
fn mount_by_helper(point: &Path, kernel: &[KernelOption], allow_other: bool) -> Result<OwnedFd, MountError> {
    let io = |e: io::Error| MountError::Io(point.to_owned(), e);
    let (ours, theirs) = UnixStream::pair().map_err(io)?;
    // The helper inherits its end.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|e| io(e.into()))?;
    let mut options = String::from("nosuid,nodev,fsname=kvfs,subtype=kvfs,default_permissions");
    let others = kernel.iter().map(|option| option.name());
    for option in others.chain(allow_other.then_some("allow_other")) {
        options.extend([",", option]);
    }
    let output = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .output()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                MountError::NotPermitted(point.to_owned(), "fusermount3 is not installed".into())
            }
            _ => io(e),
        })?;
    drop(theirs);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(MountError::NotPermitted(point.to_owned(), said));
    }
    receive_fd(&ours).map_err(io)
}

fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just made this descriptor for us alone.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other("fusermount3 sent no descriptor"))
}

/// Why an unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// No kvfs is mounted there.
    #[error("no kvfs is mounted at {0}; `kvfs status` lists the mounts")]
    NotMounted(PathBuf),
    /// Files are open, or somebody is in there.
    #[error(
        "{0} is in use; close the files (fuser -vm {0} tells who), or detach it with: kvfs umount --lazy {0}"
    )]
    Busy(PathBuf),
    /// Anything else.
    #[error("unmounting {0} failed: {1}")]
    Io(PathBuf, io::Error),
}

/// Unmounts the kvfs at `point` (absolute, without symbolic links); lazily: at once for newcomers, and for
/// good when the last file is closed.
pub fn unmount(point: &Path, lazy: bool) -> Result<(), UnmountError> {
    let io = |e: io::Error| UnmountError::Io(point.to_owned(), e);
    match mounted_at(point) {
        Ok(Some(mount)) if mount.fs_type == FS_TYPE => {}
        Ok(_) => return Err(UnmountError::NotMounted(point.to_owned())),
        Err(e) => return Err(io(e)),
    }
    if !rustix::process::geteuid().is_root() {
        return unmount_by_helper(point, lazy);
    }
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() } | MntFlags::UMOUNT_NOFOLLOW;
    match umount2(point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(UnmountError::Busy(point.to_owned())),
        Err(Errno::EINVAL) => Err(UnmountError::NotMounted(point.to_owned())),
        Err(e) => Err(io(e.into())),
    }
}

/// Ends the connection of the kvfs at `point`, which nobody may answer for any more, and unmounts it: what clients
/// wait for fails.
pub fn unmount_by_force(point: &Path) -> Result<(), UnmountError> {
    match umount2(point, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(UnmountError::Busy(point.to_owned())),
        Err(Errno::EINVAL) => Err(UnmountError::NotMounted(point.to_owned())),
        Err(e) => Err(UnmountError::Io(point.to_owned(), e.into())),
    }
}

fn unmount_by_helper(point: &Path, lazy: bool) -> Result<(), UnmountError> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(point).output().map_err(|e| UnmountError::Io(point.to_owned(), e))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(UnmountError::Busy(point.to_owned())),
        false => Err(UnmountError::Io(point.to_owned(), io::Error::other(said.trim().to_owned()))),
    }
}

impl Mounted {
    /// Whether it's still mounted, by the kernel's list.
    pub fn is_mounted(&self) -> bool {
        mountinfo::mounts().is_ok_and(|mounts| {
            mounts.iter().any(|m| m.point == self.point && m.device == self.device && m.fs_type == FS_TYPE)
        })
    }

    /// What is mounted there.
    pub(super) fn at(point: &Path, device: (u32, u32)) -> Mounted {
        Mounted { point: point.to_owned(), device, helper: OnceLock::new() }
    }

    /// From now on this process may not be able to unmount it: if it's an ordinary user's, another one does it.
    pub fn before_sandbox(&self) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            let _ = self.helper.set(Helper::start(&self.point)?);
        }
        Ok(())
    }

    /// Unmounts it; lazily: at once for newcomers, and for good when the last file is closed.
    pub fn unmount(&self, lazy: bool) -> Result<(), UnmountError> {
        match self.helper.get() {
            Some(helper) => helper.unmount(&self.point, lazy),
            None => unmount(&self.point, lazy),
        }
    }

    /// Takes it away, at once for newcomers, if it's still there.
    pub fn detach(&self) {
        if self.is_mounted() {
            let _ = self.unmount(true);
        }
    }
}
