//! Who asks, on real mounts: processes with titles, environments, namespaces and devices as the clients have
//! them, and on which backing their files are.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "placement/mod.rs"]
mod placement;
