//! What clients do is counted, once.

use std::path::Path;

use kvfs::client::{Access, File, HostBuffer, Mount as Client, Pages};

use super::{Stats, counts, until};
use crate::common::{Lab, Passthrough, kvfs, pattern, ranked, sys};

/// All but what nobody waits for.
const UNTIMED: [&str; 4] = ["forget", "panics", "opens_passed_through", "opens_by_daemon"];

#[test]
fn through_the_daemon() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).passthrough(Passthrough::Off).start();
    let before = Stats::of(&mount);
    for i in 0..5 {
        let path = mount.path(ranked(1, i));
        std::fs::write(&path, pattern(i as u64, 65536)).unwrap();
        let fd = sys::open(&path, libc::O_RDONLY | libc::O_DIRECT, 0).unwrap();
        assert_eq!(sys::pread_at_skew(&fd, 65536, 0, 0), Ok(pattern(i as u64, 65536)));
    }
    let _ = sys::lstat(mount.path("absent"));
    counts(&mount, "kvfs_written_bytes_total", "backing=1 path=daemon", 5.0 * 65536.0);
    counts(&mount, "kvfs_read_bytes_total", "backing=1 path=daemon", 5.0 * 65536.0);
    counts(&mount, "kvfs_read_bytes_total", "backing=0", 0.0);
    counts(&mount, "kvfs_files_created_total", "backing=1 reason=rank_in_name", 5.0);
    counts(&mount, "kvfs_files_created_total", "", 5.0);
    counts(&mount, "kvfs_opens_total", "path=daemon", 10.0);
    counts(&mount, "kvfs_opens_total", "path=passthrough", 0.0);
    counts(&mount, "kvfs_request_duration_seconds", "op=create backing=1", 5.0);
    counts(&mount, "kvfs_request_duration_seconds", "op=read backing=1", 5.0);
    counts(&mount, "kvfs_backing_files", "backing=1", 5.0);
    let now = Stats::of(&mount);
    let more = |labels| now.get("kvfs_lookups_total", labels) - before.get("kvfs_lookups_total", labels);
    assert!(more("result=hit") >= 5.0 && more("result=miss") >= 6.0, "{:#}", now.0);

    // Each request that was begun was timed when it was answered.
    until("all requests timed", || {
        let (stats, status) = (Stats::of(&mount), mount.status());
        let timed = |op: &str| stats.get("kvfs_request_duration_seconds", &format!("op={op}")) as u64;
        let ops = status["ops"].as_object().unwrap();
        let all = ops.iter().filter(|(op, _)| !UNTIMED.contains(&op.as_str()));
        all.clone().all(|(op, n)| n.as_u64() == Some(timed(op))).then_some(())
    });
}

#[test]
fn in_passthrough() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).passthrough(Passthrough::Auto).start();
    if mount.status()["passthrough"]["on"] != true {
        eprintln!("this kernel passes nothing through");
        return;
    }
    let path = mount.path(ranked(0, 1));
    std::fs::write(&path, pattern(1, 65536)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), pattern(1, 65536));
    counts(&mount, "kvfs_opens_total", "path=passthrough", 2.0);
    counts(&mount, "kvfs_opens_total", "path=daemon", 0.0);
    counts(&mount, "kvfs_written_bytes_total", "path=daemon", 0.0);
    // What isn't known isn't 0.
    let stats = Stats::of(&mount);
    let passed = stats.samples("kvfs_written_bytes_total").iter();
    let passed = passed.filter(|sample| sample["labels"]["path"] == "passthrough").count();
    assert_eq!(passed == 0, stats.0["passthrough_unknown"].is_string(), "{:#}", stats.0);
}

#[test]
fn by_the_fast_path() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let client = Client::open(mount.point()).unwrap();
    let buffer = HostBuffer::new(1 << 20, Pages::Ordinary).unwrap();
    let registered = client.register(&buffer, Access::Both).unwrap();
    let file = File::create(mount.path(ranked(1, 1))).unwrap();
    assert_eq!(file.write(0, &registered, 0, 300_000).unwrap(), 300_000);
    assert_eq!(file.read(0, &registered, 0, 1 << 20).unwrap(), 300_000);
    counts(&mount, "kvfs_written_bytes_total", "backing=1 path=direct", 300_000.0);
    counts(&mount, "kvfs_read_bytes_total", "backing=1 path=direct", 300_000.0);
    counts(&mount, "kvfs_written_bytes_total", "path=daemon", 0.0);
    counts(&mount, "kvfs_direct_ops_total", "op=read result=done", 1.0);
    counts(&mount, "kvfs_direct_buffers", "", 1.0);
    assert!(Stats::of(&mount).get("kvfs_request_duration_seconds", "op=ioctl backing=1") >= 2.0);
}

#[test]
fn evictions() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).arg("--evict").arg("lru").start();
    for i in 0..20 {
        std::fs::write(mount.path(format!("file{i}")), pattern(i as u64, 65536)).unwrap();
    }
    kvfs([Path::new("evict"), Path::new("--bytes=640K"), mount.point()]).code(0);
    until("files gone", || {
        (Stats::of(&mount).get("kvfs_evicted_files_total", "reason=lru") >= 10.0).then_some(())
    });
    let stats = Stats::of(&mount);
    assert_eq!(stats.get("kvfs_evicted_files_total", "reason=orphan"), 0.0);
    assert!(stats.get("kvfs_evicted_bytes_total", "") >= 655_360.0, "{:#}", stats.0);
    counts(&mount, "kvfs_backing_files", "", 20.0 - stats.get("kvfs_evicted_files_total", ""));
}

#[test]
fn for_people() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    std::fs::write(mount.path(ranked(1, 1)), "x").unwrap();
    counts(&mount, "kvfs_request_duration_seconds", "op=create", 1.0);
    let out = kvfs([Path::new("stats"), mount.point()]).code(0).stdout;
    let line = out.lines().find(|line| line.starts_with("create ")).unwrap_or_else(|| panic!("{out}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["create", "1", "1"], "{out}");
    let created = "files_created_total backing=1 reason=rank_in_name";
    assert!(out.lines().any(|line| line.trim() == format!("1  {created}")), "{out}");
    kvfs([Path::new("stats"), &lab.root()]).fault(50, &["no kvfs is mounted"]);
}
