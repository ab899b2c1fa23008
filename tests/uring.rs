//! Mounts whose requests come by io_uring: what clients do on all processors, and how such a mount ends or is refused.
//!
//! All other tests run over it, too, with `KVFS_TEST_TRANSPORT=io-uring`: but for those of a supervised mount.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "uring/mod.rs"]
mod transport;
