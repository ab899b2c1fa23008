//! What the writers see of a file that isn't closed, and what everybody else.

use std::io::{Read, Write};

use kvfs::client::Mount as Client;

use super::{NEW, Writer, hidden, number, on_close, shown, unpublished};
use crate::common::process::Process;
use crate::common::user::in_child;
use crate::common::{Errno, FsKind, Lab, Mount, Passthrough, sys};

/// The last order. (A process that is forked has both ends of its pipes.)
const END: [u8; 4] = [0xff; 4];

fn modes(test: impl Fn(&Lab, &Mount)) {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = on_close(&lab, mode).start();
        test(&lab, &mount);
        unpublished(&mount, 0);
    }
}

#[test]
fn a_file_is_hidden_until_its_closed() {
    modes(|_, mount| {
        let path = mount.path("f");
        let mut writer = Writer::open(&path, NEW);
        writer.does('w');
        writer.does('l');
        hidden(&path);
        assert_eq!(number(mount, "unpublished"), 1);
        writer.does('w');
        hidden(&path);
        writer.close();
        shown(&path, b"somesome");
        // Written once more without being cut off: it stays.
        let mut writer = Writer::open(&path, libc::O_RDWR);
        writer.does('w');
        shown(&path, b"somesome");
        writer.close();
    });
}

#[test]
fn who_hears_that_its_closed_finds_it() {
    modes(|_, mount| {
        let (orders, mut tell) = sys::pipe().map(|(r, w)| (r, std::fs::File::from(w))).unwrap();
        let point = mount.point().to_owned();
        let mut reader = Process::start(move |say| {
            let mut orders = std::fs::File::from(orders);
            let mut n = [0; 4];
            while orders.read_exact(&mut n).is_ok() && n != END {
                let name = u32::from_ne_bytes(n).to_string();
                let found = std::fs::read(point.join(&name)).map(|bytes| bytes == name.as_bytes());
                say(&format!("{found:?}"));
            }
        });
        for n in 0..500u32 {
            std::fs::write(mount.path(n.to_string()), n.to_string()).unwrap();
            tell.write_all(&n.to_ne_bytes()).unwrap();
            assert_eq!(reader.hear(), "Ok(true)", "{n}");
        }
        tell.write_all(&END).unwrap();
        reader.finish();
        let listed = in_child(|| super::listed(mount.point()).len().to_string());
        assert_eq!(listed, "500");
    });
}

#[test]
fn one_of_two_descriptors_is_not_the_last() {
    modes(|_, mount| {
        let path = mount.path("f");
        let mut writer = Writer::open(&path, NEW);
        writer.does('w');
        writer.does('d');
        writer.does('c');
        hidden(&path);
        writer.finish();
        shown(&path, b"some");
    });
}

