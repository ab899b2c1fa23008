//! The daemon dies, at every point and at any, and no client notices but for a pause.
#![allow(clippy::unwrap_used)]

mod common;

#[path = "crash/direct.rs"]
mod direct;
#[path = "direct/frozen.rs"]
mod frozen;
#[path = "crash/kept.rs"]
mod kept;
#[path = "crash/points.rs"]
mod points;
#[allow(dead_code)] // Shared with the tests of the ioctls.
#[path = "direct/raw.rs"]
mod raw;
#[allow(dead_code)]
#[path = "direct/sending.rs"]
mod sending;
#[path = "crash/storm.rs"]
mod storm;

use std::time::Instant;

use common::{Mount, ns};

/// The daemon that serves now: how many there were so far, and its pid.
fn daemon(mount: &Mount) -> (u64, u32) {
    let status = mount.status();
    let pid = status["pid"].as_u64().unwrap() as u32;
    (status["supervised"]["daemons"].as_u64().unwrap(), pid)
}

/// Kills the daemon, and returns when another answers.
#[track_caller]
fn kill(mount: &Mount) {
    let (before, pid) = daemon(mount);
    let dead = common::sys::pidfd(pid).unwrap();
    common::sys::signal(&dead, libc::SIGKILL).unwrap();
    next(mount, before);
}

/// Returns when another daemon than that answers.
#[track_caller]
fn next(mount: &Mount, before: u64) {
    let deadline = Instant::now() + ns::HANG;
    loop {
        let daemons = mount.try_status().and_then(|status| status["supervised"]["daemons"].as_u64());
        if daemons.is_some_and(|daemons| daemons > before) {
            return;
        }
        assert!(Instant::now() < deadline, "no other daemon answers:\n{}", mount.story());
    }
}
