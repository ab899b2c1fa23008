//! `kvfs log` and `--log-format`.

use std::fs;

use serde_json::Value;

use crate::common::{Lab, kvfs};

#[test]
fn what_is_logged_changes_while_the_mount_is_in_use() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    let point = mount.point().to_str().unwrap().to_owned();
    let shown = kvfs(["log", &point]).code(0).stdout;
    assert!(shown.contains("info") && shown.contains(mount.log.to_str().unwrap()), "{shown}");
    // A miss is a line at debug.
    let misses = || {
        assert!(fs::metadata(mount.path("missing")).is_err());
        fs::read_to_string(&mount.log).unwrap().matches("lookup: ").count()
    };
    assert_eq!(misses(), 0);
    assert!(kvfs(["log", &point, "debug"]).code(0).stdout.contains("debug"));
    assert!(misses() > 0);
    kvfs(["log", &point, "warn"]).code(0);
    let before = misses();
    assert_eq!(misses(), before);
    kvfs(["log", &point, "kvfs=loud"]).fault(41, &["kvfs=loud", "info,kvfs::fs=debug"]);
    assert!(kvfs(["log", &point]).code(0).stdout.contains("warn"), "what was before stays");
    kvfs(["log", lab.root().to_str().unwrap()]).fault(50, &["no kvfs is mounted"]);
}

#[test]
fn lines_may_be_json() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).arg("--log-format").arg("json").start();
    let log = mount.log.clone();
    mount.stop();
    let text = fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let says = |line: &Value| line["fields"]["message"].as_str().unwrap().starts_with("mounted at");
    let mounted = lines.iter().find(|line| says(line)).expect("a line about the mount");
    assert_eq!(mounted["level"], "INFO");
    assert!(mounted["timestamp"].is_string());
}
