//! The set of backings changes while a mount is in use: add, drain, remove, set and rebalance, with clients
//! beside them, crashes in the middle, and drives that fail.
#![allow(clippy::unwrap_used)]

#[path = "backing_set/mod.rs"]
mod backings;
mod common;
