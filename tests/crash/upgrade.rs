//! A daemon makes way for another executable, and no client notices but for a pause.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::load::{MOVERS, finished, under_load};
use super::{daemon, kill, next, shoot};
use crate::common::cli::{BINARY, finish};
use crate::common::mount::status_of;
use crate::common::user::NOBODY;
use crate::common::{Lab, Mount, Outcome, Passthrough, cli, kvfs, ns, pattern, ranked, sys};

/// A copy of kvfs, which is of the version that its name says: `kvfs@2.0.0`.
fn copy(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.path(name);
    std::fs::copy(BINARY, &path).unwrap();
    path
}

/// Runs `kvfs upgrade MOUNTPOINT ...`.
pub(super) fn upgrade(mount: &Mount, words: &[&str]) -> Outcome {
    let mut all: Vec<OsString> = vec!["upgrade".into(), mount.point().into()];
    all.extend(words.iter().map(OsString::from));
    kvfs(all)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn serves(mount: &Mount, version: &str) -> Value {
    let status = mount.status();
    assert_eq!(status["version"], version, "{status:#}");
    status
}

/// The daemon's process, by its parent, once it has executed a file of this name.
#[track_caller]
fn child_named(mount: &Mount, name: &str) -> u32 {
    let parent = mount.pid();
    let deadline = Instant::now() + ns::HANG;
    loop {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        let is_it = |pid: &&str| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            exe.file_name().is_some_and(|file| file == name)
        };
        if let Some(pid) = children.split_whitespace().find(is_it) {
            return pid.parse().unwrap();
        }
        assert!(Instant::now() < deadline, "no {name} is started:\n{}", mount.story());
        std::thread::yield_now();
    }
}

fn many(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).passthrough(mode).supervised().start();
    let new = copy(&lab, "kvfs@2.0.0");
    let held = mount.path(ranked(1, 7));
    std::fs::write(&held, pattern(7, 100_000)).unwrap();
    let open = sys::open(&held, libc::O_RDWR, 0).unwrap();
    let mut pauses = Vec::new();
    under_load(&mount, MOVERS, |_, going| {
        for round in 0..10u64 {
            if !going() {
                break;
            }
            // To the one that runs the command, and to one that is named.
            let (version, said) = match round % 2 {
                0 => {
                    let mut command = Command::new(&new);
                    command.arg("upgrade").arg(mount.point());
                    ("2.0.0", finish(command).code(0))
                }
                _ => (env!("CARGO_PKG_VERSION"), upgrade(&mount, &["--binary", BINARY]).code(0)),
            };
            assert!(said.stdout.contains(&format!("kvfs {version} took over")), "{}", said.stdout);
            let status = serves(&mount, version);
            let last = &status["last_upgrade"];
            assert_eq!((&last["outcome"], &last["to"]), (&"done".into(), &version.into()));
            assert_eq!(last["executable"], status["executable"]);
            assert_eq!(status["supervised"]["daemons"], round + 2);
            pauses.push(last["pause_ms"].as_u64().unwrap());
            assert_eq!(sys::pread(&open, 4096, 8192), Ok(pattern(7, 100_000)[8192..12288].to_vec()));
        }
        drop(open);
        sys::unlink(&held).unwrap();
    });
    pauses.sort_unstable();
    println!("{mode:?}: requests waited {pauses:?} ms");
    assert_eq!(mount.status()["index"]["shadows"], 0, "no file is there twice");
    let shown = kvfs([OsString::from("status"), mount.point().into()]).code(0).stdout;
    assert!(shown.contains("  upgrade      from 2.0.0 to "), "{shown}");
    finished(mount);
}

#[test]
fn many_in_a_row_passed_through() {
    many(Passthrough::Auto);
}

#[test]
fn many_in_a_row_through_the_daemon() {
    many(Passthrough::Off);
}

/// The daemon is the one that was, and answers.
#[track_caller]
fn undisturbed(mount: &Mount, before: (u64, u32)) {
    assert_eq!(daemon(mount), before, "nothing has happened to the daemon");
    assert_eq!(mount.status()["last_upgrade"], Value::Null);
    std::fs::write(mount.path("x"), "x").unwrap();
}

