//! A mount's file, and `kvfs config check`.

use std::path::{Path, PathBuf};

use super::system::{Daemon, text};
use crate::common::killer::kill;
use crate::common::lab::everything;
use crate::common::mount::status_of;
use crate::common::{Lab, kvfs, ns, sys};

/// A file that has this mount, and these lines.
fn file(lab: &Lab, point: &Path, backings: &[PathBuf], lines: &str) -> PathBuf {
    let path = lab.path("kv.toml");
    let log = lab.path("log");
    let all = format!("mount-point = {point:?}\nbacking = {backings:?}\nlog = {log:?}\n{lines}\n");
    std::fs::write(&path, all).unwrap();
    path
}

#[test]
fn a_file_is_all_it_takes() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(2));
    let path = file(&lab, &point, &backings, "placement = 'hash'\nexclusive = true\noptions = ['noexec']");
    kvfs(["mount", "--config", text(&path), "--placement=most-free"]).code(0);
    let daemon = Daemon::of(&point);
    let status = status_of(&point);
    assert_eq!((&status["placement"], &status["exclusive"]), (&"most-free".into(), &true.into()));
    assert!(ns::mounts_at(&point)[0].options.contains("noexec"));
    // The mount itself is no fault.
    kvfs(["config", "check", text(&path)]).code(0);
    kvfs(["umount", "--config", text(&path)]).code(0);
    assert_eq!(ns::mounts_at(&point).len(), 0);
    daemon.ended();
    kvfs(["umount", "--config", text(&path)]).fault(50, &[text(&point)]);
    kvfs(["umount"]).code(2);
}

#[test]
fn a_check_says_what_a_mount_would_and_touches_nothing() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(2));
    let no_dir = lab.path("not-made");
    let check = |lines: &str, backings: &[PathBuf], point: &Path| {
        let path = file(&lab, point, backings, lines);
        let before = everything(&lab.root());
        let outcome = kvfs(["config", "check", text(&path)]);
        assert_eq!(everything(&lab.root()), before, "{lines}");
        outcome
    };
    let new = [no_dir.clone()];
    let good = check("threads = 3\nmin_free = '1%'", &new, &point).code(0).stdout;
    let at = text(&lab.path("kv.toml")).to_owned();
    for line in [
        format!("mount-point = {point:?}  # {at}, line 1"),
        format!("backing = [{no_dir:?}]  # {at}, line 2"),
        format!("threads = 3  # {at}, line 4"),
        format!("min-free = \"1%\"  # {at}, line 5"),
        "placement = \"by_gpu\"  # default".into(),
        "exclusive = false  # default".into(),
    ] {
        assert!(good.lines().any(|there| there == line), "{line} in\n{good}");
    }
    // It's such a file itself.
    let again = lab.path("again.toml");
    std::fs::write(&again, &good).unwrap();
    let plain =
        |text: &str| text.lines().map(|l| l.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(plain(&kvfs(["config", "check", text(&again)]).code(0).stdout), plain(&good));
    std::fs::remove_file(&again).unwrap();

    let twice = [backings[0].clone(), backings[0].clone()];
    let nested = [backings[0].clone(), backings[0].join("inner")];
    let plain_file = lab.path("plain");
    std::fs::write(&plain_file, "").unwrap();
    check("", &[], &point).fault(10, &["backing"]);
    check("", &twice, &point).fault(11, &[text(&backings[0])]);
    check("", &nested, &point).fault(12, &[text(&backings[0])]);
    check("", std::slice::from_ref(&plain_file), &point).fault(13, &[text(&plain_file)]);
    check("", &[point.join("in")], &point).fault(16, &[text(&point)]);
    check("", &backings, &lab.path("nowhere")).fault(20, &["line 1", text(&lab.path("nowhere"))]);
    check("", &backings, &plain_file).fault(23, &["line 1", text(&plain_file)]);
    check("placement = 'hsh'", &backings, &point).fault(40, &["line 4", "hsh"]);
    check("evict = 'all'", &backings, &point).fault(41, &["line 4", "all", "orphans"]);
    check("low-water = 96", &backings, &point).fault(41, &["line 4", "low-water"]);
    check("gpu-map = ['x']", &backings, &point).fault(41, &["line 4"]);
    check("xattr = 'on'", &backings, &point).fault(2, &["line 4", "did you mean \"xattrs\"?"]);
    lab.mount(&backings).start().stop();
    std::fs::rename(&backings[0], lab.path("elsewhere")).unwrap();
    check("", &backings, &point).fault(24, &[text(&backings[0])]);
    check("degraded = true", &backings, &point).code(0);
}

#[test]
fn a_file_that_has_changed_is_for_the_next_mount() {
    let lab = Lab::new();
    let (point, backings) = (lab.dir("mnt"), lab.dirs(2));
    let standin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/standin.py");
    let store = ["python3".into(), "-B".into(), standin.into(), lab.path("standin.log").into()];
    for by_systemd in [false, true] {
        let path = file(&lab, &point, &[], "placement = 'hash'\nexclusive = true");
        let builder = lab.mount(&backings).arg("--config").arg(&path);
        let builder = match by_systemd {
            true => builder.under(store.clone()).env("KVFS_TEST_DIE_WITH_PARENT", "1"),
            false => builder.supervised(),
        };
        let mount = builder.start();
        assert_eq!(mount.status()["placement"], "hash");
        let file_in_it = sys::create(mount.path("f")).unwrap();
        for changed in ["placement = 'most-free'", "placement = \"nonsense", ""] {
            std::fs::write(&path, changed).unwrap();
            kill(&mount);
            let status = mount.status();
            assert_eq!((&status["placement"], &status["exclusive"]), (&"hash".into(), &true.into()));
            assert_eq!(sys::write(&file_in_it, b"goes on"), Ok(7));
        }
    }
}
