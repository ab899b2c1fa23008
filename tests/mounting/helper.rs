//! mount(8) and umount(8).

use std::process::Command;

use super::system::{System, text, tool};
use crate::common::cli::{self, BINARY};
use crate::common::lab::everything;
use crate::common::mount::FUSE_MAGIC;
use crate::common::{Errno, ns, sys};

#[test]
fn mounted_by_type_and_unmounted() {
    let system = System::new();
    system.mount(&system.spec(), "placement=hash,min-free=10M,noatime").code(0);
    let daemon = system.daemon();
    assert_eq!(sys::fs_magic(&system.point), Ok(FUSE_MAGIC));
    let status = crate::common::mount::status_of(&system.point);
    assert_eq!(status["placement"], "hash");
    assert_eq!(status["backings"][1]["reserve"].as_u64().unwrap_or(10 << 20), 10 << 20);
    assert_eq!(status["supervised"]["by"], "its parent process");
    assert_eq!(system.findmnt("SOURCE,FSTYPE"), format!("{} fuse.kvfs", system.spec()));
    let options = system.findmnt("OPTIONS");
    for option in ["rw", "nosuid", "nodev", "noatime"] {
        assert!(options.split(',').any(|there| there == option), "{option} in {options}");
    }
    tool(&["umount", text(&system.point)]).code(0);
    system.nothing_mounted();
    daemon.ended();
}

#[test]
fn a_mount_follows_an_umount_at_once() {
    let system = System::new();
    for _ in 0..3 {
        // umount(8) doesn't wait for the daemon.
        system.mount(&system.spec(), "supervise=off").code(0);
        let _daemon = system.daemon();
        tool(&["umount", text(&system.point)]).code(0);
    }
}

#[test]
fn umount_by_the_helper_waits_for_the_daemon() {
    let system = System::new();
    // An x- option has mount(8) keep a record of the mount, and umount(8) look for the helper.
    for umount in [&["umount"][..], &["kvfs", "umount.kvfs"], &["kvfs", "umount"]] {
        system.mount(&system.spec(), "x-test").code(0);
        let daemon = system.daemon();
        let words: Vec<&str> = umount.iter().map(|w| if *w == "kvfs" { BINARY } else { w }).collect();
        tool(&[&words[..], &[text(&system.point)]].concat()).code(0);
        assert!(daemon.is_gone(), "{umount:?} came back before the daemon had let go");
    }
}

#[test]
fn one_in_use_stays_or_is_detached() {
    let system = System::new();
    system.mount(&system.spec(), "x-test").code(0);
    let daemon = system.daemon();
    let file = sys::create(system.point.join("f")).unwrap();
    let busy = tool(&["umount", text(&system.point)]).code(32);
    assert!(busy.stderr.contains("in use"), "{}", busy.stderr);
    assert_eq!(ns::mounts_at(&system.point).len(), 1);
    tool(&["umount", "-l", text(&system.point)]).code(0);
    system.nothing_mounted();
    assert_eq!(sys::write(&file, b"goes on"), Ok(7));
    drop(file);
    daemon.ended();
}

#[test]
fn one_in_use_becomes_read_only_where_that_is_wanted() {
    let system = System::new();
    system.mount(&system.spec(), "x-test,noexec,noatime").code(0);
    let daemon = system.daemon();
    let path = system.point.join("f");
    let writer = sys::create(&path).unwrap();
    let umount = ["umount", "-r", text(&system.point)];
    let busy = tool(&umount).code(32);
    assert!(busy.stderr.contains("in use"), "{}", busy.stderr);
    assert_eq!(sys::write(&writer, b"goes on"), Ok(7), "somebody writes: it stays as it is");
    drop(writer);
    let reader = sys::open(&path, libc::O_RDONLY, 0).unwrap();
    let outcome = tool(&[BINARY, "umount.kvfs", text(&system.point), "-rv"]).code(0);
    assert!(outcome.stdout.contains("read-only"), "{}", outcome.stdout);
    tool(&umount).code(0);
    assert_eq!(sys::create(system.point.join("g")).map(drop), Err(Errno::EROFS));
    assert_eq!(sys::pread(&reader, 100, 0), Ok(b"goes on".to_vec()));
    let options = system.findmnt("OPTIONS");
    for option in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(options.split(',').any(|there| there == option), "{option} in {options}");
    }
    drop(reader);
    tool(&umount).code(0);
    system.nothing_mounted();
    daemon.ended();
}

