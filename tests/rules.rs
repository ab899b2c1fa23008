//! Rules of directories: a placement policy or a quota as an extended attribute holds for what is made in
//! the directory and below it, survives, and can't be lifted by those whom it binds.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "rules/placement.rs"]
mod placement;
#[path = "rules/quota.rs"]
mod quota;

use std::path::Path;
use std::time::Instant;

use common::{Mount, ns};

const PLACEMENT: &str = "user.kvfs.placement";
const QUOTA: &str = "user.kvfs.quota";

/// What the status says of the rules of a directory.
fn rule(mount: &Mount, dir: &str) -> Option<serde_json::Value> {
    let status = mount.status();
    let rules = status["rules"].as_array().expect("status.rules").clone();
    rules.into_iter().find(|rule| rule["path"].as_str() == Some(dir))
}

/// Asks the status until a directory's files take so many bytes.
#[track_caller]
fn wait_used(mount: &Mount, dir: &str, bytes: u64) {
    let deadline = Instant::now() + ns::HANG;
    loop {
        let rule = rule(mount, dir);
        if rule.as_ref().and_then(|rule| rule["used"].as_u64()) == Some(bytes) {
            return;
        }
        assert!(Instant::now() < deadline, "{dir}: {bytes} bytes expected, status says {rule:?}");
    }
}

fn write(path: &Path, bytes: usize) -> common::R<()> {
    let fd = common::sys::open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644)?;
    assert_eq!(common::sys::write(&fd, &vec![7; bytes]), Ok(bytes), "an accepted file takes its data");
    Ok(())
}
