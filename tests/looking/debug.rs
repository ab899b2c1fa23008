//! `kvfs debug`: the bundle says much, and nothing private.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::read::GzDecoder;

use crate::common::{Lab, kvfs};

/// The files of a bundle, by name.
fn open(path: &Path) -> std::collections::BTreeMap<String, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(path).unwrap()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

#[test]
fn much_is_told_and_nothing_private() {
    let lab = Lab::new();
    let backings = [lab.dir("zanzibar-customer/kv"), lab.dir("second")];
    let mount = lab.mount(&backings).env("KVFS_LOG", "debug").start();
    let point = mount.point().to_str().unwrap().to_owned();
    fs::create_dir(mount.path("quixotic")).unwrap();
    kvfs(["log", &point, "debug"]).code(0);
    fs::metadata(mount.path("quixotic/xylophone-checkpoint.bin")).unwrap_err();
    // In the log by its name.
    tracing_line(&mount.log, "backing 0: removed quixotic/xylophone-checkpoint.bin, which was never closed");
    let bundle = lab.path("bundle.tar.gz");
    let told = kvfs(["debug", &point, "-o", bundle.to_str().unwrap()]).code(0).stdout;
    let files = open(&bundle);
    assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);
    for (name, text) in &files {
        assert!(
            told.contains(name.as_str()) && told.contains(&format!(" {} B", text.len())),
            "{name}: {told}"
        );
        for private in ["zanzibar", "customer", "quixotic", "xylophone"] {
            assert!(!text.contains(private), "{private} in {name}:\n{text}");
        }
        assert!(!text.contains(point.as_str()), "{name}");
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(files.values().all(|text| !text.contains(host.trim())), "the host's name");
    let status: serde_json::Value = serde_json::from_str(&files["status.json"]).unwrap();
    assert_eq!(status["backings"].as_array().unwrap().len(), 2);
    assert!(status["ops"]["lookup"].as_u64().unwrap() > 0);
    assert!(files["log.txt"].contains("INFO kvfs::cli::mount: mounted at /"), "{}", files["log.txt"]);
    assert!(files["log.txt"].contains(", which was never closed"), "{}", files["log.txt"]);
    assert!(files["options.txt"].contains("--backing"), "{}", files["options.txt"]);
    assert!(files["kernel.txt"].contains("/sys/module/fuse/parameters/"), "{}", files["kernel.txt"]);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let version = release.trim().split('-').next().unwrap();
    assert!(files["kernel.txt"].contains(&format!("osrelease: {version}")), "{}", files["kernel.txt"]);
    assert!(files["daemon.txt"].contains("VmRSS"), "{}", files["daemon.txt"]);
    assert!(files["mounts.txt"].contains("fuse.kvfs"), "{}", files["mounts.txt"]);
    assert!(files["doctor.json"].contains("\"can_mount\""), "{}", files["doctor.json"]);

    kvfs(["debug", &point, "-o", bundle.to_str().unwrap()]).code(1);
    let none = lab.path("none.tar.gz");
    kvfs(["debug", &point, "--dry-run", "-o", none.to_str().unwrap()]).code(0);
    assert!(!none.exists());
}

fn tracing_line(log: &Path, line: &str) {
    use std::io::Write;
    let mut log = fs::File::options().append(true).open(log).unwrap();
    writeln!(log, "2026-11-22T13:04:55.633755Z  INFO kvfs::fs::torn: {line}").unwrap();
}

#[test]
fn a_daemon_that_does_not_answer_has_a_bundle_too() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    // It's there, and nobody listens any more.
    let socket = format!("/run/kvfs/0:{}.sock", mount.minor);
    let aside = lab.path("socket");
    fs::rename(&socket, &aside).unwrap();
    let bundle = lab.path("bundle.tar.gz");
    let out = kvfs(["debug", mount.point().to_str().unwrap(), "-o", bundle.to_str().unwrap()]);
    fs::rename(&aside, &socket).unwrap();
    out.code(0);
    let files = open(&bundle);
    assert!(files["status.json"].contains("the daemon doesn't answer"), "{}", files["status.json"]);
    assert!(files["mounts.txt"].contains("fuse.kvfs") && files.contains_key("kernel.txt"));
}
