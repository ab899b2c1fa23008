//! `kvfs ls`.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;

use serde_json::Value;

use crate::common::{Lab, kvfs, ranked};

fn lines(stdout: &str) -> Vec<Value> {
    let mut all: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    all.sort_by_key(|line| line["path"].to_string());
    all
}

#[test]
fn each_file_with_its_backing() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    for (n, backing) in backings.iter().enumerate() {
        fs::create_dir(backing.join("old")).unwrap();
        fs::write(backing.join("old/twice"), format!("{n}")).unwrap();
    }
    let mount = lab.mount(&backings).start();
    fs::create_dir(mount.path("d")).unwrap();
    let (one, two) = (ranked(0, 1), ranked(1, 2));
    fs::write(mount.path("d").join(&one), vec![0; 5000]).unwrap();
    fs::write(mount.path("d").join(&two), b"x").unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff\n");
    fs::write(mount.path(odd), b"").unwrap();
    let point = mount.point().to_str().unwrap();

    let names = kvfs(["ls", mount.path("d").to_str().unwrap()]).code(0).stdout;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, [&one, &two]);

    let open = File::open(mount.path("d").join(&one)).unwrap();
    let long = kvfs(["ls", "-l", mount.path("d").to_str().unwrap()]).code(0).stdout;
    let line = long.lines().find(|line| line.contains(&one)).unwrap();
    assert!(line.starts_with("-o-- ") && line.contains("4.9 KiB"), "{line}");
    assert!(line.contains(&format!("  0   {one}  (rank 0")), "{line}");
    drop(open);

    let all = lines(&kvfs(["ls", "-R", "-l", "--json", point]).code(0).stdout);
    assert_eq!(all.len(), 6, "{all:?}");
    let at = |path: &str| all.iter().find(|line| line["path"] == path).unwrap();
    assert_eq!(at(&format!("d/{two}"))["slots"], serde_json::json!([1]));
    assert_eq!(at(&format!("d/{two}"))["size"], 1);
    let twice = at("old/twice");
    assert_eq!(twice["shadows"].as_array().unwrap().len(), 1);
    assert_eq!(at("old")["slots"], serde_json::json!([0, 1]));
    assert!(
        all.iter().any(|line| line["path"] == serde_json::json!(odd.as_bytes())),
        "bytes that aren't UTF-8"
    );
    let text = kvfs(["ls", point]).code(0).stdout;
    assert!(text.contains("odd\u{fffd}\\u{a}"), "{text}");

    kvfs(["ls", mount.path("none").to_str().unwrap()]).fault(1, &["none"]);
    kvfs(["ls", lab.root().to_str().unwrap()]).fault(50, &["not in a kvfs mount"]);
}

#[test]
fn a_large_directory_is_told_entry_by_entry() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    for n in 0..3000 {
        fs::write(backings[n % 2].join(format!("f{n}")), b"").unwrap();
    }
    let mount = lab.mount(&backings).start();
    let shown = kvfs(["ls", mount.point().to_str().unwrap()]).code(0).stdout;
    let names: std::collections::BTreeSet<&str> = shown.lines().collect();
    assert_eq!((shown.lines().count(), names.len()), (3000, 3000));
}
