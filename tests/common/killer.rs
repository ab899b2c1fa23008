//! Daemons that are killed, each time with another that takes over.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Mount, ns, sys};

/// The daemon that serves now: how many there were so far, and its pid.
pub(crate) fn daemon(mount: &Mount) -> (u64, u32) {
    let status = mount.status();
    if status["supervised"]["daemons"] == 1 {
        up(mount);
    }
    let pid = status["pid"].as_u64().unwrap() as u32;
    (status["supervised"]["daemons"].as_u64().unwrap(), pid)
}

/// Waits until the first daemon is ready, as far as its log is the mount's own: one that dies before has no successor.
fn up(mount: &Mount) {
    let deadline = Instant::now() + ns::HANG;
    while std::fs::read_to_string(&mount.log).is_ok_and(|log| !log.contains("mounted at")) {
        assert!(Instant::now() < deadline, "it isn't ready:\n{}", mount.story());
    }
}

/// Kills this process.
#[track_caller]
pub(crate) fn shoot(pid: u32) {
    let dead = sys::pidfd(pid).unwrap();
    sys::signal(&dead, libc::SIGKILL).unwrap();
}

/// Kills the daemon, and returns when another answers.
#[track_caller]
pub(crate) fn kill(mount: &Mount) {
    let (before, pid) = daemon(mount);
    shoot(pid);
    next(mount, before);
}

/// Returns when another daemon than that answers.
#[track_caller]
pub(crate) fn next(mount: &Mount, before: u64) {
    let deadline = Instant::now() + ns::HANG;
    loop {
        let daemons = mount.try_status().and_then(|status| status["supervised"]["daemons"].as_u64());
        if daemons.is_some_and(|daemons| daemons > before) {
            return;
        }
        assert!(Instant::now() < deadline, "no other daemon answers:\n{}", mount.story());
    }
}

/// Kills the mount's daemon again and again, each time so long after another answers, while `work` goes on. What
/// that returns, and how many were killed.
#[track_caller]
pub(crate) fn while_killed<T>(mount: &Mount, every: Duration, work: impl FnOnce() -> T) -> (T, u64) {
    let (done, over) = channel::<()>();
    std::thread::scope(|scope| {
        let killer = scope.spawn(move || {
            let mut kills = 0;
            while over.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                kill(mount);
                kills += 1;
            }
            kills
        });
        // Dropped if the work panics, too.
        let done = done;
        let result = work();
        drop(done);
        (result, killer.join().unwrap())
    })
}
