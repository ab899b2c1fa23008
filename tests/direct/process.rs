//! What other clients do, and what the daemon has of them.

use std::os::fd::OwnedFd;

pub(crate) use crate::common::process::Process;
use crate::common::{Mount, cli, ns, sys};

/// Sleeps for ever, until a signal.
pub(crate) fn hang() {
    loop {
        nix::unistd::pause();
    }
}

/// Asks for the status until it's as wanted; the daemon's end, or nothing for long, fails the test.
#[track_caller]
pub(crate) fn until(mount: &Mount, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
    let pidfd: OwnedFd = sys::pidfd(mount.pid()).unwrap();
    let deadline = std::time::Instant::now() + ns::HANG;
    loop {
        let status = mount.status();
        if wanted(&status) {
            return;
        }
        let ended = cli::wait_fd(&pidfd, std::time::Duration::from_millis(5));
        let late = std::time::Instant::now() > deadline;
        assert!(!ended && !late, "not seen: {what}\n{status:#}\n{}", mount.story());
    }
}

/// A number of the fast path's status.
pub(crate) fn direct(status: &serde_json::Value, name: &str) -> u64 {
    status["direct"][name].as_u64().unwrap_or_else(|| panic!("no direct.{name}: {status:#}"))
}

/// Waits until no buffer is registered, none is mapped into the daemon, and no call is under way.
#[track_caller]
pub(crate) fn drained(mount: &Mount) {
    until(mount, "no buffers and no calls", |s| direct(s, "buffers") == 0 && direct(s, "in_flight") == 0);
    until(mount, "no memory of clients", |_| mapped(mount) == 0);
}

/// Mappings of memfds in the daemon.
pub(crate) fn mapped(mount: &Mount) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", mount.pid())).unwrap();
    maps.lines().filter(|line| line.contains("/memfd:kvfs-test")).count()
}

/// What the daemon's descriptors are of.
pub(crate) fn descriptors(mount: &Mount) -> Vec<String> {
    let dir = format!("/proc/{}/fd", mount.pid());
    let entries = std::fs::read_dir(dir).unwrap();
    let targets = entries.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok());
    targets.map(|t| t.to_string_lossy().into_owned()).collect()
}

/// How many of the daemon's descriptors are of processes that have ended, or of memory.
pub(crate) fn left_of_the_dead(mount: &Mount) -> usize {
    let dir = format!("/proc/{}/fdinfo", mount.pid());
    let entries = std::fs::read_dir(dir).unwrap();
    // A pidfd of a process that was reaped has no pid any more (pidfd_show_fdinfo in fs/pidfs.c).
    let infos = entries.filter_map(|e| std::fs::read_to_string(e.unwrap().path()).ok());
    let dead = infos.filter(|info| info.lines().any(|line| line.starts_with("Pid:") && line.ends_with("-1")));
    dead.count() + descriptors(mount).iter().filter(|d| d.contains("memfd")).count()
}

/// Makes this process, which has one thread, an ordinary user's, as if that had logged in.
pub(crate) fn become_user(uid: u32) {
    use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
    setgroups(&[]).unwrap();
    setgid(Gid::from_raw(uid)).unwrap();
    setuid(Uid::from_raw(uid)).unwrap();
    // SAFETY: prctl takes integers. Changing the user has taken it away.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
}
