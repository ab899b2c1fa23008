//! Rebalancing: files move from full backings to empty ones, and only then.

use super::{backing, check, ended, files, put, state, text};
use crate::common::{FsKind, Lab, kvfs, ranked, sys};

#[test]
fn shares_become_equal_within_the_tolerance() {
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        let lab = Lab::new();
        let mib = if kind == FsKind::Xfs { 320 } else { 96 };
        let volumes = [lab.volume(kind, mib), lab.volume(kind, mib), lab.volume(kind, 2 * mib)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = lab.mount(&b[..2]).arg("--min-free").arg("1M").start();
        let count = mib as usize * 6 / 10;
        for n in 0..count {
            put(&mount.path(format!("d{}/{}", n % 5, ranked(0, n))), n as u64, 1 << 20);
        }
        backing(&mount, "add", &[text(&b[2])]).code(0);
        // Adding moves nothing.
        assert_eq!(files(&b[0]).len(), count);
        let said = kvfs(["rebalance", text(mount.point()), "--tolerance", "3"]).code(0).stdout;
        assert!(said.contains("within"), "{kind:?}: {said}");
        let share = |n: usize| {
            let now = state(&mount, &b[n]);
            100.0 * now["bytes_used"].as_f64().unwrap() / now["bytes_total"].as_f64().unwrap()
        };
        let shares = [share(0), share(1), share(2)];
        let (most, least) = (
            shares.iter().fold(0.0, |a: f64, b| a.max(*b)),
            shares.iter().fold(100.0, |a: f64, b| a.min(*b)),
        );
        assert!(most - least <= 3.5, "{kind:?}: {shares:?}");
        for n in 0..count {
            check(&mount.path(format!("d{}/{}", n % 5, ranked(0, n))), n as u64, 1 << 20);
        }
        let on: Vec<usize> = b.iter().map(|b| files(b).len()).collect();
        assert_eq!(on.iter().sum::<usize>(), count, "{kind:?}: {on:?}");
        assert!(b.iter().all(|b| !b.join(".kvfs-job").exists()));
        // There's nothing more to do.
        kvfs(["rebalance", text(mount.point()), "--tolerance", "4%"]).code(0);
        assert_eq!(mount.status()["job"]["moved"], 0);
    }
}

#[test]
fn open_files_and_backings_that_take_none_are_left_alone() {
    let lab = Lab::new();
    let volumes = [FsKind::Ext4; 3].map(|kind| lab.volume(kind, 64));
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b).arg("--min-free").arg("1M").start();
    for n in 0..30 {
        put(&mount.path(ranked(0, n)), n as u64, 1 << 20);
    }
    backing(&mount, "set", &[text(&b[2]), "ro"]).code(0);
    let open: Vec<_> =
        (0..25).map(|n| sys::open(mount.path(ranked(0, n)), libc::O_RDONLY, 0).unwrap()).collect();
    let said = kvfs(["rebalance", text(mount.point())]).code(0).stdout;
    assert!(said.contains("files are open"), "{said}");
    assert_eq!(files(&b[1]).len(), 5);
    assert_eq!(files(&b[2]).len(), 0);
    drop(open);
    kvfs(["rebalance", text(mount.point()), "--bandwidth", "1M", "--detach"]).code(0);
    kvfs(["rebalance", text(mount.point()), "--cancel"]).code(0);
    ended(&mount, "cancelled");
    kvfs(["rebalance", text(mount.point()), "--cancel"]).fault(52, &["no rebalance"]);
    kvfs(["rebalance", text(mount.point()), "--tolerance", "150"]).fault(41, &["150"]);
    kvfs(["rebalance", text(mount.point())]).code(0);
    assert!(files(&b[1]).len() >= 13, "{}", files(&b[1]).len());
    for n in 0..30 {
        check(&mount.path(ranked(0, n)), n as u64, 1 << 20);
    }
}
