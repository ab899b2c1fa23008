//! The daemon is killed while files are being written.
#![cfg(feature = "fault-points")]

use std::time::Instant;

use super::{NEW, Writer, hidden, number, on_close, shown, unpublished};
use crate::common::user::in_child;
use crate::common::{Builder, Lab, Mount, Passthrough, kvfs, ns, sys};

const MODES: [Passthrough; 2] = [Passthrough::Auto, Passthrough::Off];

/// Kills the daemon, and takes the dead mount away.
fn kill(mount: Mount, builder: Builder) -> Builder {
    let point = mount.point().to_path_buf();
    mount.signal(libc::SIGKILL);
    mount.ended();
    ns::unmount_below(&point);
    builder
}

#[test]
fn without_another_what_was_not_closed_goes() {
    for mode in MODES {
        let lab = Lab::new();
        let builder = on_close(&lab, mode);
        let mount = builder.clone().start();
        std::fs::write(mount.path("closed"), "closed").unwrap();
        std::fs::write(mount.path("cut"), "whole").unwrap();
        sys::mkdir(mount.path("d"), 0o755).unwrap();
        let mut writer = Writer::open(&mount.path("open"), NEW);
        writer.does('w');
        let mut other = Writer::open(&mount.path("d/renamed"), NEW);
        other.does('r');
        let cut = Writer::open(&mount.path("cut"), libc::O_RDWR | libc::O_TRUNC);
        let mut synced = Writer::open(&mount.path("synced"), NEW);
        ['w', 'f', 's', 'c'].iter().for_each(|order| synced.does(*order));
        let builder = kill(mount, builder);
        [writer, other, cut, synced].into_iter().for_each(|writer| writer.process.kill());
        let mount = builder.start();
        assert_eq!(number(&mount, "dropped_at_start"), 3, "{}", mount.story());
        assert_eq!(super::listed(mount.point()), ["closed", "d", "synced"]);
        assert!(super::listed(&mount.path("d")).is_empty());
        shown(&mount.path("closed"), b"closed");
        shown(&mount.path("synced"), b"some");
        for name in ["open", "cut", "d/renamed.renamed"] {
            assert!(mount.holders(name).is_empty(), "{name}");
        }
        // Nothing is left to be found at the next start.
        assert_eq!(number(&mount.restart(), "dropped_at_start"), 0);
    }
}

/// The daemon hears of the last close after close(2) has returned: it may be killed in between.
#[test]
fn without_another_what_may_be_closed_stays_if_nobody_wrote_it_since() {
    for mode in MODES {
        let lab = Lab::new();
        let builder = on_close(&lab, mode);
        let mount = builder.clone().start();
        let closed = |name: &str| {
            let mut writer = Writer::open(&mount.path(name), NEW);
            ['w', 'd', 'c'].iter().for_each(|order| writer.does(*order));
            writer
        };
        let (idle, mut writing) = (closed("idle"), closed("writing"));
        writing.does('W');
        let builder = kill(mount, builder);
        [idle, writing].into_iter().for_each(|writer| writer.process.kill());
        let mount = builder.start();
        shown(&mount.path("idle"), b"some");
        hidden(&mount.path("writing"));
        assert_eq!(number(&mount, "dropped_at_start"), 1, "{}", mount.story());
    }
}

#[test]
fn an_aborted_connection_leaves_the_list_to_the_next_mount() {
    for mode in MODES {
        let lab = Lab::new();
        let builder = on_close(&lab, mode);
        let mount = builder.clone().start();
        let mut writer = Writer::open(&mount.path("open"), NEW);
        writer.does('w');
        std::fs::write(mount.path("closed"), "closed").unwrap();
        unpublished(&mount, 1);
        let point = mount.point().to_path_buf();
        ns::abort(mount.minor);
        mount.ended();
        ns::unmount_below(&point);
        writer.process.kill();
        let mount = builder.start();
        assert_eq!(number(&mount, "dropped_at_start"), 1, "{}", mount.story());
        assert_eq!(super::listed(mount.point()), ["closed"]);
    }
}

#[test]
fn what_was_about_to_be_made_goes() {
    for point in ["make before", "make between", "make after"] {
        let lab = Lab::new();
        let builder = on_close(&lab, Passthrough::Auto);
        let mount = builder.clone().start();
        let path = mount.path(format!("f@{point}@"));
        assert!(sys::open(&path, NEW, 0o644).is_err(), "the daemon is killed over it");
        let mount_point = mount.point().to_path_buf();
        mount.ended();
        ns::unmount_below(&mount_point);
        let mount = builder.start();
        assert!(super::listed(mount.point()).is_empty(), "{point}");
        assert_eq!(number(&mount, "dropped_at_start"), u64::from(point != "make before"), "{point}");
        assert!(mount.holders(path.file_name().unwrap()).is_empty());
    }
}

