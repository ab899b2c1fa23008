//! docs/METRICS.md has every metric, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Stats;
use crate::common::{Lab, ranked};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");

/// Name to type and labels, of the rows `| `name` | type | `label`, `label` | meaning |`.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = std::fs::read_to_string(PAGE).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `kvfs_")?.split('|').map(str::trim);
        let name = format!("kvfs_{}", cells.next()?.trim_end_matches('`'));
        let kind = cells.next()?.to_owned();
        let labels = cells.next()?.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        assert!(!cells.next()?.is_empty(), "{name} has no meaning");
        Some((name, (kind, labels)))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn every_metric_is_documented_and_there() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    std::fs::write(mount.path(ranked(1, 1)), "x").unwrap();
    let dir = mount.path("dir");
    std::fs::create_dir(&dir).unwrap();
    let quota =
        std::process::Command::new("setfattr").args(["-n", "user.kvfs.quota", "-v", "1G"]).arg(&dir).status();
    assert!(quota.unwrap().success());
    let stats = Stats::of(&mount);
    let documented = documented();
    let names = |all: &mut dyn Iterator<Item = String>| all.collect::<BTreeSet<_>>();
    let served =
        names(&mut stats.families().iter().map(|family| family["name"].as_str().unwrap().to_owned()));
    assert_eq!(
        served,
        names(&mut documented.keys().cloned()),
        "served, and in {}",
        Path::new(PAGE).display()
    );
    for family in stats.families() {
        let name = family["name"].as_str().unwrap();
        let (kind, labels) = &documented[name];
        assert_eq!(family["type"], **kind, "{name}");
        for sample in family["samples"].as_array().unwrap() {
            let own: BTreeSet<String> = sample["labels"].as_object().unwrap().keys().cloned().collect();
            assert_eq!(own, *labels, "{name}");
        }
        // In the field's conventions.
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert!(family["help"].as_str().unwrap().ends_with('.'), "{name}");
    }
}
