//! The control socket is for root and the mount's owner.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::limits::count;
use crate::common::user::{NOBODY, as_user};
use crate::common::{Lab, Mount, cli};

fn socket(mount: &Mount, dir: &Path) -> PathBuf {
    dir.join(format!("0:{}.sock", mount.minor))
}

/// Asks; the answer, which is empty where the daemon hangs up.
fn ask(socket: &Path, question: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(crate::common::ns::HANG))?;
    // Whoever is hung up on may not be able to send all of it.
    let _ = stream.write_all(question.as_bytes());
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(String::new()),
        read => read.map(|_| answer),
    }
}

#[test]
fn nobody_else_gets_an_answer() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let path = socket(&mount, Path::new("/run/kvfs"));
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
    let dir = std::fs::metadata("/run/kvfs").unwrap();
    assert_eq!((dir.mode() & 0o077, dir.uid()), (0, 0));
    let denied = as_user(NOBODY, NOBODY, || ask(&path, "\"status\"\n")).unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
    let as_nobody = cli::kvfs_as(NOBODY, ["status", mount.point().to_str().unwrap()]);
    assert_ne!(as_nobody.status.code(), Some(0));
    // Reached in another way, by a name that everybody may use: the daemon looks who it is.
    let open = lab.path("open.sock");
    std::fs::hard_link(&path, &open).or_else(|_| std::fs::copy(&path, &open).map(drop)).ok();
    let open = if open.exists() { open } else { path.clone() };
    if open != path {
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o666)).unwrap();
        for question in ["\"status\"\n", "\"job\"\n", "{\"evict\":{\"dry_run\":false}}\n", "x"] {
            let answer = as_user(NOBODY, NOBODY, || ask(&open, question)).unwrap();
            assert_eq!(answer, "", "{question}");
        }
        assert!(ask(&open, "\"status\"\n").unwrap().contains("mountpoint"), "root is answered");
        assert!(mount.story().contains("somebody else"), "{}", mount.story());
    }
}

#[test]
fn what_is_no_question_is_refused() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    let path = socket(&mount, Path::new("/run/kvfs"));
    let deep = "[".repeat(60_000);
    let long = format!("\"{}\"", "x".repeat(200_000));
    for question in ["\n", "status\n", "{}\n", "null\n", "{\"order\":{\"remove\":{}}}\n", "\0\0\n"] {
        assert!(ask(&path, question).unwrap().starts_with("{\"refused\":"), "{question:?}");
    }
    for question in [&deep, &long] {
        let answer = ask(&path, question).unwrap();
        assert!(answer.is_empty() || answer.starts_with("{\"refused\":"), "{answer:.100}");
    }
    // More at a time than are answered: the rest is hung up on, and afterwards all is as before.
    let threads = count(&mount, "task");
    let held: Vec<_> = (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let hung_up = held.iter().filter(|stream| {
        stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        matches!((&mut &**stream).read(&mut [0]), Ok(0))
    });
    assert!(hung_up.count() >= 100 - 17);
    // Not one each; a few begin with the mount and may be late.
    assert!(count(&mount, "task") <= threads + 17 + 25);
    drop(held);
    super::limits::until(&mount, "it answers again", |s| s["pid"] == mount.pid());
}

#[test]
fn an_ordinary_users_mount_answers_its_owner_and_root() {
    let lab = Lab::new();
    lab.fuse_for_everyone();
    let (backing, point) = (lab.dir("theirs"), lab.dir("mnt"));
    for dir in [&backing, &point] {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mount = lab.mount(&[backing]).user(NOBODY).start();
    let dir = std::env::temp_dir().join(format!("kvfs-{NOBODY}"));
    let path = socket(&mount, &dir);
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, NOBODY));
    assert!(ask(&path, "\"status\"\n").unwrap().contains("mountpoint"));
    assert!(as_user(NOBODY, NOBODY, || ask(&path, "\"status\"\n")).unwrap().contains("mountpoint"));
    assert!(as_user(1001, 1001, || ask(&path, "\"status\"\n")).is_err());
    // Another user's process in the place of the daemon isn't believed.
    let away = dir.join("away");
    std::fs::rename(&path, &away).unwrap();
    let false_one = as_user(1001, 1001, || {
        let at = std::env::temp_dir().join(format!("kvfs-false-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&at).unwrap();
        (listener, at)
    });
    std::fs::rename(&false_one.1, &path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let asked = cli::kvfs_as(NOBODY, ["status".into(), mount.point().as_os_str().to_owned()]);
    assert!(asked.stderr.contains("somebody else"), "{}", asked.stderr);
    std::fs::rename(&away, &path).unwrap();
}
