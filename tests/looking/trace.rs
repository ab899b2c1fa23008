//! `kvfs trace`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::common::cli::BINARY;
use crate::common::{Lab, Mount, Passthrough, kvfs, sys};

/// `kvfs trace` that is known to look on.
struct Tracing(Child);

impl Tracing {
    fn of(mount: &Mount, words: &[&str]) -> Tracing {
        Tracing::try_of(mount, words).expect("it may look on")
    }

    fn try_of(mount: &Mount, words: &[&str]) -> Option<Tracing> {
        let mut command = Command::new(BINARY);
        command.arg("trace").arg(mount.point()).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::die_with_parent(&mut command);
        let mut tracing = Tracing(command.spawn().unwrap());
        let mut said = String::new();
        BufReader::new(tracing.0.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        said.contains("tracing").then_some(tracing)
    }

    /// All of it; it ends by itself.
    fn lines(mut self) -> Vec<String> {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success());
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn both_ways(test: impl Fn(&Lab, Mount)) {
    for transport in ["dev-fuse", "io-uring"] {
        let lab = Lab::new();
        let mount = lab.mount(&lab.dirs(2)).passthrough(Passthrough::Off).transport(transport).start();
        test(&lab, mount);
    }
}

#[test]
fn operations_as_they_happen() {
    both_ways(|_, mount| {
        let tracing =
            Tracing::of(&mount, &["--op", "create,rename,read,unlink,lookup", "--path", "dir/*", "-n", "40"]);
        fs::create_dir(mount.path("dir")).unwrap();
        fs::write(mount.path("elsewhere"), b"not told").unwrap();
        // A lookup that fails, and a create.
        fs::write(mount.path("dir/a"), b"bytes").unwrap();
        fs::rename(mount.path("dir/a"), mount.path("dir/b")).unwrap();
        assert_eq!(fs::read(mount.path("dir/b")).unwrap(), b"bytes");
        fs::remove_file(mount.path("dir/b")).unwrap();
        // How often the kernel asks is its business: all of it has been told when so many follow.
        for _ in 0..40 {
            let _ = fs::metadata(mount.path("dir/c"));
        }
        let lines = tracing.lines();
        let has = |parts: &[&str]| lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        let pid = format!(" {}]", std::process::id());
        assert!(has(&["lookup ", " dir/a ", "ENOENT"]), "{lines:#?}");
        assert!(has(&["create ", " dir/a ", &pid, "OK", " ms"]), "{lines:#?}");
        let holder = lines.iter().find(|line| line.contains("create ")).unwrap();
        assert!(holder.contains("backing 0") || holder.contains("backing 1"), "{holder}");
        assert!(has(&["rename ", " dir/a -> dir/b ", "OK"]), "{lines:#?}");
        assert!(has(&["unlink ", " dir/b ", "OK"]), "{lines:#?}");
        assert!(!has(&["elsewhere"]) && !has(&["getattr"]), "{lines:#?}");
    });
}

#[test]
fn filters() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let errors = Tracing::of(&mount, &["--errors", "-n", "1", "--pid", &std::process::id().to_string()]);
    fs::write(mount.path("fine"), b"").unwrap();
    Command::new("stat").arg(mount.path("another-process")).output().unwrap();
    assert!(fs::remove_dir(mount.path("fine")).is_err() || fs::metadata(mount.path("absent")).is_err());
    let lines = errors.lines();
    assert_eq!(lines.len(), 1);
    assert!(!lines[0].contains("another-process") && !lines[0].contains("OK"), "{lines:?}");
    kvfs(["trace", mount.point().to_str().unwrap(), "--op", "nonsense"]).fault(41, &["nonsense", "lookup"]);
    kvfs(["trace", mount.point().to_str().unwrap(), "--path", "a["]).fault(41, &["a["]);
    kvfs(["trace", mount.point().to_str().unwrap(), "--slow", "fast"]).fault(41, &["us, ms or s"]);
}

#[test]
fn json_and_slow() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    // Nothing takes an hour; everything takes no time or more.
    let hours = Tracing::of(&mount, &["--slow", "3600s", "-n", "1"]);
    let all = Tracing::of(&mount, &["--slow", "0us", "--op", "mkdir", "-n", "2"]);
    fs::create_dir(mount.path("one")).unwrap();
    fs::create_dir(mount.path("two")).unwrap();
    assert_eq!(all.lines().len(), 2);
    drop(hours);
    let mut child = Command::new(BINARY)
        .args(["trace", mount.point().to_str().unwrap(), "--json", "-n", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It says nothing when it begins: some operation of these is seen.
    while child.try_wait().unwrap().is_none() {
        let _ = fs::metadata(mount.path("absent"));
        std::thread::yield_now();
    }
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let event: Value = serde_json::from_str(text.trim()).unwrap();
    assert!(event["op"].is_string() && event["took_us"].is_u64() && event["errno"].is_i64(), "{event}");
}

#[test]
fn who_stops_looking_on_is_forgotten_and_only_so_many_may() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    let refused = || kvfs(["trace", mount.point().to_str().unwrap()]).fault(52, &["as many as may"]);
    let looking: Vec<Tracing> = (0..4).map(|_| Tracing::of(&mount, &[])).collect();
    refused();
    drop(looking);
    // The daemon sees that they are gone when it looks: until then others are refused.
    let mut again = Vec::new();
    while again.len() < 4 {
        again.extend(Tracing::try_of(&mount, &[]));
    }
    refused();
}
