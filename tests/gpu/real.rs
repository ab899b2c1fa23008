//! NVIDIA's own libcufile, beside a stand-in for the driver: however it behaves without a GPU, the probe ends
//! soon and decides for the copy through host memory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Lab;
use crate::common::cli::{self, BINARY};
use crate::standin;

/// The library of the wheel `nvidia-cufile`, which CI puts into the cache.
fn real_library() -> PathBuf {
    let cache = std::env::var_os("KVFS_TEST_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or(home, PathBuf::from).join("kvfs-tests")
    });
    let folder = cache.join("cufile");
    let found = std::fs::read_dir(folder.join("nvidia")).into_iter().flatten().flatten();
    let mut found = found.map(|entry| entry.path().join("lib/libcufile.so.0")).filter(|path| path.exists());
    found.next().unwrap_or_else(|| {
        panic!(
            "{0} has no libcufile.so.0. `.ci/test tools` gets it, or: \
             python3 -m pip install --no-deps --target {0} nvidia-cufile==1.20.0.107",
            folder.display()
        )
    })
}

/// Probes a directory with the real library; what it says of it.
fn probe(lab: &Lab, guarded: bool) -> Value {
    let (libraries, log) = (lab.dir("lib"), lab.dir("standin"));
    std::os::unix::fs::symlink(real_library(), libraries.join("libcufile.so.0")).unwrap();
    std::os::unix::fs::symlink(standin::libraries().join("libcuda.so.1"), libraries.join("libcuda.so.1"))
        .unwrap();
    let mut command = Command::new(BINARY);
    command.args(["worker", "probe-cufile"]).arg(lab.dir("backing")).current_dir(lab.dir("cwd"));
    command.env("LD_LIBRARY_PATH", libraries).env("KVFS_STANDIN", log);
    if !guarded {
        command.env("KVFS_FAULT_CUFILE_UNGUARDED", "1");
    }
    let began = Instant::now();
    let out = cli::finish(command).code(0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let mut lines = out.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(lines.next().unwrap()["Gpus"]["Ok"].is_array());
    let finding = lines.next().unwrap()["Dir"][1].clone();
    for folder in ["backing", "cwd"] {
        let left = std::fs::read_dir(lab.path(folder)).unwrap().flatten().next();
        assert!(left.is_none(), "left in {folder}: {left:?}");
    }
    finding
}

#[test]
fn the_library_is_not_opened_where_it_would_hang() {
    let finding = probe(&Lab::new(), true);
    assert_eq!(finding["path"], "bounce", "{finding}");
    if std::fs::read(Path::new("/proc/modules")).is_err() {
        assert_eq!(finding["why"], "would_hang");
    } else {
        assert!(finding["why"]["cufile"].as_u64() >= Some(5000), "{finding}");
    }
}

#[test]
fn opened_without_the_compatibility_mode_it_refuses() {
    // A kernel that would make it hang in that mode doesn't in ours.
    let finding = probe(&Lab::new(), false);
    assert_eq!(finding["path"], "bounce", "{finding}");
    assert!(finding["why"]["cufile"].as_u64() >= Some(5000), "{finding}");
}
