//! Other people's test suites against a kvfs mount on ext4: pjdfstest for what POSIX says of every
//! call, fsx for random sequences of operations on one file, fio for data that must come back. All of them also while
//! the daemon is killed again and again.
//!
//! They need `pjdfstest` 0.2.2 and `fsx` 0.3.2 (`cargo install pjdfstest fsx`) on the PATH or named
//! by KVFS_PJDFSTEST and KVFS_FSX, and `fio`. A missing tool fails the test: nothing was proved.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::killer::while_killed;
use common::lab::run;
use common::{FsKind, Lab, Mount, Passthrough, cli, sys};
use serde_json::Value;

const EXCLUSIONS: &str = include_str!("conformance/pjdfstest-exclusions.txt");
const PJDFSTEST: &str = include_str!("conformance/pjdfstest.toml");
const FSX: &str = include_str!("conformance/fsx.toml");

fn tool(variable: &str, name: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from(name), PathBuf::from);
    let found = Command::new(&path).arg("--version").output();
    assert!(
        found.is_ok(),
        "{} is missing: `cargo install {name}`, or say where it is in {variable}",
        path.display()
    );
    path
}

/// How long a daemon lives after it has taken over, in the runs in which they're killed.
const LIFE: Duration = Duration::from_millis(250);

/// Whether daemons are killed meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Daemons {
    Live,
    Die,
}

impl Daemons {
    fn mount(self, lab: &Lab, mode: Passthrough) -> Mount {
        let volumes = [lab.volume(FsKind::Ext4, 1024), lab.volume(FsKind::Ext4, 1024)];
        let builder = lab.mount(&volumes.map(|v| v.join("kv"))).passthrough(mode);
        match self {
            Daemons::Live => builder.start(),
            Daemons::Die => builder.supervised().start(),
        }
    }

    /// Does something that takes the daemon so many operations.
    fn meanwhile<T>(self, mount: &Mount, operations: u64, work: impl FnOnce() -> T) -> T {
        match self {
            Daemons::Live => {
                let before = mount.ops();
                let done = work();
                assert!(mount.ops() >= before + operations, "the tests did not run on the mount");
                done
            }
            Daemons::Die => {
                let (done, kills) = while_killed(mount, LIFE, work);
                println!("{kills} daemons were killed");
                assert!(kills > 1, "it took no time, as if it weren't run on the mount");
                done
            }
        }
    }
}

/// Each test of pjdfstest and what became of it: ok, FAILED or skipped.
fn pjdfstest(lab: &Lab, dir: &Path) -> BTreeMap<String, (String, String)> {
    // The tests switch to users that every system has; how nobody's group is called differs.
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let group = if groups.lines().any(|l| l.starts_with("nogroup:")) { "nogroup" } else { "nobody" };
    let config = lab.path("pjdfstest.toml");
    std::fs::write(&config, PJDFSTEST.replace("@group@", group)).unwrap();
    let other = lab.volume(FsKind::Tmpfs, 64);
    let mut command = Command::new(tool("KVFS_PJDFSTEST", "pjdfstest"));
    command.arg("-c").arg(&config).arg("-s").arg(&other).arg("-p").arg(dir).env("RUST_BACKTRACE", "0");
    let out = cli::finish(command);
    let mut results: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut last = String::new();
    for line in out.stdout.lines().chain(out.stderr.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, result @ ("ok" | "FAILED" | "skipped")] if name.contains("::") => {
                last = name.to_owned();
                results.insert(last.clone(), (result.to_owned(), String::new()));
            }
            _ => {
                if let Some((_, why)) = results.get_mut(&last).filter(|_| !line.starts_with("Summary")) {
                    why.push_str(line.trim());
                    why.push(' ');
                }
            }
        }
    }
    results
}

/// The excluded tests; every line has to say why.
fn exclusions() -> Vec<(String, String)> {
    let lines = EXCLUSIONS.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|line| {
            let (name, why) =
                line.split_once('#').unwrap_or_else(|| panic!("an exclusion without a reason: {line}"));
            assert!(why.trim().len() > 10, "an exclusion without a reason: {line}");
            (name.trim().to_owned(), why.trim().to_owned())
        })
        .collect()
}