#[test]
fn what_cannot_take_over_is_refused_before_anything_happens() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).arg("--placement").arg("hash").supervised().start();
    let before = daemon(&mount);
    let file = |name: &str, content: &str, mode: u32| {
        let path = lab.path(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let plain = file("plain", "no program", 0o644);
    let empty = file("empty", "", 0o755);
    let script = file("script", "#!/bin/sh\ncat\n", 0o755);
    let dir = lab.root();
    let other_state = copy(&lab, "kvfs@2.0.0@state=200");
    let refused: &[(&[&str], &[&str])] = &[
        (&["--binary", "/no/such/kvfs"], &["/no/such/kvfs", "can't be opened"]),
        (&["--binary", text(&plain)], &[text(&plain), "can't be executed", "--binary"]),
        (&["--binary", text(&empty)], &[text(&empty), "--binary"]),
        (&["--binary", text(&dir)], &["can't be executed"]),
        (&["--binary", "/bin/true"], &["/bin/true", "doesn't answer as a kvfs"]),
        (&["--binary", "/bin/cat"], &["/bin/cat", "doesn't answer as a kvfs"]),
        (&["--binary", text(&script)], &[text(&script), "doesn't answer as a kvfs"]),
        (&["--binary", text(&other_state)], &["is of version", "takes over version 200", "unmount"]),
        (&["--", "--placement", "round-robin"], &["--placement", "hash", "round-robin", "unmount"]),
        (&["--", "--placement", "nowhere"], &["nowhere"]),
        (&["--", "--turbo"], &["--turbo"]),
    ];
    for (words, naming) in refused {
        upgrade(&mount, words).fault(70, naming);
        undisturbed(&mount, before);
    }
    // As many options as the mount has, written in another way, are the same ones.
    let list: Vec<&str> = mount.backings().iter().flat_map(|b| ["--backing", text(b)]).collect();
    let log = mount.log.clone();
    let same = ["--", "--placement=hash", "--passthrough", passthrough(&mount), "--supervise", "on", "--log"];
    let words: Vec<&str> = same.into_iter().chain([text(&log)]).chain(list.iter().copied()).collect();
    let one_less = &words[..words.len() - 2];
    upgrade(&mount, one_less).fault(70, &["--backing", text(&mount.backings()[1])]);
    undisturbed(&mount, before);
    upgrade(&mount, &words).code(0);
    assert_eq!(daemon(&mount).0, 2);
}

/// What the fixture says.
fn passthrough(mount: &Mount) -> &'static str {
    let on = mount.status()["passthrough"]["on"] == true;
    if on { Passthrough::Auto.word() } else { Passthrough::Off.word() }
}

#[test]
fn who_may_not_and_what_has_no_parent() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    upgrade(&mount, &[]).fault(70, &["--supervise on"]);
    kvfs(["upgrade".into(), lab.root().into_os_string()]).fault(50, &["no kvfs is mounted"]);
    drop(mount);
    let mount = lab.mount(&lab.dirs(2)).supervised().start();
    let before = daemon(&mount);
    let words = [OsString::from("upgrade"), mount.point().into()];
    cli::kvfs_as(NOBODY, words).fault(60, &["doesn't answer", "the user whose mount it is"]);
    undisturbed(&mount, before);
}

