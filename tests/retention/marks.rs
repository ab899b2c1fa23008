//! When eviction begins and ends, and `kvfs evict`.

use std::path::PathBuf;

use serde_json::Value;

use super::run::{MIB, evict, evict_bytes, free, mount, names, number, old, put, until};
use crate::common::{FsKind, Lab, Mount, kvfs, lab, ranked};

/// Some files that take about so much of a volume's room, used one after the other.
fn filled(lab: &Lab, share: f64, args: &[&str]) -> (Mount, PathBuf, u64) {
    let volume = lab.volume(FsKind::Ext4, 128);
    let backing = volume.join("kv");
    std::fs::create_dir(&backing).unwrap();
    let room = free(&volume) - (16 << 20);
    let files = (room as f64 * share) as u64 / MIB;
    for i in 0..files {
        old(&backing, &format!("f{i:03}"), MIB, 90_000 - 100 * i as i64);
    }
    let mount = mount(lab, &[backing], "lru", &[&["--min-free", "16M"], args].concat()).start();
    (mount, volume, room)
}

#[test]
fn nothing_goes_below_the_high_mark_and_no_more_than_to_the_low_one() {
    let lab = Lab::new();
    let args = ["--high-water", "80%", "--low-water", "60"];
    let (mount, volume, room) = filled(&lab, 0.75, &args);
    let before = names(mount.point());
    assert_eq!(evict(&mount, &[]).code(0).stdout, "evicted 0 files of 0 B\n");
    assert_eq!(names(mount.point()), before);
    assert!(evict(&mount, &["-n"]).code(0).stdout.contains("nothing would go now"));
    let more = (room / 20 / MIB) as usize + 6;
    for i in 0..more {
        put(&mount.path(format!("g{i}")), 1, MIB);
    }
    evict(&mount, &[]).code(0);
    let spare = free(&volume) - (16 << 20);
    assert!(spare >= room * 39 / 100, "down to the low mark: {spare} of {room} are spare");
    assert!(spare <= room * 45 / 100 + MIB, "and no further: {spare} of {room} are spare");
    assert!((0..more).all(|i| mount.path(format!("g{i}")).exists()), "the oldest went");
}

#[test]
fn a_full_backing_is_relieved_without_being_asked() {
    let lab = Lab::new();
    let (mount, ..) = filled(&lab, 0.97, &["--high-water", "90", "--low-water", "80"]);
    until(&mount, "an eviction", |s| s["retention"]["evicted_lru"].as_u64() > Some(0));
}

#[test]
fn marks_that_make_no_sense_are_refused() {
    let lab = Lab::new();
    let (point, backing) = (lab.dir("mnt"), lab.dir("b"));
    let refused = |args: &[&str], naming: &[&str]| {
        let words = ["mount".into(), point.clone(), "--backing".into(), backing.clone()];
        let words = words.into_iter().chain(args.iter().map(PathBuf::from));
        kvfs(words).fault(41, naming);
    };
    refused(&["--high-water", "90", "--low-water", "90%"], &["--low-water 90%", "--high-water 90%"]);
    refused(&["--low-water", "96"], &["--low-water 96%", "--high-water 95%"]);
    for bad in [&["--high-water", "0"][..], &["--low-water", "101%"], &["--high-water", "much"]] {
        let words = ["mount".into(), point.clone(), "--backing".into(), backing.clone()];
        let out = kvfs(words.into_iter().chain(bad.iter().map(PathBuf::from))).fault(41, &[]);
        assert!(out.stderr.contains("a share from 1% to 100%"), "{}", out.stderr);
    }
    kvfs(["mount".as_ref(), point.as_os_str(), "--evict".as_ref(), "some".as_ref()]).fault(41, &["--evict"]);
    assert_eq!(lab::everything(&backing), Vec::<PathBuf>::new());
}

