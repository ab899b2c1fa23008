//! The daemon dies, at every point and at any, and no client notices but for a pause.
#![allow(clippy::unwrap_used)]

mod common;

#[path = "crash/direct.rs"]
mod direct;
#[path = "direct/frozen.rs"]
mod frozen;
#[path = "crash/kept.rs"]
mod kept;
#[path = "crash/load.rs"]
mod load;
#[path = "crash/points.rs"]
mod points;
#[allow(dead_code)] // Shared with the tests of the ioctls.
#[path = "direct/raw.rs"]
mod raw;
#[allow(dead_code)]
#[path = "direct/sending.rs"]
mod sending;
#[path = "crash/set.rs"]
mod set;
#[path = "crash/storm.rs"]
mod storm;
#[path = "crash/systemd.rs"]
mod systemd;
#[path = "crash/upgrade.rs"]
mod upgrade;

use common::killer::{daemon, kill, next, shoot};
