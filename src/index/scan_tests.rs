//! The scan, on real directories.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use super::*;

fn reserved(name: &[u8]) -> bool {
    name.starts_with(b".kvfs-")
}

fn scan_dirs(dirs: &[&Path]) -> (Index, Report) {
    let open: Vec<fs::File> = dirs.iter().map(|d| fs::File::open(d).unwrap()).collect();
    let source = |(n, f): (usize, &'static fs::File)| Source {
        slot: Slot(n as u8),
        root: f.as_fd(),
        is_reserved: reserved,
        is_leftover: |name| name == b".kvfs-left",
        reason: 0,
        sieve: None,
    };
    let open: &'static [fs::File] = open.leak();
    let sources: Vec<Source<'static>> = open.iter().enumerate().map(source).collect();
    scan(&sources, None, |_| {}).unwrap()
}

fn slot_of(index: &Index, dir: DirId, name: &str) -> Option<Slot> {
    match index.find(dir, name.as_bytes())?.1 {
        What::File(file) => Some(file.slot),
        What::Dir(_) => None,
    }
}

#[test]
fn merges_trees_and_lets_the_newest_copy_be_the_file() {
    let tmp = tempfile::tempdir().unwrap();
    let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
    fs::create_dir_all(a.join("d/e")).unwrap();
    fs::create_dir_all(b.join("d/f")).unwrap();
    for i in 0..5000 {
        fs::write(if i % 2 == 0 { &a } else { &b }.join(format!("d/{i}")), "").unwrap();
    }
    fs::write(a.join("d/e/deep"), "").unwrap();
    fs::write(a.join(".kvfs-backing"), "").unwrap();
    fs::write(b.join("older"), "").unwrap();
    fs::write(a.join("newer"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", a.join("link")).unwrap();
    // Coarse clocks tick every few milliseconds; wait for the next tick, however long it takes.
    let ctime = |p: &Path| {
        use std::os::unix::fs::MetadataExt;
        let m = fs::symlink_metadata(p).unwrap();
        (m.ctime(), m.ctime_nsec())
    };
    let probe = tmp.path().join("probe");
    let past = |p: &Path| {
        fs::write(&probe, "").unwrap();
        ctime(&probe) > ctime(p)
    };
    while !past(&b.join("older")) || !past(&a.join("newer")) {}
    fs::write(a.join("older"), "").unwrap();
    fs::write(b.join("newer"), "").unwrap();
    // A name that is a file here and a directory there: the directory keeps its files visible.
    fs::write(a.join("clash"), "").unwrap();
    fs::create_dir(b.join("clash")).unwrap();
    fs::write(b.join("clash/inner"), "").unwrap();

    let (index, report) = scan_dirs(&[&a, &b]);
    let (_, What::Dir(d)) = index.find(DirId::ROOT, b"d").unwrap() else { panic!() };
    assert_eq!(index.slots(d), Some(SlotSet::first(2)));
    assert_eq!(index.children(d, 0).count(), 5002);
    assert_eq!((index.files_on(Slot(0)), index.files_on(Slot(1))), (2500 + 3, 2500 + 2));
    assert!((0..5000).all(|i| slot_of(&index, d, &i.to_string()) == Some(Slot((i % 2) as u8))));
    let (older, _) = index.find(DirId::ROOT, b"older").unwrap();
    assert_eq!(slot_of(&index, DirId::ROOT, "older"), Some(Slot(0)));
    assert_eq!(index.shadows(older), SlotSet::one(Slot(1)));
    assert_eq!(slot_of(&index, DirId::ROOT, "newer"), Some(Slot(1)));
    assert_eq!(index.shadow_count(), 2);
    assert_eq!(index.find(DirId::ROOT, b".kvfs-backing"), None);
    assert_eq!(index.find(DirId::ROOT, b"link").unwrap().1.kind(), Kind::Symlink);
    let (_, What::Dir(clash)) = index.find(DirId::ROOT, b"clash").unwrap() else { panic!() };
    assert_eq!(slot_of(&index, clash, "inner"), Some(Slot(1)));
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert_eq!((report.problems[0].slot, &report.problems[0].path[..]), (Slot(0), &b"clash"[..]));
}

#[test]
fn a_subtree_that_appears_later_joins_what_is_known() {
    let tmp = tempfile::tempdir().unwrap();
    let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
    fs::create_dir_all(a.join("d")).unwrap();
    fs::create_dir(&b).unwrap();
    fs::write(a.join("d/both"), "").unwrap();
    let (mut index, _) = scan_dirs(&[&a, &b]);
    fs::create_dir_all(b.join("d/sub")).unwrap();
    fs::write(b.join("d/both"), "").unwrap();
    fs::write(b.join("d/sub/new"), "").unwrap();

    let root = fs::File::open(b.join("d")).unwrap();
    let source = Source {
        slot: Slot(1),
        root: root.as_fd(),
        is_reserved: reserved,
        is_leftover: reserved,
        reason: 5,
        sieve: None,
    };
    let (_, What::Dir(d)) = index.find(DirId::ROOT, b"d").unwrap() else { panic!() };
    let taken = merge_subtree(&mut index, d, &source, read_subtree(&source)).unwrap().taken;
    assert_eq!(taken.len(), 1);
    let (both, _) = index.find(d, b"both").unwrap();
    assert_eq!((slot_of(&index, d, "both"), index.shadows(both)), (Some(Slot(0)), SlotSet::one(Slot(1))));
    let (_, What::Dir(sub)) = index.find(d, b"sub").unwrap() else { panic!() };
    assert_eq!((slot_of(&index, sub, "new"), index.slots(sub)), (Some(Slot(1)), Some(SlotSet::one(Slot(1)))));
}
