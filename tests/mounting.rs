//! Mounting like any file system: by mount(8) and fstab, by a file with options, by systemd.
#![allow(clippy::unwrap_used)]

mod common;

#[path = "mounting/config.rs"]
mod config;
#[path = "mounting/fstab.rs"]
mod fstab;
#[path = "mounting/generic.rs"]
mod generic;
#[path = "mounting/helper.rs"]
mod helper;
#[path = "mounting/system.rs"]
mod system;
#[path = "mounting/systemd.rs"]
mod systemd;
