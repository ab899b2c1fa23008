//! `kvfs fsck`: each thing that can be wrong is found, and repaired only when somebody says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::lab::list;
use crate::common::{Lab, Outcome, kvfs, pattern, sys};

/// Two backings that a mount has used, and that nobody uses now.
fn used(lab: &Lab) -> Vec<PathBuf> {
    let backings = lab.dirs(2);
    lab.mount(&backings).start().stop();
    backings
}

#[track_caller]
fn fsck(backings: &[PathBuf], words: &[&str]) -> Outcome {
    let list = list(backings);
    let mut all = vec!["fsck", "--backing", &list];
    all.extend(words);
    kvfs(all)
}

/// The findings, as `kind path` and on which backing.
#[track_caller]
fn found(outcome: &Outcome) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    findings.map(|finding| (text(&finding["kind"]), text(&finding["path"]))).collect()
}

fn of(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(kind, path)| ((*kind).to_owned(), (*path).to_owned())).collect()
}

fn write(path: PathBuf, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn nothing_is_wrong() {
    let lab = Lab::new();
    let backings = used(&lab);
    write(backings[0].join("a/one"), b"1");
    write(backings[1].join("a/two"), b"2");
    let before = crate::common::lab::everything(&lab.root());
    let clean = fsck(&backings, &["--json", "--deep"]).code(0);
    assert_eq!(found(&clean), []);
    let report: Value = serde_json::from_str(&clean.stdout).unwrap();
    assert_eq!((report["files"].as_u64(), report["bytes_read"].as_u64()), (Some(2), Some(2)));
    assert!(fsck(&backings, &[]).code(0).stdout.contains("nothing is wrong"));
    assert_eq!(crate::common::lab::everything(&lab.root()), before, "nothing was made");
}

#[test]
fn a_directory_that_no_mount_has_used_is_looked_at_and_left_alone() {
    let lab = Lab::new();
    let fresh = lab.dirs(1);
    write(fresh[0].join(".kvfs-move-1"), b"");
    let outcome = fsck(&fresh, &["--repair", "--yes"]).code(4);
    assert!(
        outcome.stdout.contains("no marker") && outcome.stdout.contains("no good marker"),
        "{}",
        outcome.stdout
    );
    fs::remove_file(fresh[0].join(".kvfs-move-1")).unwrap();
    fsck(&fresh, &[]).code(0);
    assert!(!fresh[0].join(".kvfs-backing").exists());
}

#[test]
fn older_copies_are_found_and_only_the_same_ones_go_unasked() {
    let lab = Lab::new();
    let backings = used(&lab);
    for (name, old, new) in [("same", 1, 1), ("other", 2, 3)] {
        write(backings[0].join(name), &pattern(old, 5000));
        // The newest ctime decides, so this one is the file.
        sys::tick();
        write(backings[1].join(name), &pattern(new, 5000));
    }
    // Without a comparison both might be the same.
    let shallow = fsck(&backings, &["--json"]).code(4);
    assert_eq!(found(&shallow), of(&[("shadow", "other"), ("shadow", "same")]));
    let deep = fsck(&backings, &["--json", "--deep"]).code(4);
    assert_eq!(found(&deep), of(&[("shadow", "same"), ("differs", "other")]));

    fsck(&backings, &["--repair"]).fault(16, &["no terminal", "--yes"]);
    let repaired = fsck(&backings, &["--repair", "--yes"]).code(4 + 1);
    assert!(repaired.stdout.contains("repaired: 1 shadow"), "{}", repaired.stdout);
    assert!(repaired.stdout.contains("--discard"), "{}", repaired.stdout);
    assert!(!backings[0].join("same").exists() && backings[0].join("other").exists());
    assert_eq!(fs::read(backings[1].join("same")).unwrap(), pattern(1, 5000), "the newest copy stays");

    fsck(&backings, &["--repair", "--yes", "--discard"]).code(1);
    assert!(!backings[0].join("other").exists());
    assert_eq!(fs::read(backings[1].join("other")).unwrap(), pattern(3, 5000));
    fsck(&backings, &[]).code(0);
}

#[test]
fn leftovers_go_and_other_reserved_names_stay() {
    let lab = Lab::new();
    let backings = used(&lab);
    write(backings[0].join("dir/.kvfs-move-0123"), b"half a copy");
    write(backings[1].join(".kvfs-recency.new"), b"");
    write(backings[1].join(".kvfs-mine"), b"somebody's");
    let outcome = fsck(&backings, &["--json"]).code(4);
    let expected =
        [("leftover", ".kvfs-recency.new"), ("leftover", "dir/.kvfs-move-0123"), ("reserved", ".kvfs-mine")];
    assert_eq!(found(&outcome), of(&expected));
    fsck(&backings, &["--repair", "--yes"]).code(5);
    assert!(
        !backings[0].join("dir/.kvfs-move-0123").exists() && !backings[1].join(".kvfs-recency.new").exists()
    );
    assert!(backings[1].join(".kvfs-mine").exists() && backings[1].join(".kvfs-backing").exists());
}

#[test]
fn directories_get_one_mode() {
    let lab = Lab::new();
    let backings = used(&lab);
    for (backing, mode) in backings.iter().zip([0o750, 0o777]) {
        fs::create_dir(backing.join("d")).unwrap();
        fs::set_permissions(backing.join("d"), fs::Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(found(&fsck(&backings, &["--json"]).code(4)), of(&[("permissions", "d")]));
    fsck(&backings, &["--repair", "--yes"]).code(1);
    let mode = |n: usize| fs::metadata(backings[n].join("d")).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(0), mode(1)), (0o750, 0o750));
    fsck(&backings, &[]).code(0);
}

#[test]
fn hidden_files_and_bad_markers_are_told_and_keep_repairs_away() {
    let lab = Lab::new();
    let backings = used(&lab);
    write(backings[0].join("name"), b"a file");
    fs::create_dir(backings[1].join("name")).unwrap();
    write(backings[1].join(".kvfs-move-9"), b"");
    assert_eq!(
        found(&fsck(&backings, &["--json"]).code(4)),
        of(&[("hidden", "name"), ("leftover", ".kvfs-move-9")])
    );
    fs::write(backings[1].join(".kvfs-backing"), "rubbish").unwrap();
    let outcome = fsck(&backings, &["--json", "--repair", "--yes"]).code(4);
    assert_eq!(found(&outcome)[0], ("marker".to_owned(), ".kvfs-backing".to_owned()));
    assert!(outcome.stdout.contains("no good marker"), "{}", outcome.stdout);
    assert!(backings[1].join(".kvfs-move-9").exists(), "what isn't claimed isn't changed");
    fs::copy(backings[0].join(".kvfs-backing"), backings[1].join(".kvfs-backing")).unwrap();
    let twin = fsck(&backings, &["--json"]).code(4);
    assert!(twin.stdout.contains("same identity"), "{}", twin.stdout);
}

#[test]
fn a_file_whose_creator_is_gone_is_told_as_an_orphan() {
    let lab = Lab::new();
    let backings = used(&lab);
    let name = crate::common::ranked(0, 1);
    let path = backings[0].join(&name);
    write(path.clone(), b"cache");
    assert_eq!(found(&fsck(&backings, &["--json"]).code(0)), [], "nobody knows who made it");
    // Of another boot, so its process has ended for certain.
    let record = b"1 00000000-0000-0000-0000-000000000000 4026531836 17 4711";
    rustix::fs::setxattr(&path, "user.kvfs.creator", record, rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(found(&fsck(&backings, &["--json"]).code(0)), of(&[("orphan", &name)]));
    fsck(&backings, &["--repair", "--yes"]).code(0);
    assert!(path.exists(), "its bytes are nowhere else");
    fsck(&backings, &["--repair", "--yes", "--discard"]).code(1);
    assert!(!path.exists());
}

#[test]
fn a_mounted_backing_is_checked_by_its_mount_alone() {
    let lab = Lab::new();
    let backings = used(&lab);
    write(backings[0].join("f"), b"same");
    write(backings[1].join("f"), b"same");
    for backing in &backings {
        fs::create_dir(backing.join("d")).unwrap();
    }
    let mount = lab.mount(&backings).start();
    fs::set_permissions(backings[1].join("d"), fs::Permissions::from_mode(0o700)).unwrap();
    let point = mount.point().to_str().unwrap();
    fsck(&backings, &[]).fault(8, &["another kvfs mount is using it", "kvfs fsck MOUNT"]);
    let outcome = kvfs(["fsck", point, "--json"]).code(4);
    assert_eq!(found(&outcome), of(&[("shadow", "f"), ("permissions", "d")]));
    kvfs(["fsck", point, "--repair", "--yes"]).code(1);
    assert_eq!(mount.holders("f").len(), 1, "one copy is left");
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"same");
    assert_eq!(mount.status()["index"]["shadows"], 0);
    kvfs(["fsck", point, "--deep"]).code(0);
    mount.stop();
    fsck(&backings, &[]).code(0);
}

#[test]
fn the_file_of_a_mount_says_its_backings() {
    let lab = Lab::new();
    let backings = used(&lab);
    write(backings[1].join("d/f"), b"older");
    write(backings[0].join("d/f"), b"newer");
    let file = lab.path("kv.toml");
    let list = backings.iter().map(|path| format!("{:?}", path.to_str().unwrap()));
    let list = list.collect::<Vec<_>>().join(", ");
    fs::write(&file, format!("mount-point = {:?}\nbacking = [{list}]\n", lab.path("mnt"))).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        found(&kvfs(["fsck", "--config", file, "--deep", "--json"]).code(4)),
        of(&[("differs", "d/f")])
    );
    kvfs(["fsck", "--config", file, "--backing", "/a"]).code(16);
    fs::write(file, "backnig = []").unwrap();
    kvfs(["fsck", "--config", file]).fault(16, &["backnig", "backing"]);
}

#[test]
fn wrong_words_have_the_status_of_fsck() {
    let lab = Lab::new();
    kvfs(["fsck"]).code(16);
    kvfs(["fsck", "--backing", "/a:nonsense"]).fault(16, &["nonsense"]);
    let missing = lab.path("missing");
    fsck(&[missing], &[]).fault(8, &["missing"]);
    kvfs(["fsck", lab.root().to_str().unwrap()]).fault(8, &["no kvfs is mounted"]);
    let help = kvfs(["fsck", "--help"]).code(0).stdout;
    assert!(help.contains("4 something wrong is left") && help.contains("16 wrong usage"), "{help}");
}