#[test]
fn one_whose_daemon_hangs_is_ended_by_force() {
    let system = System::new();
    system.mount(&system.spec(), "x-test,supervise=off").code(0);
    let daemon = system.daemon();
    daemon.signal(libc::SIGSTOP);
    let waiting = {
        let path = system.point.join("somebody-waits-for-this");
        let entered = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            entered.0.send(()).unwrap();
            sys::stat(path).map(drop)
        });
        entered.1.recv().unwrap();
        thread
    };
    // With a request at work, or just before one: either way it's answered.
    tool(&["umount", "-fl", text(&system.point)]).code(0);
    system.nothing_mounted();
    let answer = waiting.join().unwrap();
    assert!(matches!(answer, Err(Errno::ECONNABORTED | Errno::ENOTCONN | Errno::ENOENT)), "{answer:?}");
    daemon.signal(libc::SIGCONT);
    daemon.ended();
}

#[test]
fn what_is_wrong_is_said_and_is_32() {
    let system = System::new();
    let spec = system.spec();
    let before = everything(&system.lab.root());
    for (options, says) in [
        ("plcement=hash", "did you mean \"placement\"?"),
        ("placement=hsh", "unknown placement policy"),
        ("min-free=banana", "banana"),
        ("degraded=perhaps", "true or false"),
        ("sync", "O_SYNC"),
        ("threads", "needs a value"),
        ("config=/no/such.toml", "/no/such.toml"),
        ("foreground", "command line"),
    ] {
        let outcome = system.mount(&spec, options).code(32);
        assert!(outcome.stderr.contains(says), "{options}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{options}: {}", outcome.stderr);
        system.nothing_mounted();
    }
    // -f only looks, and finds the same.
    for (spec, options, status) in
        [(&*spec, "placement=hash", 0), (&spec, "placement=hsh", 32), ("kvfs", "ro", 32)]
    {
        tool(&["mount", "-f", "-t", "kvfs", spec, text(&system.point), "-o", options]).code(status);
        system.nothing_mounted();
    }
    assert_eq!(everything(&system.lab.root()), before);
    system.mount(&spec, "supervise=off").code(0);
    let _daemon = system.daemon();
    let outcome = system.mount(&spec, "placement=hash").code(32);
    assert!(outcome.stderr.contains("already mounted"), "{}", outcome.stderr);
}

#[test]
fn unknown_options_are_left_out_where_that_is_wanted() {
    let system = System::new();
    let options = format!("plcement=hash,noexec,supervise=off,{}", system.log());
    let words = ["mount", "-s", "-v", "-t", "kvfs", &system.spec(), text(&system.point), "-o", &options];
    let outcome = tool(&words).code(0);
    let _daemon = system.daemon();
    assert!(outcome.stdout.contains("kvfs mount --backing="), "{}", outcome.stdout);
    assert!(system.findmnt("OPTIONS").contains("noexec"));
}

#[test]
fn the_backings_may_be_in_the_options_or_in_a_file() {
    let system = System::new();
    let quoted = format!("backing=\"{}\",supervise=off,x-test", system.spec());
    let config = system.lab.path("kv.toml");
    std::fs::write(&config, format!("backing = {:?}\nsupervise = 'off'", system.backings)).unwrap();
    let named = format!("config={},x-test", text(&config));
    for (spec, options) in [("kvfs", &*quoted), ("none", &named), (text(&config), "x-test")] {
        system.mount(spec, options).code(0);
        let daemon = system.daemon();
        assert_eq!(system.findmnt("SOURCE"), spec, "what mount -a looks for");
        let status = crate::common::mount::status_of(&system.point);
        assert_eq!(status["backings"].as_array().unwrap().len(), 2);
        tool(&["umount", text(&system.point)]).code(0);
        daemon.ended();
    }
}

#[test]
fn another_mount_namespace_gets_the_mount() {
    let system = System::new();
    // One that sees what this one sees now, and lives until its standard input ends.
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", "echo there; read line"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    sys::die_with_parent(&mut command);
    let mut other = command.spawn().unwrap();
    let mut line = String::new();
    let stdout = other.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "there\n");
    let ns_of = other.id().to_string();
    let options = format!("supervise=off,{}", system.log());
    let words = ["mount", "-N", &ns_of, "-t", "kvfs", &system.spec(), text(&system.point), "-o", &options];
    tool(&words).code(0);
    system.nothing_mounted();
    let there = tool(&["nsenter", "-t", &ns_of, "-m", "findmnt", "-n", "-o", "FSTYPE", text(&system.point)]);
    assert_eq!(there.code(0).stdout, "fuse.kvfs\n");
    tool(&["nsenter", "-t", &ns_of, "-m", BINARY, "umount", text(&system.point)]).code(0);
    drop(other.stdin.take());
    assert!(cli::wait(&mut other, ns::HANG).is_some());
    let outcome =
        tool(&[BINARY, "mount.kvfs", &system.spec(), text(&system.point), "-N", "/no/such/namespace"]);
    assert!(outcome.code(32).stderr.contains("/no/such/namespace"));
}