fn posix(mode: Passthrough, daemons: Daemons) {
    let lab = Lab::new();
    let raw = lab.volume(FsKind::Ext4, 1024).join("raw");
    std::fs::create_dir(&raw).unwrap();
    let want = pjdfstest(&lab, &raw);
    let passed = want.values().filter(|r| r.0 == "ok").count();
    assert!(
        passed > 370,
        "only {passed} of {} tests passed on the raw directory: is pjdfstest set up?",
        want.len()
    );
    let mount = daemons.mount(&lab, mode);
    let dir = mount.path("pjd");
    std::fs::create_dir(&dir).unwrap();
    let got = daemons.meanwhile(&mount, 10_000, || pjdfstest(&lab, &dir));

    let excluded = exclusions();
    let mut faults = Vec::new();
    for (name, (result, _)) in want.iter().filter(|(_, r)| r.0 == "ok") {
        let is_excluded = excluded.iter().any(|(n, _)| n == name);
        match got.get(name) {
            Some((now, _)) if now == result && is_excluded => {
                faults.push(format!("{name}: passes, take it off the exclusions"))
            }
            Some((now, _)) if now == result => {}
            _ if is_excluded => {}
            Some((now, why)) => faults.push(format!("{name}: {now}: {why}")),
            None => faults.push(format!("{name}: did not run")),
        }
    }
    for (name, _) in excluded.iter().filter(|(n, _)| !want.contains_key(n)) {
        faults.push(format!("{name}: excluded, but no test is called that"));
    }
    assert!(faults.is_empty(), "{} faults against a raw ext4:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn pjdfstest_auto() {
    posix(Passthrough::Auto, Daemons::Live);
}

#[test]
fn pjdfstest_off() {
    posix(Passthrough::Off, Daemons::Live);
}

#[test]
fn pjdfstest_auto_killed() {
    posix(Passthrough::Auto, Daemons::Die);
}

#[test]
fn pjdfstest_off_killed() {
    posix(Passthrough::Off, Daemons::Die);
}

fn fsx(mode: Passthrough, daemons: Daemons) {
    let lab = Lab::new();
    let mount = daemons.mount(&lab, mode);
    let config = lab.path("fsx.toml");
    std::fs::write(&config, FSX).unwrap();
    let artifacts = lab.dir("artifacts");
    daemons.meanwhile(&mount, 6, || {
        for seed in 1..=6 {
            let mut command = Command::new(tool("KVFS_FSX", "fsx"));
            command
                .arg("-f")
                .arg(&config)
                .args(["-N", "4000", "-S", &seed.to_string(), "-P"])
                .arg(&artifacts);
            command.arg(mount.path(format!("fsx{seed}")));
            let out = cli::finish(command).code(0);
            assert!(out.stdout.contains("A-OK") || out.stderr.contains("A-OK"), "{out:?}");
        }
    });
}

#[test]
fn fsx_auto() {
    fsx(Passthrough::Auto, Daemons::Live);
}

#[test]
fn fsx_off() {
    fsx(Passthrough::Off, Daemons::Live);
}

#[test]
fn fsx_auto_killed() {
    fsx(Passthrough::Auto, Daemons::Die);
}

#[test]
fn fsx_off_killed() {
    fsx(Passthrough::Off, Daemons::Die);
}

/// One fio run: random writes over several files on both backings, each block with its checksum,
/// all of them read back; `verify_only` reads back what an earlier run wrote.
fn fio(lab: &Lab, dir: &Path, engine: &str, direct: bool, verify_only: bool) {
    let report = lab.path("fio.json");
    let mut command = Command::new("fio");
    command.args(["--name=verify", "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k", "--size=24m"]);
    command.args([
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randseed=7",
    ]);
    command.args(["--iodepth=8", "--output-format=json", "--fallocate=none", "--end_fsync=1", "--thread"]);
    command.arg(format!("--ioengine={engine}")).arg(format!("--direct={}", u8::from(direct)));
    // Ranks send the files to both backings.
    let files: Vec<String> = (0..6).map(|i| common::ranked(i, i)).collect();
    // The directory first: fio joins them as it meets the names.
    command.arg(format!("--directory={}", dir.display())).arg(format!("--filename={}", files.join(":")));
    command.arg(format!("--output={}", report.display()));
    if verify_only {
        command.arg("--verify_only=1");
    }
    let out = cli::finish(command).code(0);
    let text = std::fs::read_to_string(&report).unwrap();
    let json: Value = serde_json::from_str(&text[text.find('{').unwrap_or(0)..])
        .unwrap_or_else(|e| panic!("fio's report ({e}): {text}\n{}", out.stderr));
    let job = &json["jobs"][0];
    assert_eq!(job["error"].as_i64(), Some(0), "{engine}: {job:#}");
    let (read, written) = (job["read"]["io_bytes"].as_u64(), job["write"]["io_bytes"].as_u64());
    assert!(read.is_some_and(|n| n >= 20 << 20), "{engine} verified only {read:?} bytes");
    assert!(verify_only || written.is_some_and(|n| n >= 20 << 20), "{engine} wrote only {written:?} bytes");
}

fn data_comes_back(engine: &str, direct: bool) {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = Daemons::Live.mount(&lab, mode);
        let dir = mount.path("fio");
        std::fs::create_dir(&dir).unwrap();
        fio(&lab, &dir, engine, direct, false);
        let on: Vec<usize> =
            common::lab::names(&dir).iter().map(|n| mount.holder(format!("fio/{n}"))).collect();
        assert!(on.contains(&0) && on.contains(&1), "the files are on both backings: {on:?}");
        let mount = mount.restart();
        fio(&lab, &mount.path("fio"), engine, direct, true);
    }
}

