//! What the tests of changing sets have in common.

mod add;
mod crash;
mod drain;
mod life;
mod rebalance;
mod remove;
mod storm;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Mount, Outcome, kvfs, ns, pattern, sys};

/// Runs `kvfs backing WHAT MOUNTPOINT ...`.
fn backing(mount: &Mount, what: &str, words: &[&str]) -> Outcome {
    let mut all: Vec<OsString> = vec!["backing".into(), what.into(), mount.point().into()];
    all.extend(words.iter().map(OsString::from));
    kvfs(all)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Drains a backing to its end.
#[track_caller]
fn drained(mount: &Mount, path: &Path) -> Outcome {
    backing(mount, "drain", &[text(path)]).code(0)
}

/// Writes a file of so many bytes, with its own content.
#[track_caller]
fn put(path: &Path, seed: u64, len: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, pattern(seed, len)).unwrap();
}

#[track_caller]
fn check(path: &Path, seed: u64, len: usize) {
    let data = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(data == pattern(seed, len), "{} has another content ({} bytes)", path.display(), data.len());
}

/// The state that `status` shows of a backing, by its path.
#[track_caller]
fn state(mount: &Mount, path: &Path) -> Value {
    let status = mount.status();
    let all = status["backings"].as_array().unwrap();
    let found = all.iter().find(|b| b["path"] == text(path));
    found.unwrap_or_else(|| panic!("{} is no backing: {status:#}", path.display())).clone()
}

/// Everything below a backing that isn't a directory or kvfs's marker, job and list of members.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut all = crate::common::lab::everything(root);
    // kvfs's own come and go: probes, and lists that are written anew. What moving leaves behind counts.
    let own = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(".kvfs-") && !name.starts_with(".kvfs-move-")
    };
    all.retain(|p| !sys::lstat(p).is_ok_and(|st| st.st_mode & libc::S_IFMT == libc::S_IFDIR) && !own(p));
    all.retain(|p| !p.components().any(|part| part.as_os_str() == "lost+found"));
    all
}

/// Waits until `done` says so, by what the daemon tells.
#[track_caller]
fn until(mount: &Mount, what: &str, mut done: impl FnMut(&Value) -> bool) -> Value {
    let deadline = std::time::Instant::now() + ns::HANG;
    loop {
        let status = mount.status();
        if done(&status["job"]) {
            return status["job"].clone();
        }
        assert!(std::time::Instant::now() < deadline, "not {what}: {:#}\n{}", status["job"], mount.story());
        std::thread::yield_now();
    }
}

/// Waits until the running job has ended, and is over in this way.
#[track_caller]
fn ended(mount: &Mount, state: &str) -> Value {
    let job = until(mount, "at its end", |job| job.is_object() && job["state"] != "running");
    assert_eq!(job["state"], state, "{job:#}\n{}", mount.story());
    job
}
