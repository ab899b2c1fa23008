//! The test's own mount namespace, and what the kernel says is mounted in it.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::sys;

/// How long a step that should take milliseconds may take before the test calls it hung.
pub(crate) const HANG: Duration = Duration::from_secs(120);

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Gives the calling thread, and every process and thread it starts, a mount namespace of its own.
pub(crate) fn enter_private() {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.replace(true) {
        return;
    }
    sys::unshare(libc::CLONE_NEWNS).expect("these tests mount file systems: run them as root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("make the mounts of this namespace private");
    if mounts().iter().all(|m| m.point != Path::new(CONNECTIONS)) {
        mount(Some("fusectl"), CONNECTIONS, Some("fusectl"), MsFlags::empty(), None::<&str>)
            .expect("mount fusectl, the way out of a hung mount");
    }
}

/// One line of mountinfo.
#[derive(Debug, Clone)]
pub(crate) struct MountInfo {
    pub(crate) minor: u32,
    pub(crate) point: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: String,
    pub(crate) options: String,
}

/// Every mount of the calling thread's namespace, oldest first.
pub(crate) fn mounts() -> Vec<MountInfo> {
    let text = fs::read("/proc/thread-self/mountinfo").expect("read mountinfo");
    text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(parse).collect()
}

/// The mounts at exactly `point`.
pub(crate) fn mounts_at(point: &Path) -> Vec<MountInfo> {
    mounts().into_iter().filter(|m| m.point == point).collect()
}

fn parse(line: &[u8]) -> MountInfo {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-").expect("mountinfo has a separator");
    let text = |i: usize| String::from_utf8_lossy(fields[i]).into_owned();
    MountInfo {
        minor: text(2).split(':').nth(1).and_then(|m| m.parse().ok()).expect("major:minor"),
        point: PathBuf::from(OsString::from_vec(unescape(fields[4]))),
        options: text(5),
        fs_type: text(dash + 1),
        source: text(dash + 2),
    }
}

fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut i = 0;
    while i < raw.len() {
        let code = (raw[i] == b'\\')
            .then(|| raw.get(i + 1..i + 4))
            .flatten()
            .and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(raw[i]);
                i += 1;
            }
        }
    }
    out
}

/// Waits until `done` holds, looking again whenever a mount comes or goes. False when `gone`
/// (a pidfd) ended first or nothing happened for [`HANG`].
pub(crate) fn wait_mounts(gone: Option<BorrowedFd<'_>>, mut done: impl FnMut() -> bool) -> bool {
    // Opened before the first look: the kernel then reports every change after it.
    let info = File::open("/proc/thread-self/mountinfo").expect("open mountinfo");
    let deadline = Instant::now() + HANG;
    loop {
        if done() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut fds = vec![PollFd::new(info.as_fd(), PollFlags::POLLPRI | PollFlags::POLLERR)];
        fds.extend(gone.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => panic!("poll mountinfo: {e}"),
        }
        if fds.len() > 1 && fds[1].any().unwrap_or(false) {
            return done();
        }
    }
}

/// Takes away every mount at or below `root`, the newest first. A FUSE mount found here is one
/// whose fixture failed: its connection is aborted first, so that nothing can hang on it.
pub(crate) fn unmount_below(root: &Path) {
    for m in mounts().iter().rev().filter(|m| m.point.starts_with(root)) {
        if m.fs_type.starts_with("fuse") {
            abort(m.minor);
        }
        if umount2(&m.point, MntFlags::UMOUNT_NOFOLLOW).is_err() {
            let _ = umount2(&m.point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}

/// Ends the FUSE connection of the mount with this device minor: every waiting call fails.
pub(crate) fn abort(minor: u32) {
    let _ = fs::write(format!("{CONNECTIONS}/{minor}/abort"), "1");
}