#[test]
fn fio_psync_buffered() {
    data_comes_back("psync", false);
}

#[test]
fn fio_psync_direct() {
    data_comes_back("psync", true);
}

#[test]
fn fio_libaio_buffered() {
    data_comes_back("libaio", false);
}

#[test]
fn fio_libaio_direct() {
    data_comes_back("libaio", true);
}

#[test]
fn fio_io_uring_buffered() {
    data_comes_back("io_uring", false);
}

#[test]
fn fio_io_uring_direct() {
    data_comes_back("io_uring", true);
}

#[test]
fn fio_mmap() {
    data_comes_back("mmap", false);
}

fn data_comes_back_killed(mode: Passthrough) {
    let lab = Lab::new();
    let mount = Daemons::Die.mount(&lab, mode);
    Daemons::Die.meanwhile(&mount, 0, || {
        for (engine, direct) in [("psync", false), ("io_uring", true), ("libaio", true), ("mmap", false)] {
            let dir = mount.path(format!("{engine}-{direct}"));
            std::fs::create_dir(&dir).unwrap();
            fio(&lab, &dir, engine, direct, false);
            fio(&lab, &dir, engine, direct, true);
        }
    });
}

#[test]
fn fio_auto_killed() {
    data_comes_back_killed(Passthrough::Auto);
}

#[test]
fn fio_off_killed() {
    data_comes_back_killed(Passthrough::Off);
}

/// A checksum fio finds wrong fails the run: what the tests above rely on.
#[test]
fn fio_finds_a_changed_byte() {
    let lab = Lab::new();
    let mount = Daemons::Live.mount(&lab, Passthrough::Auto);
    let dir = mount.path("fio");
    std::fs::create_dir(&dir).unwrap();
    fio(&lab, &dir, "psync", false, false);
    for name in common::lab::names(&dir) {
        let fd = sys::open(dir.join(name), libc::O_RDWR, 0).unwrap();
        let byte = sys::pread(&fd, 1, 5000).unwrap()[0];
        sys::pwrite(&fd, &[!byte], 5000).unwrap();
    }
    let again =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fio(&lab, &dir, "psync", false, true)));
    assert!(again.is_err(), "fio did not notice a changed byte");
}

/// A tool that is there runs; `run` is what the fixture itself relies on.
#[test]
fn tools_are_there() {
    run(Command::new("fio").arg("--version"));
    tool("KVFS_PJDFSTEST", "pjdfstest");
    tool("KVFS_FSX", "fsx");
    exclusions();
}
