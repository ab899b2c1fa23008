//! Work that goes on: over the end of the command that ordered it, of the mount, and over renamed directories.

use std::process::{Command, Stdio};

use super::{backing, check, drained, ended, files, put, state, text, until};
use crate::common::cli::{self, BINARY};
use crate::common::lab::{names, run};
use crate::common::{FsKind, Lab, Mount, ns, ranked, sys};

const FILES: usize = 16;

fn fill(mount: &Mount) {
    for n in 0..FILES {
        put(&mount.path(format!("d/{}", ranked(0, n))), n as u64, 512 << 10);
    }
}

fn whole(mount: &Mount, dir: &str) {
    for n in 0..FILES {
        check(&mount.path(format!("{dir}/{}", ranked(0, n))), n as u64, 512 << 10);
        mount.holder(format!("{dir}/{}", ranked(0, n)));
    }
}

#[test]
fn ctrl_c_ends_the_looking_on_and_not_the_work() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    fill(&mount);
    let mut command = Command::new(BINARY);
    command.args(["backing", "drain", text(mount.point()), text(&b[0]), "--bandwidth", "2M"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::die_with_parent(&mut command);
    let child = command.spawn().unwrap();
    until(&mount, "in the midst", |job| job["moved"].as_u64() > Some(1));
    sys::signal(&sys::pidfd(child.id()).unwrap(), libc::SIGINT).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("the drain goes on"), "{}: {said}", cli::ended(out.status));
    assert_eq!(mount.status()["job"]["state"], "running");
    ended(&mount, "done");
    whole(&mount, "d");
}

#[test]
fn a_mount_that_ends_stops_the_work_and_the_next_goes_on() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    let mount = lab.mount(&b).start();
    fill(&mount);
    backing(&mount, "drain", &[text(&b[0]), "--bandwidth", "2M", "--detach"]).code(0);
    until(&mount, "in the midst", |job| job["moved"].as_u64() > Some(1));
    let builder = mount.stop();
    let left: Vec<_> = b.iter().flat_map(|b| files(b)).collect();
    assert_eq!(left.len(), FILES, "nothing half and nothing twice: {left:?}");
    let again = builder.start();
    assert_eq!(state(&again, &b[0])["state"], "draining");
    let job = ended(&again, "done");
    assert_eq!(job["bandwidth"], 2 << 20, "as it was ordered");
    assert!(job["moved"].as_u64() < Some(FILES as u64) && job["moved"].as_u64() > Some(0), "{job:#}");
    whole(&again, "d");
}

#[test]
fn directories_are_renamed_meanwhile() {
    let lab = Lab::new();
    let b = lab.dirs(3);
    let mount = lab.mount(&b).start();
    fill(&mount);
    backing(&mount, "drain", &[text(&b[0]), "--bandwidth", "4M", "--detach"]).code(0);
    let (mut now, mut renamed) = ("d", 0);
    until(&mount, "done", |job| {
        let next = if now == "d" { "e" } else { "d" };
        sys::rename(mount.path(now), mount.path(next)).unwrap();
        (now, renamed) = (next, renamed + 1);
        job["state"] != "running"
    });
    ended(&mount, "done");
    assert!(renamed > 3, "{renamed}");
    whole(&mount, now);
    assert_eq!(files(&b[0]).len(), 0);
    assert_eq!(names(mount.point()), [now]);
}

#[test]
fn a_drive_that_has_become_read_only_is_emptied_without_loss() {
    let lab = Lab::new();
    let volumes = [lab.volume_with(FsKind::Ext4, 64, &["-e", "remount-ro"]), lab.volume(FsKind::Ext4, 64)];
    let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&b).arg("--min-free").arg("1M").start();
    fill(&mount);
    make_read_only(&volumes[0]);
    backing(&mount, "drain", &[text(&b[0])]).fault(53, &["older copy"]);
    whole_on(&mount, 1);
    backing(&mount, "remove", &[text(&b[0]), "--force", "--yes"]).code(0);
    whole_on(&mount, 1);
    run(Command::new("umount").arg(&volumes[0]));
}

/// What ext4 does with `errors=remount-ro`: for the device, not for those who have files open for writing.
fn make_read_only(volume: &std::path::Path) {
    let info = ns::mounts_at(volume).pop().unwrap();
    let device = info.source.trim_start_matches("/dev/");
    std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
}

fn whole_on(mount: &Mount, slot: u64) {
    for n in 0..FILES {
        let path = mount.path(format!("d/{}", ranked(0, n)));
        check(&path, n as u64, 512 << 10);
        assert_eq!(sys::getxattr(&path, "user.kvfs.slot").unwrap(), slot.to_string().as_bytes());
    }
}

#[test]
fn leftovers_of_somebody_elses_are_left_alone() {
    let lab = Lab::new();
    let b = lab.dirs(2);
    put(&b[0].join("d/file"), 1, 100);
    put(&b[0].join("d/.kvfs-move-0123"), 2, 100);
    put(&b[0].join("d/.kvfs-other"), 3, 100);
    put(&b[1].join(".kvfs-move-4567"), 4, 100);
    let mount = lab.mount(&b).start();
    let deadline = std::time::Instant::now() + ns::HANG;
    while b[0].join("d/.kvfs-move-0123").exists() || b[1].join(".kvfs-move-4567").exists() {
        assert!(std::time::Instant::now() < deadline, "unfinished copies stay");
        std::thread::yield_now();
    }
    assert!(b[0].join("d/.kvfs-other").exists());
    check(&mount.path("d/file"), 1, 100);
    // Of a backing that joins too.
    let third = lab.dir("third");
    put(&third.join("x/.kvfs-move-89"), 5, 100);
    backing(&mount, "add", &[text(&third)]).code(0);
    assert!(!third.join("x/.kvfs-move-89").exists());
    drained(&mount, &third);
}
