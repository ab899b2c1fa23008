//! `kvfs bench drives`: measures, draws, and leaves nothing.

use std::fs;

use crate::common::lab::everything;
use crate::common::{FsKind, Lab, kvfs};

#[test]
fn a_mount_beside_its_drives_with_a_picture() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Xfs, 400), lab.volume(FsKind::Ext4, 200)];
    let mount = lab.mount(&backings).arg("--min-free").arg("16M").start();
    let before: Vec<_> = backings.iter().map(|backing| everything(backing)).collect();
    let picture = lab.path("drives.svg");
    let words =
        ["--size", "64K,1M", "--file-size", "4M", "--rounds", "3", "--picture", picture.to_str().unwrap()];
    let point = mount.point().to_str().unwrap();
    let out = kvfs(["bench", "drives", point].iter().chain(&words)).code(0).stdout;
    for backing in &backings {
        assert!(out.contains(backing.to_str().unwrap()), "{out}");
    }
    assert_eq!(out.lines().count(), 2 * 2 * 3, "{out}");
    assert!(out.contains("write 64K") && out.contains("read 1M") && out.contains(point), "{out}");
    let drawn = fs::read_to_string(&picture).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.matches("<rect x=").count() == 12, "{drawn}");
    let after: Vec<_> = backings.iter().map(|backing| everything(backing)).collect();
    assert_eq!(after, before, "nothing is left");
    assert_eq!(mount.status()["index"]["files"], 0);

    let json =
        kvfs(["bench", "drives", point, "--json", "--size", "64K", "--file-size", "1M", "--rounds", "1"]);
    for line in json.code(0).stdout.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(row["rate"].as_f64().unwrap() > 0.0, "{row}");
    }
    // The smaller drive hasn't room for so much above its reserve.
    kvfs(["bench", "drives", point, "--file-size", "120M"]).fault(1, &["must stay free", "--file-size"]);
    kvfs(["bench", "drives", point, "--size", "5000"]).fault(41, &["multiple of 4K"]);
}
