//! Drives that die, fall ill, hang, or aren't there: what clients of theirs see, what clients of others don't, and
//! how they come back.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "drives/mod.rs"]
mod drives;
