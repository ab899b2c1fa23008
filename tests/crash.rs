//! The daemon dies, at every point and at any, and no client notices but for a pause.
#![allow(clippy::unwrap_used)]

mod common;

#[path = "crash/kept.rs"]
mod kept;
#[path = "crash/points.rs"]
mod points;
#[path = "crash/storm.rs"]
mod storm;

use common::killer::{daemon, kill, next};
