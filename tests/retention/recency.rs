//! Uses are known after a restart.

use std::path::PathBuf;

use super::run::{MIB, evict_bytes, mount, names, old, read, set, used_ago};
use crate::common::{Builder, FsKind, Lab};

const RECORD: &str = ".kvfs-recency";

/// Six files in directories, all used long ago by their own times, and backings that don't note reads.
fn aged(lab: &Lab) -> (Builder, Vec<PathBuf>) {
    let volumes = [lab.volume(FsKind::Ext4, 64), lab.volume(FsKind::Ext4, 64)];
    let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    for (b, backing) in backings.iter().enumerate() {
        (0..6).for_each(|i| old(backing, &format!("d/b{b}-{i}"), MIB, 90_000 - 1000 * i));
    }
    (mount(lab, &backings, "lru", &[]), backings)
}

/// Makes the files' own times say nothing.
fn forget_times(backings: &[PathBuf]) {
    for (b, backing) in backings.iter().enumerate() {
        (0..6).for_each(|i| used_ago(&backing.join(format!("d/b{b}-{i}")), 90_000 - 1000 * i));
    }
}

fn read_some(mount: &crate::common::Mount) {
    ["d/b0-0", "d/b1-2"].iter().for_each(|name| read(&mount.path(name), 7, MIB));
}

fn evict_most(mount: &crate::common::Mount) {
    evict_bytes(mount, 5 * MIB);
    assert_eq!(names(&mount.path("d")), set(["b0-0", "b1-2"]), "what was opened stays");
}

#[test]
fn opened_files_stay_after_a_restart() {
    let lab = Lab::new();
    let (builder, backings) = aged(&lab);
    let mount = builder.start();
    read_some(&mount);
    let builder = mount.stop();
    assert!(backings.iter().all(|b| b.join(RECORD).exists()), "each backing has its own record");
    forget_times(&backings);
    let mount = builder.start();
    assert!(!mount.path(RECORD).exists(), "clients don't see it");
    let mount = mount.restart();
    evict_most(&mount);
}

#[test]
fn a_daemon_that_is_killed_keeps_what_was_written_down() {
    let lab = Lab::new();
    let (builder, backings) = aged(&lab);
    let mount = builder.start();
    read_some(&mount);
    let builder = mount.stop();
    forget_times(&backings);
    let mount = builder.clone().start();
    mount.signal(libc::SIGKILL);
    let point = mount.point().to_path_buf();
    mount.ended();
    crate::common::ns::unmount_below(&point);
    evict_most(&builder.start());
}

#[test]
fn a_record_that_is_damaged_or_of_another_kind_is_no_error() {
    let lab = Lab::new();
    let (builder, backings) = aged(&lab);
    let mount = builder.start();
    read_some(&mount);
    let builder = mount.stop();
    forget_times(&backings);
    let whole = std::fs::read(backings[0].join(RECORD)).unwrap();
    std::fs::write(backings[0].join(RECORD), &whole[..whole.len() - 3]).unwrap();
    std::fs::remove_file(backings[1].join(RECORD)).unwrap();
    std::fs::create_dir(backings[1].join(RECORD)).unwrap();
    let mount = builder.start();
    evict_bytes(&mount, 3 * MIB);
    let left = set(["b0-3", "b0-4", "b0-5", "b1-3", "b1-4", "b1-5"]);
    assert_eq!(names(&mount.path("d")), left, "by the files' own times");
    assert!(mount.story().contains("the record of uses can't be read"), "{}", mount.story());
}
