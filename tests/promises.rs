//! The promises kvfs makes about the directory it shows: what is on the backings is visible, a
//! file is on one backing, nothing that was removed comes back, a restart changes nothing.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "promises/mod.rs"]
mod kept;
