//! What a mount counts, and how that is told: on real mounts, to a real Prometheus.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "metrics/mod.rs"]
mod told;