fn planned(mount: &Mount, args: &[&str]) -> Vec<String> {
    let out = evict(mount, &[&["--dry-run", "--json"], args].concat()).code(0);
    let plan: Value = serde_json::from_str(&out.stdout).unwrap();
    let backings = plan["backings"].as_array().unwrap();
    let victims = backings.iter().flat_map(|b| b["victims"].as_array().unwrap());
    victims.map(|v| v["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_dry_run_names_what_goes_next_and_removes_nothing() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Ext4, 64).join("kv"), lab.volume(FsKind::Ext4, 64).join("kv")];
    for (b, backing) in backings.iter().enumerate() {
        (0..6).for_each(|i| old(backing, &format!("d/b{b}-{i}"), MIB, 90_000 - 1000 * i));
        let pair = format!("d/{b}.kvcache.safetensors");
        old(backing, &pair, MIB, 95_000);
        old(backing, &format!("{pair}.metadata"), 4096, 80_000);
    }
    let mount = mount(&lab, &backings, "lru", &[]).start();
    let everything = || backings.iter().flat_map(|b| names(&b.join("d"))).collect::<Vec<_>>();
    let before = everything();
    let all = planned(&mount, &["--bytes", "3M"]);
    let metadata = "d/0.kvcache.safetensors.metadata";
    assert_eq!(all[..4], [metadata, "d/0.kvcache.safetensors", "d/b0-0", "d/b0-1"]);
    let one = planned(&mount, &["--bytes", "2M", "--backing", "1"]);
    assert_eq!(one, ["d/1.kvcache.safetensors.metadata", "d/1.kvcache.safetensors", "d/b1-0"]);
    let path = backings[1].to_str().unwrap();
    assert_eq!(planned(&mount, &["--bytes", "2M", "--backing", path]), one, "by its path");
    let text = evict(&mount, &["--dry-run", "--bytes", "2M"]).code(0).stdout;
    for part in ["backing 0", "backing 1", "d/b0-0", "least recently used", "2.0 MiB wanted", "s ago"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(everything(), before, "nothing was removed");
    evict(&mount, &["--bytes", "2M", "--backing", "1"]).code(0);
    let after = everything();
    let gone: Vec<_> =
        before.iter().filter(|name| !after.contains(name)).map(|name| format!("d/{name}")).collect();
    let mut one = one;
    one.sort();
    assert_eq!(gone, one, "what was planned, and nothing else");
}

#[test]
fn wrong_values_are_refused() {
    let lab = Lab::new();
    let (mount, ..) = filled(&lab, 0.1, &[]);
    evict(&mount, &["--bytes", "much"]).fault(41, &["--bytes", "much"]);
    evict(&mount, &["--backing", "9", "-n"]).fault(41, &["\"9\"", "0 ("]);
    evict(&mount, &["--backing", "/nowhere"]).fault(41, &["/nowhere"]);
    evict(&mount, &["--json"]).code(2);
    kvfs(["evict".as_ref(), lab.dir("no mount").as_os_str()]).fault(50, &["no kvfs is mounted"]);
    assert_eq!(number(&mount, "evicted_lru"), 0);
}

#[test]
fn nothing_may_go_with_evict_never() {
    let lab = Lab::new();
    let backing = lab.volume(FsKind::Ext4, 64).join("kv");
    old(&backing, &ranked(0, 0), MIB, 1_000_000);
    let mount = mount(&lab, &[backing], "never", &[]).start();
    evict(&mount, &["--bytes", "1M"]).fault(41, &["--evict never"]);
    assert_eq!(names(mount.point()).len(), 1);
}

#[test]
fn one_backing_is_evicted_from_and_the_other_is_not() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Ext4, 64).join("kv"), lab.volume(FsKind::Ext4, 64).join("kv")];
    (0..2).for_each(|b: usize| (0..3).for_each(|i| old(&backings[b], &format!("b{b}-{i}"), MIB, 5000)));
    let mount = mount(&lab, &backings, "lru", &[]).start();
    evict(&mount, &["--backing", "1", "--bytes", "1G"]).code(0);
    assert_eq!((names(&backings[0]).len(), names(&backings[1]).len()), (3, 0));
    evict_bytes(&mount, 1 << 30);
    assert_eq!(names(mount.point()).len(), 0);
}
