//! Backings that others change too: two daemons over the same directories see each other's names and bytes.
//! What is asked for a second time must come true within the time to live; the tests ask until it does.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "shared/data.rs"]
mod data;
#[path = "shared/dirs.rs"]
mod dirs;
#[path = "shared/listing.rs"]
mod listing;
#[path = "shared/mixed.rs"]
mod mixed;
#[path = "shared/names.rs"]
mod names;
#[path = "shared/storm.rs"]
mod storm;
#[path = "shared/together.rs"]
mod together;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Builder, Lab, Mount, Passthrough};

/// Far longer than any time to live here, far shorter than a day.
const SOON: Duration = Duration::from_secs(60);

/// The directories as `--backing` takes them.
fn shared(backings: &[PathBuf]) -> Vec<PathBuf> {
    backings.iter().map(|b| PathBuf::from(format!("{}:shared", b.display()))).collect()
}

fn mount_at(lab: &Lab, point: &str, backings: &[PathBuf]) -> Builder {
    lab.mount(backings).at(lab.dir(point))
}

/// Two mounts of the same directories.
fn two(lab: &Lab, backings: &[PathBuf]) -> (Mount, Mount) {
    let start = |point| mount_at(lab, point, &shared(backings)).start();
    (start("one"), start("two"))
}

/// The same in both data modes.
fn two_in_each_mode(test: impl Fn(&Lab, &[PathBuf], &Mount, &Mount)) {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let b = lab.dirs(3);
        let start = |point| mount_at(&lab, point, &shared(&b)).passthrough(mode).start();
        let (one, two) = (start("one"), start("two"));
        test(&lab, &b, &one, &two);
    }
}

/// Asks until it's so.
#[track_caller]
fn soon<T: std::fmt::Debug + PartialEq>(want: T, what: &str, ask: impl Fn() -> T) {
    let deadline = Instant::now() + SOON;
    loop {
        let got = ask();
        if got == want {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {got:?}, not {want:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(path: &Path) -> Result<Vec<u8>, i32> {
    std::fs::read(path).map_err(|e| e.raw_os_error().unwrap_or(0))
}

fn write(path: &Path, data: impl AsRef<[u8]>) {
    std::fs::write(path, data).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn exists(path: &Path) -> bool {
    common::sys::lstat(path).is_ok()
}

/// What is below a directory: paths, with a slash behind those of directories, sorted.
fn tree(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        // It may go while it's looked at.
        let Ok(entries) = std::fs::read_dir(root.join(&dir)) else { continue };
        for entry in entries.flatten() {
            let path = dir.join(entry.file_name());
            let Ok(kind) = entry.file_type() else { continue };
            let name = path.to_string_lossy();
            if name.contains(".kvfs-") {
                continue;
            }
            all.push(if kind.is_dir() { format!("{name}/") } else { name.into_owned() });
            if kind.is_dir() {
                todo.push(path);
            }
        }
    }
    all.sort();
    all.dedup();
    all
}
