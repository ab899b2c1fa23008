//! The daemon dies, at every point and at any, and no client notices but for a pause.
#![allow(clippy::unwrap_used)]

mod common;

#[path = "crash/kept.rs"]
mod kept;
#[path = "crash/load.rs"]
mod load;
#[path = "crash/points.rs"]
mod points;
#[path = "crash/set.rs"]
mod set;
#[path = "crash/storm.rs"]
mod storm;
#[path = "crash/systemd.rs"]
mod systemd;
#[path = "crash/upgrade.rs"]
mod upgrade;

use std::time::Instant;

use common::{Mount, ns};

/// The daemon that serves now: how many there were so far, and its pid.
fn daemon(mount: &Mount) -> (u64, u32) {
    let status = mount.status();
    let pid = status["pid"].as_u64().unwrap() as u32;
    (status["supervised"]["daemons"].as_u64().unwrap(), pid)
}

/// Kills this process.
#[track_caller]
fn shoot(pid: u32) {
    let dead = common::sys::pidfd(pid).unwrap();
    common::sys::signal(&dead, libc::SIGKILL).unwrap();
}

/// Kills the daemon, and returns when another answers.
#[track_caller]
fn kill(mount: &Mount) {
    let (before, pid) = daemon(mount);
    shoot(pid);
    next(mount, before);
}

/// Returns when another daemon than that answers.
#[track_caller]
fn next(mount: &Mount, before: u64) {
    let deadline = Instant::now() + ns::HANG;
    loop {
        let out = common::kvfs(["status".into(), "--json".into(), mount.point().as_os_str().to_owned()]);
        let status: Option<serde_json::Value> = serde_json::from_str(&out.stdout).ok();
        let daemons = status.and_then(|status| status["supervised"]["daemons"].as_u64());
        if daemons.is_some_and(|daemons| daemons > before) {
            return;
        }
        assert!(Instant::now() < deadline, "no other daemon answers:\n{}", mount.story());
    }
}
