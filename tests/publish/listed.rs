//! Listings that the kernel keeps: they are used, and whoever begins one finds what is there then.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use super::{NEW, Writer, on_close};
use crate::common::dir::Dir;
use crate::common::{Lab, Mount, Passthrough, ns, sys};

fn mount(lab: &Lab) -> Mount {
    on_close(lab, Passthrough::Auto).start()
}

fn put(mount: &Mount, names: impl IntoIterator<Item = String>) {
    names.into_iter().for_each(|name| std::fs::write(mount.path(name), "some").unwrap());
}

/// More than the kernel asks for at a time.
fn many(mount: &Mount) {
    put(mount, (0..2000).map(|n| format!("{n}-{}", "x".repeat(70))));
}

/// How often the daemon was asked for part of a listing.
fn asked(mount: &Mount) -> u64 {
    let ops = &mount.status()["ops"];
    ops["readdir"].as_u64().unwrap() + ops["readdirplus"].as_u64().unwrap()
}

fn rest(dir: &mut Dir) -> HashSet<String> {
    let names: Vec<String> =
        dir.rest().unwrap().into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
    let set: HashSet<String> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "each is listed once");
    set
}

fn list(dir: impl AsRef<Path>) -> HashSet<String> {
    rest(&mut Dir::open(dir).unwrap())
}

/// The kernel soon has all of it: it says later that a directory is closed, and may drop pages.
#[track_caller]
fn is_kept(mount: &Mount) {
    let (names, deadline) = (list(mount.point()), Instant::now() + ns::HANG);
    loop {
        let before = asked(mount);
        assert_eq!(list(mount.point()), names);
        if asked(mount) == before {
            return;
        }
        assert!(Instant::now() < deadline, "the kernel asks again and again");
    }
}

#[test]
fn a_listing_is_kept_until_something_changes() {
    let lab = Lab::new();
    let mount = mount(&lab);
    many(&mount);
    let before = asked(&mount);
    assert_eq!(list(mount.point()).len(), 2002);
    assert!(asked(&mount) > before);
    is_kept(&mount);
    for n in 0..100 {
        put(&mount, [n.to_string()]);
        assert!(list(mount.point()).contains(&n.to_string()), "{n}");
        is_kept(&mount);
        if n % 2 == 0 {
            sys::unlink(mount.path(n.to_string())).unwrap();
        } else {
            sys::rename(mount.path(n.to_string()), mount.path(format!("renamed-{n}"))).unwrap();
        }
        let names = list(mount.point());
        assert!(!names.contains(&n.to_string()) && names.contains(&format!("renamed-{n}")) == (n % 2 == 1));
        is_kept(&mount);
    }
}

#[test]
fn nothing_is_kept_that_hides_a_file() {
    let lab = Lab::new();
    let mount = mount(&lab);
    // It's listed first, or would be.
    let writer = Writer::open(&mount.path("hidden"), NEW);
    many(&mount);
    let (mut whole, mut begun) = (Dir::open(mount.point()).unwrap(), Dir::open(mount.point()).unwrap());
    assert_eq!(rest(&mut whole).len(), 2002);
    begun.next().unwrap();
    assert!(!list(mount.point()).contains("hidden"));
    writer.close();
    assert!(list(mount.point()).contains("hidden"));
    rest(&mut begun);
    assert!(list(mount.point()).contains("hidden"));
    for dir in [&mut whole, &mut begun] {
        dir.rewind();
        assert!(rest(dir).contains("hidden"));
    }
    drop((whole, begun));
    is_kept(&mount);
    assert!(list(mount.point()).contains("hidden"));
}

#[test]
fn what_a_writer_is_shown_is_not_kept_for_others() {
    let lab = Lab::new();
    let mount = mount(&lab);
    put(&mount, ["other".into()]);
    let fd = sys::open(mount.path("mine"), NEW, 0o644).unwrap();
    assert!(list(mount.point()).contains("mine"));
    let listed = crate::common::user::in_child(|| format!("{}", list(mount.point()).contains("mine")));
    assert_eq!(listed, "false");
    drop(fd);
    let listed = crate::common::user::in_child(|| format!("{}", list(mount.point()).contains("mine")));
    assert_eq!(listed, "true");
    is_kept(&mount);
}

#[test]
fn a_slow_reader_leaves_nothing_old() {
    let lab = Lab::new();
    let mount = mount(&lab);
    many(&mount);
    is_kept(&mount);
    let mut slow = Dir::open(mount.point()).unwrap();
    slow.next().unwrap();
    put(&mount, ["new".into()]);
    sys::unlink(mount.path(format!("1999-{}", "x".repeat(70)))).unwrap();
    let now = list(mount.point());
    assert!(now.contains("new") && now.len() == 2002);
    rest(&mut slow);
    assert_eq!(list(mount.point()), now);
    slow.rewind();
    assert_eq!(rest(&mut slow), now);
    drop(slow);
    is_kept(&mount);
    assert_eq!(list(mount.point()), now);
}

#[test]
fn a_file_that_is_cut_off_is_hidden_again() {
    let lab = Lab::new();
    let mount = mount(&lab);
    put(&mount, ["f".into(), "g".into()]);
    // By another name in another directory, of which the kernel wasn't told.
    let mount = {
        sys::mkdir(mount.path("d"), 0o755).unwrap();
        sys::link(mount.path("f"), mount.path("d/linked")).unwrap();
        mount.restart()
    };
    is_kept(&mount);
    assert!(list(mount.path("d")).contains("linked"));
    let mut writer = Writer::open(&mount.path("f"), libc::O_RDWR);
    assert!(list(mount.point()).contains("f"));
    writer.does('t');
    assert!(!list(mount.point()).contains("f"));
    assert!(!list(mount.path("d")).contains("linked"));
    writer.close();
    assert!(list(mount.point()).contains("f"));
    assert!(list(mount.path("d")).contains("linked"));
    is_kept(&mount);
}

#[test]
fn many_list_while_files_come_and_go() {
    let lab = Lab::new();
    let mount = mount(&lab);
    many(&mount);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (done, point) = (&done, mount.point());
                scope.spawn(move || {
                    while !done.load(SeqCst) {
                        let mut dir = Dir::open(point).unwrap();
                        for _ in 0..=reader {
                            assert!(rest(&mut dir).len() >= 2002);
                            dir.rewind();
                        }
                    }
                })
            })
            .collect();
        for n in 0..300 {
            put(&mount, [n.to_string()]);
            let names = list(mount.point());
            assert!(names.contains(&n.to_string()), "{n}");
            if n > 10 {
                sys::unlink(mount.path((n - 10).to_string())).unwrap();
                assert!(!list(mount.point()).contains(&(n - 10).to_string()), "{n}");
            }
        }
        done.store(true, SeqCst);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    is_kept(&mount);
}

/// As `ls -l` does it: where the kernel has the listing alone, each entry would be a LOOKUP.
#[test]
fn who_asks_for_every_entry_gets_them_with_their_attributes() {
    let lab = Lab::new();
    let mount = mount(&lab);
    many(&mount);
    let mount = mount.restart();
    is_kept(&mount);
    let lookups = |mount: &Mount| mount.status()["ops"]["lookup"].as_u64().unwrap();
    let before = lookups(&mount);
    let (mut dir, mut entries) = (Dir::open(mount.point()).unwrap(), 0);
    while let Some(entry) = dir.next().unwrap() {
        sys::stat(mount.point().join(&entry.name)).unwrap();
        entries += 1;
    }
    assert_eq!(entries, 2002);
    assert!(lookups(&mount) - before < 1000, "{} lookups", lookups(&mount) - before);
}