#[test]
fn an_ordinary_users_mount() {
    let lab = Lab::new();
    lab.fuse_for_everyone();
    let backings = lab.dirs(2);
    for dir in backings.iter().chain([&lab.dir("mnt")]) {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mount = lab.mount(&backings).user(NOBODY).supervised().start();
    let words = [OsString::from("upgrade"), mount.point().into()];
    // Root's own mounts are elsewhere.
    kvfs(words.clone()).fault(60, &["the user whose mount it is"]);
    cli::kvfs_as(NOBODY, words).code(0);
    assert_eq!(daemon(&mount).0, 2);
}

#[test]
fn a_daemon_that_dies_before_it_is_ready_leaves_the_former_one() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).supervised().start();
    let path = mount.path(ranked(1, 1));
    std::fs::write(&path, pattern(1, 100_000)).unwrap();
    let open = sys::open(&path, libc::O_RDWR, 0).unwrap();
    // Whatever it dies of.
    for (round, how) in (1u64..).zip(["dies at start", "ends at start"]) {
        let bad = copy(&lab, &format!("kvfs@2.0.0@{how}"));
        upgrade(&mount, &["--binary", text(&bad)])
            .fault(71, &["goes on with kvfs", "ended before it was ready"]);
        let status = serves(&mount, env!("CARGO_PKG_VERSION"));
        assert!(status["last_upgrade"]["outcome"]["failed"].is_string(), "{status:#}");
        // The one that died, and the former that came again.
        assert_eq!(status["supervised"]["daemons"], 1 + 2 * round);
        assert_eq!(sys::pread(&open, 4096, 0), Ok(pattern(1, 4096)));
        assert_eq!(sys::pwrite(&open, &pattern(1, 10), 0), Ok(10));
    }
    // That was no mark against the next one.
    let good = copy(&lab, "kvfs@2.0.0");
    upgrade(&mount, &["--binary", text(&good)]).code(0);
    serves(&mount, "2.0.0");
    kill(&mount);
    serves(&mount, "2.0.0");
    assert_eq!(sys::pread(&open, 4096, 0), Ok(pattern(1, 4096)));
}

#[test]
fn whoever_is_killed_in_the_midst_of_it() {
    let lab = Lab::new();
    let new = copy(&lab, "kvfs@2.0.0");
    for point in ["upgrade told", "upgrade closed"] {
        let mount = lab.mount(&lab.dirs(2)).supervised().env("KVFS_FAULT_ABORT_AT", point).start();
        let fd = sys::create(mount.path(ranked(1, 1))).unwrap();
        upgrade(&mount, &["--binary", text(&new)]).code(0);
        assert_eq!(serves(&mount, "2.0.0")["supervised"]["daemons"], 2, "{point}");
        assert_eq!(sys::write(&fd, b"goes on"), Ok(7));
    }
    // The new one, while it starts.
    let mount = lab.mount(&lab.dirs(2)).supervised().start();
    let fd = sys::create(mount.path(ranked(1, 1))).unwrap();
    let stays = copy(&lab, "kvfs@2.0.0@stays at start");
    let first = begin(&mount, &stays);
    shoot(child_named(&mount, "kvfs@2.0.0@stays at start"));
    first.fault(71, &["goes on with kvfs"]);
    serves(&mount, env!("CARGO_PKG_VERSION"));
    assert_eq!(sys::write(&fd, b"goes on"), Ok(7));
}

#[test]
fn in_the_background_and_by_relative_paths() {
    let lab = Lab::new();
    for dir in ["mnt", "a", "b"] {
        lab.dir(dir);
    }
    let kvfs_here = |words: &[&str]| {
        let mut command = Command::new(BINARY);
        command.current_dir(lab.root()).args(words);
        finish(command).code(0)
    };
    kvfs_here(&["mount", "mnt", "--backing", "a,b", "--log", "log"]);
    std::fs::write(lab.path("mnt/x"), "x").unwrap();
    let pid = || status_of(&lab.path("mnt"))["pid"].as_u64().unwrap();
    let before = pid();
    kvfs_here(&["upgrade", "mnt"]);
    kvfs_here(&["upgrade", "mnt", "--", "--backing", "b/../a,b", "--log", "log"]);
    assert_ne!(pid(), before);
    assert_eq!(std::fs::read(lab.path("mnt/x")).unwrap(), b"x");
    kvfs_here(&["umount", "mnt"]);
    // At once: who kept the backings has let them go.
    kvfs_here(&["mount", "mnt", "--backing", "a,b", "--log", "log"]);
    kvfs_here(&["umount", "mnt"]);
}

