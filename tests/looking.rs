//! Looking inside a mount: what it does, what it has, what it logs.
#![allow(clippy::unwrap_used)]

#[path = "looking/bench.rs"]
mod bench;
mod common;
#[path = "looking/debug.rs"]
mod debug;
#[path = "looking/list.rs"]
mod list;
#[path = "looking/log.rs"]
mod log;
#[path = "looking/trace.rs"]
mod trace;