#[test]
fn a_mount_without_hiding_drops_them_too_and_forgets_the_list() {
    let lab = Lab::new();
    let builder = on_close(&lab, Passthrough::Auto);
    let mount = builder.clone().start();
    let writer = Writer::open(&mount.path("open"), NEW);
    kill(mount, builder.clone());
    writer.process.kill();
    let on_create = lab.mount(&lab.dirs(2)).arg("--publish").arg("on-create");
    let mount = on_create.start();
    assert_eq!(number(&mount, "dropped_at_start"), 1);
    assert!(mount.backings().iter().all(|b| !b.join(".kvfs-unclosed").exists()));
    std::fs::write(mount.path("open"), "anew").unwrap();
    mount.stop();
    shown(&builder.start().path("open"), b"anew");
}

#[test]
fn another_file_with_the_same_inode_number_stays() {
    let lab = Lab::new();
    let builder = on_close(&lab, Passthrough::Auto);
    let mount = builder.clone().start();
    let writer = Writer::open(&mount.path("open"), NEW);
    let file = mount.backings()[mount.holder("open")].join("open");
    kill(mount, builder.clone());
    writer.process.kill();
    let ino = sys::stat(&file).unwrap().st_ino;
    std::fs::remove_file(&file).unwrap();
    // ext4 gives the number to the next file.
    let again = (0..2000).find(|i| {
        std::fs::write(file.with_file_name(i.to_string()), "another").unwrap();
        sys::stat(file.with_file_name(i.to_string())).unwrap().st_ino == ino
    });
    let mount = builder.start();
    assert_eq!(number(&mount, "dropped_at_start"), 0);
    if let Some(i) = again {
        shown(&mount.path(i.to_string()), b"another");
    }
}

fn daemons(mount: &Mount) -> u64 {
    mount.status()["supervised"]["daemons"].as_u64().unwrap()
}

/// Returns when another daemon than so many answers.
#[track_caller]
fn next(mount: &Mount, before: u64) {
    let deadline = Instant::now() + ns::HANG;
    let answer = || {
        let out = kvfs(["status".into(), "--json".into(), mount.point().as_os_str().to_owned()]);
        let status: serde_json::Value = serde_json::from_str(&out.stdout).ok()?;
        status["supervised"]["daemons"].as_u64()
    };
    while answer().is_none_or(|daemons| daemons <= before) {
        assert!(Instant::now() < deadline, "no other daemon answers:\n{}", mount.story());
    }
}

fn another(mount: &Mount) {
    let status = mount.status();
    let pid = sys::pidfd(status["pid"].as_u64().unwrap() as u32).unwrap();
    sys::signal(&pid, libc::SIGKILL).unwrap();
    next(mount, status["supervised"]["daemons"].as_u64().unwrap());
}

#[test]
fn with_another_the_writer_goes_on() {
    for mode in MODES {
        let lab = Lab::new();
        let mount = on_close(&lab, mode).supervised().start();
        let path = mount.path("f");
        let mut writer = Writer::open(&path, NEW);
        writer.does('w');
        let dying = Writer::open(&mount.path("dying"), NEW);
        std::fs::write(mount.path("cut"), "whole").unwrap();
        let cut = Writer::open(&mount.path("cut"), libc::O_RDWR | libc::O_TRUNC);
        for _ in 0..2 {
            another(&mount);
            hidden(&path);
            hidden(&mount.path("cut"));
            assert_eq!(number(&mount, "unpublished"), 3);
            writer.does('w');
            writer.does('l');
        }
        cut.close();
        shown(&mount.path("cut"), b"");
        dying.process.kill();
        unpublished(&mount, 1);
        assert!(mount.holders("dying").is_empty());
        another(&mount);
        writer.close();
        shown(&path, b"somesomesome");
        assert_eq!(number(&mount, "dropped_at_start"), 0);
        unpublished(&mount, 0);
    }
}

#[test]
fn a_create_that_is_sent_again_is_hidden() {
    for mode in MODES {
        let lab = Lab::new();
        let mount = on_close(&lab, mode).supervised().start();
        for point in ["make before", "make between", "make after"] {
            let path = mount.path(format!("f@{point}@"));
            let before = daemons(&mount);
            let fd = sys::open(&path, NEW, 0o644).unwrap();
            next(&mount, before);
            assert_eq!(daemons(&mount), before + 1, "{point}");
            assert_eq!(sys::write(&fd, b"some"), Ok(4));
            assert_eq!(sys::stat(&path).unwrap().st_size, 4, "its writer sees it");
            let seen = || in_child(|| super::said(&sys::stat(&path)));
            assert!(seen() != "ok", "{point}");
            drop(fd);
            assert_eq!(seen(), "ok", "{point}");
            unpublished(&mount, 0);
        }
    }
}

#[test]
fn what_was_closed_is_there_whatever_becomes_of_its_release() {
    for mode in MODES {
        let lab = Lab::new();
        let mount = on_close(&lab, mode).supervised().start();
        let before = daemons(&mount);
        // close(2) has returned, and the daemon that was told so is killed; its drive takes longer than a moment.
        for name in
            ["f@release begins@20 ms at release begins", "f@release between", "f@250 ms at release between"]
        {
            let path = mount.path(name);
            std::fs::write(&path, "some").unwrap();
            assert_eq!(in_child(|| super::said(&sys::stat(&path))), "ok", "{name}");
            unpublished(&mount, 0);
        }
        assert_eq!(daemons(&mount), before + 2);
    }
}