#[test]
fn without_a_parent_any_more() {
    let lab = Lab::new();
    let builder = lab.mount(&lab.dirs(1)).arg("--supervise").arg("on");
    let mut command = builder.command(&lab.path("log"));
    let mut parent = command.stderr(Stdio::null()).spawn().unwrap();
    assert!(ns::wait_mounts(None, || !ns::mounts_at(&builder.point).is_empty()));
    while kvfs(["status".as_ref(), builder.point.as_os_str()]).status.code() != Some(0) {
        assert!(parent.try_wait().unwrap().is_none());
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    kvfs(["upgrade".as_ref(), builder.point.as_os_str()]).fault(70, &["its parent process can't be told"]);
    // It goes on without one.
    std::fs::write(builder.point.join("x"), "x").unwrap();
    kvfs(["umount".as_ref(), builder.point.as_os_str()]).code(0);
}

/// An upgrade that is under way.
struct Begun(std::process::Child, Command);

impl Begun {
    #[track_caller]
    fn wait(mut self) -> Outcome {
        let status = cli::wait(&mut self.0, ns::HANG).unwrap_or_else(|| panic!("{:?} hung", self.1));
        let out = self.0.wait_with_output().unwrap();
        let words = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome {
            status,
            stdout: words(out.stdout),
            stderr: words(out.stderr),
            what: format!("{:?}", self.1),
        }
    }

    #[track_caller]
    fn fault(self, code: i32, naming: &[&str]) {
        self.wait().fault(code, naming);
    }
}

fn begin(mount: &Mount, binary: &Path) -> Begun {
    let mut command = Command::new(BINARY);
    command.arg("upgrade").arg(mount.point()).arg("--binary").arg(binary);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::die_with_parent(&mut command);
    Begun(command.spawn().unwrap(), command)
}

#[test]
fn one_at_a_time() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).supervised().start();
    let stays = copy(&lab, "kvfs@2.0.0@stays at end");
    upgrade(&mount, &["--binary", text(&stays)]).code(0);
    let (before, pid) = daemon(&mount);
    // It's told to go, and doesn't.
    let first = begin(&mount, Path::new(BINARY));
    let deadline = Instant::now() + ns::HANG;
    while mount.status()["last_upgrade"]["outcome"] != "begun" {
        assert!(Instant::now() < deadline, "it doesn't begin: {:#}", mount.status());
    }
    upgrade(&mount, &[]).fault(70, &["an upgrade of this mount is under way"]);
    std::fs::write(mount.path("x"), "clients don't wait yet").unwrap();
    shoot(pid);
    next(&mount, before);
    first.wait().code(0);
    serves(&mount, env!("CARGO_PKG_VERSION"));
}

#[test]
fn what_the_operator_has_changed_stays_so() {
    let lab = Lab::new();
    let b = lab.dirs(4);
    let mount = lab.mount(&b[..3]).arg("--placement").arg("hash").supervised().start();
    let backing = |what: &str, words: &[&str]| {
        let mut all: Vec<OsString> = vec!["backing".into(), what.into(), mount.point().into()];
        all.extend(words.iter().map(OsString::from));
        kvfs(all).code(0)
    };
    for n in 0..24 {
        std::fs::write(mount.path(format!("f{n}")), pattern(n, 100_000)).unwrap();
    }
    backing("add", &[&format!("{}:min-free=1M:capacity=50%", text(&b[3]))]);
    backing("set", &[text(&b[0]), "ro"]);
    backing("set", &[text(&b[1]), "no-create"]);
    // So slow that it outlives this test.
    backing("drain", &[text(&b[2]), "--bandwidth", "1K", "--detach"]);
    let list = |status: &Value| {
        let all = status["backings"].as_array().unwrap().iter();
        let kept =
            all.map(|b| ["slot", "id", "path", "state", "min_free", "shared"].map(|key| b[key].clone()));
        kept.collect::<Vec<_>>()
    };
    let before = mount.status();
    assert_eq!(before["job"]["kind"], "drain");
    upgrade(&mount, &[]).code(0);
    let after = mount.status();
    assert_eq!(list(&after), list(&before));
    let states: Vec<_> = after["backings"].as_array().unwrap().iter().map(|b| &b["state"]).collect();
    assert_eq!(states, ["ro", "no-create", "draining", "rw"]);
    let deadline = Instant::now() + ns::HANG;
    while mount.status()["job"].is_null() {
        assert!(Instant::now() < deadline, "the drain doesn't go on");
    }
    let job = &mount.status()["job"];
    assert_eq!((&job["kind"], &job["bandwidth"]), (&"drain".into(), &1024.into()));
    assert_eq!(after["retention"]["backings"][3]["capacity"], before["retention"]["backings"][3]["capacity"]);
    for n in 0..24 {
        assert!(std::fs::read(mount.path(format!("f{n}"))).unwrap() == pattern(n, 100_000), "f{n}");
    }
}
