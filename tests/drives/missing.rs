//! A drive that isn't there when the mount starts, and an empty mount point in its place.

use std::path::PathBuf;
use std::process::Command;

use super::{LEN, check, put};
use crate::common::lab::{list, names, run};
use crate::common::{Builder, Errno, FsKind, Lab, kvfs, ranked, sys};

/// A set that was mounted once, with a file on each drive; the backings are whole volumes.
fn set() -> (Lab, Vec<PathBuf>, Builder) {
    let lab = Lab::new();
    let volumes: Vec<_> = (0..3).map(|_| lab.volume(FsKind::Xfs, 512)).collect();
    let mount = lab.mount(&volumes).start();
    for rank in 0..3 {
        put(&mount.path(format!("d/{}", ranked(rank, 0))), rank as u64, LEN);
    }
    let builder = mount.stop();
    (lab, volumes, builder)
}

fn refused(builder: &Builder, naming: &[&str]) {
    let backings = list(&builder.backings);
    let point = builder.point.as_os_str();
    kvfs(["mount".as_ref(), point, "--backing".as_ref(), backings.as_ref()]).fault(24, naming);
}

#[test]
fn an_empty_mount_point_is_refused() {
    let (lab, volumes, builder) = set();
    run(Command::new("umount").arg(&volumes[1]));
    refused(&builder, &[volumes[1].to_str().unwrap(), "missing", "--degraded", ":new"]);
    assert_eq!(std::fs::read_dir(&volumes[1]).unwrap().count(), 0, "nothing is made in it");
    // A directory that isn't there at all is no better; and none is made.
    std::fs::remove_dir(&volumes[1]).unwrap();
    refused(&builder, &[volumes[1].to_str().unwrap(), "nothing is there", "--degraded"]);
    assert!(!volumes[1].exists());
    std::fs::create_dir(&volumes[1]).unwrap();
    // What isn't known may be empty: it's new.
    let mut more = builder.clone();
    more.backings = vec![volumes[0].clone(), volumes[2].clone(), lab.dir("fresh")];
    more.start().stop();
    // The set was mounted without it: it's no part of it any more.
    let mut fresh = builder.clone();
    fresh.backings[1] = volumes[1].clone();
    fresh.start().stop();
}

#[test]
fn a_new_drive_in_its_place_has_to_be_said() {
    let (_lab, volumes, mut builder) = set();
    run(Command::new("umount").arg(&volumes[1]));
    refused(&builder, &["--degraded"]);
    builder.backings[1] = PathBuf::from(format!("{}:new", volumes[1].display()));
    let mount = builder.start();
    assert_eq!(names(&mount.path("d")).len(), 2);
    let again = mount.stop();
    // It's one of the set from then on, said or not.
    again.start().stop();
}

#[test]
fn without_it_if_that_is_said_and_with_it_as_soon_as_it_is_there() {
    let (lab, volumes, builder) = set();
    run(Command::new("umount").arg(&volumes[1]));
    let mount = builder.arg("--degraded").start();
    let status = mount.status();
    let slots: Vec<_> = status["backings"].as_array().unwrap().iter().map(|b| b["state"].clone()).collect();
    assert_eq!(slots, ["rw", "absent", "rw"], "{status:#}");
    assert_eq!(status["backings"][1]["health"]["state"], "absent");
    assert_eq!(names(&mount.path("d")), [ranked(0, 0), ranked(2, 0)], "its names are absent");
    assert_eq!(sys::lstat(mount.path(format!("d/{}", ranked(1, 0)))).map(drop), Err(Errno::ENOENT));
    // The number of backings, and which is which, is as ever.
    for i in 1..8 {
        for rank in [0, 2, 3, 5] {
            let name = format!("d/{}", ranked(rank, i));
            put(&mount.path(&name), i as u64, 100);
            assert!(volumes[rank % 3].join(&name).exists(), "{name}");
        }
        put(&mount.path(format!("d/{}", ranked(1, i))), i as u64, 100);
    }
    assert_eq!(std::fs::read_dir(&volumes[1]).unwrap().count(), 0, "nothing is put into the empty directory");
    // Of a path that's made meanwhile the newest is the file.
    put(&mount.path(format!("d/{}", ranked(1, 0))), 77, LEN);
    let mut words = vec!["backing".into(), "set".into(), mount.point().as_os_str().to_owned()];
    words.extend(["1".into(), "rw".into()]);
    kvfs(&words).fault(52, &["can't be used again", volumes[1].to_str().unwrap()]);
    // Again without it, for it's still one of the set.
    let mount = mount.stop().start();
    assert_eq!(mount.status()["backings"][1]["state"], "absent");
    run(Command::new("mount").args(["-o", "loop"]).arg(lab.path("vol1.img")).arg(&volumes[1]));
    kvfs(&words).code(0);
    assert_eq!(mount.status()["backings"][1]["state"], "rw");
    check(&mount.path(format!("d/{}", ranked(1, 0))), 77, LEN);
    assert_eq!(mount.status()["index"]["shadows"], 1);
    put(&mount.path(format!("d/{}", ranked(1, 50))), 50, 100);
    assert!(volumes[1].join("d").join(ranked(1, 50)).exists(), "new files go there");
    assert_eq!(mount.status()["passthrough"]["on"], mount.status()["backings"][0]["passthrough"]["on"]);
    for i in 1..8 {
        check(&mount.path(format!("d/{}", ranked(1, i))), i as u64, 100);
    }
    mount.stop();
}

#[test]
fn none_of_them_is_too_few() {
    let (_lab, volumes, builder) = set();
    volumes.iter().for_each(|volume| drop(run(Command::new("umount").arg(volume))));
    // Nobody is left who could tell: that's a set of new directories.
    drop(builder.start());
}

#[test]
fn a_drive_that_fails_at_the_start() {
    let (lab, volumes, builder) = set();
    super::flush(&volumes[1]);
    super::kill_device(&volumes[1]);
    refused(&builder, &[volumes[1].to_str().unwrap(), "can't be read", "--degraded"]);
    let mount = builder.arg("--degraded").start();
    assert_eq!(mount.status()["backings"][1]["state"], "absent");
    run(Command::new("umount").arg(&volumes[1]));
    run(Command::new("mount").args(["-o", "loop"]).arg(lab.path("vol1.img")).arg(&volumes[1]));
    let words = ["backing".as_ref(), "set".as_ref(), mount.point().as_os_str(), "1".as_ref(), "rw".as_ref()];
    kvfs(words).code(0);
    check(&mount.path(format!("d/{}", ranked(1, 0))), 1, LEN);
}
