//! Clients whose names never repeat are warned of.

use std::path::Path;
use std::process::Command;

use super::{Stats, counts, until};
use crate::common::{Lab, Mount, kvfs};

/// Names that only Python's own hash makes, and others.
const NEGATIVE: &str = "model@1@0@-4fb3a1c6e5d7082a@bfloat16.pt";
const QUOTED: &str = "model%401%400%40-4fb3a1c6e5d7082b%40bfloat16.kvcache.safetensors";
const POSITIVE: &str = "model@1@0@4fb3a1c6e5d7082a@bfloat16.pt";
const VLLM: &str = "model_0123456789ab_r0/abc/de_g0/00112233445566778899aabbccddeeff.bin";

/// A Python process, with this seed in its environment, that makes a file.
fn python(mount: &Mount, name: &str, seed: Option<&str>) -> u32 {
    let path = mount.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", "import sys; open(sys.argv[1], 'w').close()"]).arg(path);
    match seed {
        Some(seed) => command.env("PYTHONHASHSEED", seed),
        None => command.env_remove("PYTHONHASHSEED"),
    };
    let mut child = command.spawn().unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

fn warnings(mount: &Mount) -> Vec<String> {
    let status = mount.status();
    status["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect()
}

const COUNTER: &str = "kvfs_processes_with_random_names_total";

#[test]
fn those_whose_names_repeat_are_not() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    for name in [NEGATIVE, QUOTED, VLLM] {
        python(&mount, name, Some("0"));
    }
    // By a digest, as far as can be seen.
    python(&mount, POSITIVE, None);
    python(&mount, "some-other-file", None);
    // To vLLM it's a seed like any other.
    python(&mount, &VLLM.replace("00112233", "00112234"), Some("random"));
    counts(&mount, "kvfs_files_created_total", "", 6.0);
    assert_eq!(Stats::of(&mount).get(COUNTER, ""), 0.0);
    assert_eq!(warnings(&mount), [""; 0]);
}

#[test]
fn each_command_is_warned_of_once() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let first = python(&mount, NEGATIVE, None);
    let all = until("a warning", || Some(warnings(&mount)).filter(|all| !all.is_empty()));
    assert_eq!(all.len(), 1, "{all:?}");
    for part in ["LMCache local_disk", "PYTHONHASHSEED isn't set", "PYTHONHASHSEED=0", &first.to_string()] {
        assert!(all[0].contains(part), "{all:?}");
    }
    let shown = kvfs([Path::new("status"), mount.point()]).code(0).stdout;
    assert!(shown.contains(&format!("warning: {}", all[0])), "{shown}");
    // Another process of the same kind counts, and isn't told of.
    python(&mount, &NEGATIVE.replace("-4", "-5"), None);
    counts(&mount, COUNTER, "", 2.0);
    assert_eq!(warnings(&mount).len(), 1);
    // Other clients are.
    python(&mount, QUOTED, Some("random"));
    python(&mount, VLLM, None);
    counts(&mount, COUNTER, "", 4.0);
    let all = warnings(&mount);
    assert!(
        all.len() == 3 && all[1].contains("LMCache gds_path") && all[1].contains("says \"random\""),
        "{all:?}"
    );
    assert!(all[2].contains("vLLM fs"), "{all:?}");
    let log = std::fs::read_to_string(&mount.log).unwrap();
    assert_eq!(log.matches("PYTHONHASHSEED=0").count(), 3, "{log}");
}
