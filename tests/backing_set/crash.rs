//! The daemon dies in the midst of moving files: at the next mount every file is there once, whole, and the
//! work goes on by itself.
#![cfg(feature = "fault-points")]

use super::{backing, check, ended, files, put, state, text};
use crate::common::{Builder, FsKind, Lab, Mount, kvfs, ns, pattern, ranked, sys};

/// Where the daemon can die.
const POINTS: [&str; 4] = ["after-copy", "after-rename", "before-unlink", "after-unlink"];
const FILES: usize = 24;

fn size(n: usize) -> usize {
    if n.is_multiple_of(3) { 2 << 20 } else { 5000 + n }
}

fn name(n: usize) -> String {
    format!("d{}/{}", n % 3, ranked(0, n))
}

fn fill(mount: &Mount) {
    for n in 0..FILES {
        put(&mount.path(name(n)), n as u64, size(n));
    }
}

/// Waits for the daemon's end and takes the dead mount away.
fn has_died(mount: Mount) {
    let point = mount.point().to_path_buf();
    let status = mount.ended();
    assert!(!status.success(), "it was to die: {status}");
    kvfs(["umount", text(&point)]).code(0);
    assert_eq!(ns::mounts_at(&point).len(), 0);
}

/// Every file is on one backing, with its own content; nothing is left over.
fn all_there_once(mount: &Mount) {
    for n in 0..FILES {
        check(&mount.path(name(n)), n as u64, size(n));
        mount.holder(name(n));
    }
    let all: Vec<_> = mount.backings().iter().flat_map(|b| files(b)).collect();
    assert_eq!(all.len(), FILES, "{all:?}");
    assert_eq!(mount.status()["index"]["files"], FILES);
}

fn dying(builder: Builder, point: &str) -> Mount {
    // Not at the first file: some are moved, some aren't.
    builder.env("KVFS_FAULT_ABORT_AT", format!("{point}:7")).start()
}

#[test]
fn in_the_midst_of_a_drain() {
    for point in POINTS {
        let lab = Lab::new();
        let b = lab.dirs(3);
        let mount = dying(lab.mount(&b), point);
        fill(&mount);
        backing(&mount, "drain", &[text(&b[0]), "--detach"]).code(0);
        has_died(mount);
        let on = b.iter().map(|b| files(b).len()).collect::<Vec<_>>();
        assert!(on[0] > 0 && on[0] <= FILES && on[1] + on[2] > 0, "{point}: {on:?}");
        let again = lab.mount(&b).start();
        assert_eq!(state(&again, &b[0])["state"], "draining", "{point}");
        ended(&again, "done");
        assert!(again.story().contains("going on with the drain"), "{point}: {}", again.story());
        assert_eq!(files(&b[0]).len(), 0, "{point}");
        all_there_once(&again);
        again.stop();
        // Without kvfs it's the same.
        for n in 0..FILES {
            let there: Vec<_> = b.iter().filter(|b| b.join(name(n)).exists()).collect();
            assert_eq!(there.len(), 1, "{point}: {}", name(n));
            assert!(std::fs::read(there[0].join(name(n))).unwrap() == pattern(n as u64, size(n)));
        }
    }
}

#[test]
fn in_the_midst_of_a_rebalance() {
    for point in POINTS {
        let lab = Lab::new();
        let volumes = [lab.volume(FsKind::Ext4, 64), lab.volume(FsKind::Ext4, 64)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = dying(lab.mount(&b).arg("--min-free").arg("1M"), point);
        fill(&mount);
        let all = files(&b[0]);
        assert_eq!(all.len(), FILES, "{all:?}");
        kvfs(["rebalance", text(mount.point()), "--tolerance", "1%", "--detach"]).code(0);
        has_died(mount);
        let again = lab.mount(&b).start();
        ended(&again, "done");
        assert!(again.story().contains("going on with the rebalance"), "{point}: {}", again.story());
        all_there_once(&again);
        assert!(b.iter().all(|b| !b.join(".kvfs-job").exists()), "it has ended");
    }
}

#[test]
fn what_a_client_wrote_after_the_move_is_kept() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    // The second file's old copy is still there when the daemon dies; the first file has been moved and rewritten.
    let mount = lab.mount(&b).env("KVFS_FAULT_ABORT_AT", "before-unlink:2").start();
    put(&mount.path(ranked(0, 1)), 1, 4000);
    backing(&mount, "drain", &[text(&b[0])]).code(0);
    assert_eq!(mount.holder(ranked(0, 1)), 1);
    std::fs::write(mount.path(ranked(0, 1)), pattern(9, 6000)).unwrap();
    backing(&mount, "set", &[text(&b[0]), "rw"]).code(0);
    put(&mount.path(ranked(0, 2)), 2, 4000);
    backing(&mount, "drain", &[text(&b[0]), "--detach"]).code(0);
    has_died(mount);
    assert!(b.iter().all(|b| b.join(ranked(0, 2)).exists()), "both copies are there");
    let again = lab.mount(&b).start();
    ended(&again, "done");
    check(&again.path(ranked(0, 1)), 9, 6000);
    check(&again.path(ranked(0, 2)), 2, 4000);
    assert_eq!(again.holder(ranked(0, 2)), 1);
    sys::unlink(again.path(ranked(0, 2))).unwrap();
    assert!(b.iter().all(|b| !b.join(ranked(0, 2)).exists()));
}
