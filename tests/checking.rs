//! Checking backings, in a mount and without one.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "checking/fsck.rs"]
mod fsck;
#[path = "checking/import.rs"]
mod import;
