//! The daemon is killed in the middle of evictions, and mounted again.

use std::path::PathBuf;

use super::run::{MIB, mount, names, number, store, until};
use crate::common::process::Process;
use crate::common::{FsKind, Lab, ns, pattern, ranked};

const ROUNDS: usize = 8;

fn gds(i: usize) -> String {
    format!("k{i}.kvcache.safetensors")
}

/// Writes until the mount is gone.
fn writer(point: PathBuf, t: usize) -> Process {
    Process::start(move |say| {
        say("begins");
        for i in 0.. {
            let bytes = pattern(i as u64, MIB as usize);
            let made = if t == 0 {
                store(&point.join(ranked(0, i)), &bytes)
            } else {
                // Data first, then metadata, each whole under its name.
                let publish = |name: String, bytes: &[u8]| {
                    store(&point.join("tmp"), bytes)
                        .map(|()| std::fs::rename(point.join("tmp"), point.join(name)))
                };
                match publish(gds(i), &bytes) {
                    Ok(Ok(())) => publish(format!("{}.metadata", gds(i)), &bytes[..4096]).map(drop),
                    // Evicted while it was idle: there's nothing to be promised.
                    made => made.map(drop),
                }
            };
            if made.is_err() {
                return;
            }
        }
    })
}

fn pairs_are_whole(backings: &[PathBuf]) {
    let all: std::collections::BTreeSet<_> = backings.iter().flat_map(|b| names(b)).collect();
    for metadata in all.iter().filter(|name| name.ends_with(".metadata")) {
        assert!(all.contains(metadata.trim_end_matches(".metadata")), "{metadata} without data: {all:?}");
    }
}

#[test]
fn index_and_disk_agree_after_a_crash() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Xfs, 320).join("kv"), lab.volume(FsKind::Ext4, 96).join("kv")];
    let builder = mount(&lab, &backings, "lru", &["--capacity", "24M"]);
    for round in 0..ROUNDS {
        let mount = builder.clone().start();
        let files: Vec<_> = backings.iter().flat_map(|b| names(b)).collect();
        assert_eq!(names(mount.point()), files.iter().cloned().collect(), "each file is there once");
        assert_eq!(mount.status()["index"]["files"].as_u64(), Some(files.len() as u64));
        assert_eq!(mount.status()["index"]["shadows"].as_u64(), Some(0));
        let before = number(&mount, "evicted_lru");
        let writers: Vec<_> = (0..2).map(|t| writer(mount.point().into(), t)).collect();
        until(&mount, "evictions", |s| {
            s["retention"]["evicted_lru"].as_u64() >= Some(before + 5 + 3 * round as u64)
        });
        mount.signal(libc::SIGKILL);
        let point = mount.point().to_path_buf();
        mount.ended();
        writers.into_iter().for_each(Process::finish);
        ns::unmount_below(&point);
        pairs_are_whole(&backings);
    }
    // What's left is whole, but for what was being written when the daemon died.
    let mount = builder.start();
    let sizes = names(mount.point()).into_iter().filter(|name| name.ends_with(".safetensors"));
    for name in sizes {
        assert_eq!(std::fs::metadata(mount.path(&name)).unwrap().len(), MIB, "{name}");
    }
}
