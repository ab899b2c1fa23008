//! A hundred thousand small files.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::run::{MIB, evict_bytes, mount, number, put};
use crate::common::{FsKind, Lab};

const FILES: usize = 100_000;
const DIRS: usize = 20;

#[test]
fn a_hundred_thousand_files_go_while_others_come() {
    let lab = Lab::new();
    // 1 KiB blocks: as many small files as fit.
    let backing = lab.volume_with(FsKind::Ext4, 320, &["-b", "1024", "-N", "130000", "-I", "128"]).join("kv");
    std::thread::scope(|scope| {
        for t in 0..4 {
            let backing = &backing;
            scope.spawn(move || {
                for dir in (t..DIRS).step_by(4) {
                    let dir = backing.join(dir.to_string());
                    std::fs::create_dir_all(&dir).unwrap();
                    (0..FILES / DIRS).for_each(|i| std::fs::write(dir.join(i.to_string()), b"x").unwrap());
                }
            });
        }
    });
    let mount = mount(&lab, &[backing], "lru", &[]).start();
    let (stop, made) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0.. {
                if stop.load(Relaxed) {
                    return;
                }
                put(&mount.path(format!("new{}", i % 50)), 1, 64 << 10);
                made.fetch_add(1, Relaxed);
            }
        });
        evict_bytes(&mount, FILES as u64 * 1024);
        stop.store(true, Relaxed);
    });
    assert!(made.load(Relaxed) > 0);
    let (evicted, files) =
        (number(&mount, "evicted_lru"), mount.status()["index"]["files"].as_u64().unwrap());
    assert!(evicted >= FILES as u64 * 9 / 10, "{evicted} evicted");
    let left: u64 = (0..DIRS).map(|dir| super::run::names(&mount.path(dir.to_string())).len() as u64).sum();
    assert!(files >= left && left + evicted >= FILES as u64, "{files} {left} {evicted}");
    assert!(FILES as u64 * 1024 < 320 * MIB);
}
