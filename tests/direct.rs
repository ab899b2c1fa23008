//! The ioctls of packaging/kvfs_ioctl.h on real mounts, made by hand so that wrong ones can be made too.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "direct/mod.rs"]
mod fast;
