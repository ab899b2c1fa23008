//! What stays and what goes when room is short: eviction on real mounts over small drives.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "retention/mod.rs"]
mod kept;