#[test]
fn the_name_is_taken() {
    modes(|_, mount| {
        let path = mount.path("f");
        let mut writer = Writer::open(&path, NEW);
        assert_eq!(sys::open(&path, NEW, 0o644).map(drop), Err(Errno::EEXIST));
        assert_eq!(sys::mkdir(&path, 0o755), Err(Errno::EEXIST));
        assert_eq!(sys::symlink("x", &path), Err(Errno::EEXIST));
        assert_eq!(sys::mknod(&path, libc::S_IFIFO | 0o600, 0), Err(Errno::EEXIST));
        std::fs::write(mount.path("other"), "other").unwrap();
        assert_eq!(sys::link(mount.path("other"), &path), Err(Errno::EEXIST));
        assert_eq!(sys::unlink(&path), Err(Errno::ENOENT));
        hidden(&path);
        // Whoever writes it, too, is one of its writers.
        let fd = sys::open(&path, libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
        assert_eq!(sys::pwrite(&fd, b"joined", 0), Ok(6));
        assert_eq!(sys::stat(&path).unwrap().st_size, 6);
        writer.does('c');
        assert_eq!(in_child(|| sys::stat(&path).unwrap_err().to_string()), Errno::ENOENT.to_string());
        drop(fd);
        assert_eq!(in_child(|| std::fs::read_to_string(&path).unwrap()), "joined");
    });
}

#[test]
fn its_replaced_like_any_other() {
    modes(|_, mount| {
        let path = mount.path("f");
        let writer = Writer::open(&path, NEW);
        std::fs::write(mount.path("new"), "new").unwrap();
        sys::rename(mount.path("new"), &path).unwrap();
        shown(&path, b"new");
        writer.close();
        shown(&path, b"new");
        assert_eq!(mount.holders("f").len(), 1);
    });
}

#[test]
fn its_directory_is_not_empty() {
    let lab = Lab::new();
    let mount = on_close(&lab, Passthrough::Auto).start();
    sys::mkdir(mount.path("d"), 0o755).unwrap();
    let writer = Writer::open(&mount.path("d/f"), NEW);
    assert!(super::listed(&mount.path("d")).is_empty());
    assert_eq!(sys::rmdir(mount.path("d")), Err(Errno::ENOTEMPTY));
    writer.close();
}

#[test]
fn another_name_shows_it_no_earlier() {
    modes(|_, mount| {
        let (path, renamed) = (mount.path("f"), mount.path("f.renamed"));
        let mut writer = Writer::open(&path, NEW);
        writer.does('w');
        // llm-d renames before it closes.
        writer.does('r');
        hidden(&path);
        hidden(&renamed);
        writer.close();
        hidden(&path);
        shown(&renamed, b"some");
    });
}

#[test]
fn a_link_to_it_is_hidden_too() {
    modes(|_, mount| {
        let (path, link) = (mount.path("f"), mount.path("l"));
        let fd = sys::open(&path, NEW, 0o644).unwrap();
        sys::link(&path, &link).unwrap();
        let seen = || in_child(|| format!("{:?}", super::listed(mount.point())));
        assert_eq!(seen(), "[]");
        sys::unlink(&path).unwrap();
        assert_eq!(seen(), "[]");
        drop(fd);
        assert_eq!(seen(), "[\"l\"]");
    });
}

#[test]
fn what_is_cut_off_is_hidden_again() {
    modes(|_, mount| {
        let path = mount.path("f");
        std::fs::write(&path, "whole").unwrap();
        shown(&path, b"whole");
        let before = sys::open(&path, libc::O_RDONLY, 0).unwrap();
        let mut writer = Writer::open(&path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC);
        assert_eq!(number(mount, "unpublished"), 1);
        // At once: no reader gets at it by what the kernel still has of its name.
        assert_eq!(sys::open(&path, libc::O_RDONLY, 0).map(drop), Err(Errno::ENOENT));
        hidden(&path);
        writer.does('w');
        // Who had it open goes on.
        assert_eq!(sys::pread(&before, 10, 0), Ok(b"some".to_vec()));
        writer.does('t');
        writer.close();
        shown(&path, b"");
        // Nobody has it open to write: there's nothing to wait for.
        std::fs::write(&path, "whole").unwrap();
        sys::truncate(&path, 0).unwrap();
        shown(&path, b"");
    });
}

#[test]
fn what_nobody_writes_is_shown_at_once() {
    modes(|_, mount| {
        let writer = Writer::open(&mount.path("lock"), libc::O_RDONLY | libc::O_CREAT);
        shown(&mount.path("lock"), b"");
        assert_eq!(in_child(|| super::said(&sys::mknod(mount.path("n"), libc::S_IFREG | 0o600, 0))), "ok");
        shown(&mount.path("n"), b"");
        writer.close();
    });
}

#[test]
fn exclusive_mounts_remember_no_miss_of_it() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = on_close(&lab, mode).arg("--exclusive").start();
        let path = mount.path("f");
        hidden(&path);
        let writer = Writer::open(&path, NEW);
        (0..3).for_each(|_| hidden(&path));
        writer.close();
        shown(&path, b"");
    }
}

#[test]
fn a_prefix_ends_before_it() {
    let lab = Lab::new();
    let mount = on_close(&lab, Passthrough::Auto).start();
    let client = Client::open(mount.point()).unwrap();
    ["a", "b", "d"].iter().for_each(|name| std::fs::write(mount.path(name), name).unwrap());
    let writer = Writer::open(&mount.path("c"), NEW);
    let names = ["a", "b", "c", "d"].map(str::to_owned);
    assert_eq!(client.lookup_prefix(&client, &names, false).unwrap().found, 2);
    writer.close();
    assert_eq!(client.lookup_prefix(&client, &names, false).unwrap().found, 4);
}

#[test]
fn its_not_moved_or_evicted_meanwhile() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Xfs, 320).join("kv"), lab.volume(FsKind::Xfs, 320).join("kv")];
    let mount = lab.mount(&backings).arg("--publish").arg("on-close").start();
    let mut writer = Writer::open(&mount.path("f"), NEW);
    writer.does('w');
    let on = mount.holder("f");
    let drain = |args: &[&str]| {
        let backing = backings[on].to_str().unwrap();
        let mut all = vec!["backing", "drain", mount.point().to_str().unwrap(), backing];
        all.extend(args);
        crate::common::kvfs(all)
    };
    drain(&["--detach"]).code(0);
    hidden(&mount.path("f"));
    writer.does('w');
    writer.close();
    shown(&mount.path("f"), b"somesome");
    let deadline = std::time::Instant::now() + crate::common::ns::HANG;
    while mount.holders("f") != [1 - on] {
        assert!(std::time::Instant::now() < deadline, "drained once it's closed: {}", mount.story());
    }
    shown(&mount.path("f"), b"somesome");
}

#[test]
fn by_default_its_hidden_and_on_create_shows_it_at_once() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    assert_eq!(mount.status()["publish"]["publish"], "on-close");
    let mount = mount.stop().arg("--publish").arg("on-create").start();
    assert_eq!(mount.status()["publish"]["publish"], "on-create");
    let path = mount.path("f");
    let mut writer = Writer::open(&path, NEW);
    shown(&path, b"");
    writer.does('w');
    shown(&path, b"some");
    writer.process.kill();
    shown(&path, b"some");
    assert_eq!(mount.op("flush"), 0, "the kernel isn't to ask");
}
