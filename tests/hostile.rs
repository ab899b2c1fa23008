//! Users who mean harm, or take no care: they get to nothing outside of the backings, to nobody else's buffers and
//! to none of kvfs's own files; they can't use up what others need; and what the daemon doesn't need, it can't do.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "hostile/mod.rs"]
mod users;
