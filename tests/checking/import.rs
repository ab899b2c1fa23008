//! `kvfs import`: what is there is recognised, and left as it is.

use std::fs;

use serde_json::Value;

use crate::common::lab::{everything, list};
use crate::common::{Lab, kvfs, ranked};

#[test]
fn each_grammar_is_found_and_nothing_is_changed() {
    let lab = Lab::new();
    let dirs = lab.dirs(2);
    // LMCache's multi-path directories: rank n on path n, and one that is elsewhere.
    for (rank, dir) in [(0, 0), (1, 1), (1, 1), (0, 1)] {
        let n = everything(&lab.root()).len();
        fs::write(dirs[dir].join(ranked(rank, n)), vec![0; 1000]).unwrap();
    }
    // A pair of gds_path, one without its metadata, metadata alone, and a pair in two directories.
    let gds = |n: usize| format!("m%408%401%40{n:016x}%40bfloat16.kvcache.safetensors");
    for (dir, name) in [
        (0, gds(1)),
        (0, gds(1) + ".metadata"),
        (0, gds(2)),
        (1, gds(3) + ".metadata"),
        (0, gds(4)),
        (1, gds(4) + ".metadata"),
    ] {
        fs::create_dir_all(dirs[dir].join("gds")).unwrap();
        fs::write(dirs[dir].join("gds").join(name), b"").unwrap();
    }
    let page = format!("{}_Qwen-Qwen3_3_8.bin", "a".repeat(64));
    fs::write(dirs[0].join(&page), b"sglang").unwrap();
    let block = format!("model_{}_r0/abc/de_g0", "0".repeat(12));
    fs::create_dir_all(dirs[1].join(&block)).unwrap();
    fs::write(dirs[1].join(&block).join("0123abcd.bin"), b"vllm").unwrap();
    for dir in &dirs {
        fs::write(dir.join("notes.txt"), b"twice").unwrap();
    }
    let before = everything(&lab.root());
    let words = list(&dirs);
    let out = kvfs(["import", &words, "--json", "--sizes"]).code(0);
    let report: Value = serde_json::from_str(&out.stdout).unwrap();
    let group = |name: &str| &report["groups"][name];
    let local = group("LMCache local_disk");
    assert_eq!((local["files"].as_u64(), local["bytes"].as_u64()), (Some(4), Some(4000)));
    assert_eq!(local["per_directory"], serde_json::json!({"0": 1, "1": 3}));
    assert_eq!(local["ranks"], serde_json::json!({"0": {"0": 1, "1": 1}, "1": {"1": 2}}));
    assert_eq!((local["in_place"].as_u64(), local["elsewhere"].as_u64()), (Some(3), Some(1)));
    assert_eq!(group("LMCache gds_path")["files"], 6);
    assert_eq!(
        (group("SGLang file")["files"].as_u64(), group("vLLM fs")["files"].as_u64()),
        (Some(1), Some(1))
    );
    assert_eq!(group("unknown")["examples"], serde_json::json!(["notes.txt"]));
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(["duplicates", "without_metadata", "without_data", "apart"].map(count), [1, 1, 1, 1]);
    assert_eq!(report["files"], 13);

    let text =
        kvfs([std::ffi::OsStr::new("import"), dirs[0].as_os_str(), dirs[1].as_os_str()]).code(0).stdout;
    assert!(text.contains(&format!("kvfs mount MOUNTPOINT --backing {words}")), "{text}");
    assert!(text.contains("no file is changed") && text.contains("rank 0"), "{text}");
    assert_eq!(everything(&lab.root()), before, "nothing was made, not even a marker");

    // And so it is: the mount serves as many.
    let mount = lab.mount(&dirs).start();
    assert_eq!(mount.status()["index"]["files"], 13);
}

#[test]
fn directories_that_cannot_be_imported_are_refused() {
    let lab = Lab::new();
    let dir = lab.dir("a/b");
    let (outer, inner) = (lab.path("a"), dir.to_str().unwrap().to_owned());
    kvfs(["import", &inner, &inner]).fault(11, &[&inner]);
    kvfs(["import", outer.to_str().unwrap(), &inner]).fault(12, &[&inner]);
    kvfs(["import", lab.path("none").to_str().unwrap()]).fault(1, &["none"]);
    kvfs(["import"]).code(2);
}
