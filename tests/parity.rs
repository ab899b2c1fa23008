//! Every operation a client can do, done on a kvfs mount and on a raw directory of the same kind
//! of file system: results, errnos and what is visible afterwards have to be the same.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "parity/mod.rs"]
mod ops;
