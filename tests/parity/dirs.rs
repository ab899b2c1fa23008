//! mkdir and rmdir, and how deep it goes.

use libc::*;

use super::{Side, parity};
use crate::common::{ranked, sys};

parity!(make, refused, remove, not_empty_anywhere, while_open, deep, links_count, stamps, hash_fanout);

fn make(s: &mut Side) {
    for (name, mode) in [("a", 0o755), ("b", 0o700), ("c", 0o1777), ("d", 0o2775), ("e", 0)] {
        s.note(format!("mkdir {name}"), sys::mkdir(s.p(name), mode));
        s.look(name, name);
    }
    s.note("slash at the end", sys::mkdir(s.p("f/"), 0o755));
    s.note("in the new", sys::mkdir(s.p("f/g"), 0o755));
}

fn refused(s: &mut Side) {
    s.file("f", b"x");
    s.dir("d");
    sys::symlink("nowhere", s.p("l")).unwrap();
    s.note("existing directory", sys::mkdir(s.p("d"), 0o755));
    s.note("existing file", sys::mkdir(s.p("f"), 0o755));
    s.note("existing link", sys::mkdir(s.p("l"), 0o755));
    s.note("below nothing", sys::mkdir(s.p("no/x"), 0o755));
    s.note("below a file", sys::mkdir(s.p("f/x"), 0o755));
    s.note("long", sys::mkdir(s.p("n".repeat(256)), 0o755));
    s.note("rmdir a file", sys::rmdir(s.p("f")));
    s.note("rmdir nothing", sys::rmdir(s.p("no")));
    s.note("rmdir dot", sys::rmdir(s.p("d/.")));
    s.note("rmdir dot dot", sys::rmdir(s.p("d/..")));
    s.note("unlink a directory", sys::unlink(s.p("d")));
}

fn remove(s: &mut Side) {
    let d = s.dir("d");
    s.note("rmdir", sys::rmdir(&d));
    s.note("gone", sys::lstat(&d).map(drop));
    s.note("again", sys::rmdir(&d));
    for round in 0..10 {
        s.note(format!("make {round}"), sys::mkdir(&d, 0o755));
        s.note(format!("use {round}"), std::fs::write(d.join(ranked(round, round)), b"x").is_ok());
        s.note(format!("full {round}"), sys::rmdir(&d));
        s.note(format!("empty it {round}"), sys::unlink(d.join(ranked(round, round))));
        s.note(format!("remove {round}"), sys::rmdir(&d));
    }
}

fn not_empty_anywhere(s: &mut Side) {
    // Files on every backing: whichever is left, the directory isn't empty.
    let d = s.dir("d");
    for i in 0..4 {
        std::fs::write(d.join(ranked(i, i)), b"x").unwrap();
    }
    for i in 0..4 {
        s.note(format!("with {} left", 4 - i), sys::rmdir(&d));
        sys::unlink(d.join(ranked(i, i))).unwrap();
    }
    s.note("none left", sys::rmdir(&d));
    s.note("recreated", sys::mkdir(&d, 0o700));
    s.note("and empty", crate::common::dir::list(&d).map(|l| l.len()));
}

fn while_open(s: &mut Side) {
    let d = s.dir("d");
    let fd = sys::open(&d, O_RDONLY | O_DIRECTORY, 0).unwrap();
    s.note("rmdir", sys::rmdir(&d));
    s.note("fstat", sys::fstat(&fd).map(|st| st.st_mode & S_IFMT));
    let below = format!("/proc/thread-self/fd/{}/x", std::os::fd::AsRawFd::as_raw_fd(&fd));
    s.note("create in it", sys::create(below).map(drop));
    s.note("another of the name", sys::mkdir(&d, 0o755));
}

fn deep(s: &mut Side) {
    let mut path = s.root.clone();
    for i in 0..100 {
        path.push(format!("level{i}"));
        let made = sys::mkdir(&path, 0o755);
        if made.is_err() {
            s.note(format!("mkdir {i}"), made);
        }
    }
    for i in 0..4 {
        s.note(format!("file {i}"), std::fs::write(path.join(ranked(i, i)), [i as u8; 100]).is_ok());
        s.note(format!("read {i}"), std::fs::read(path.join(ranked(i, i))).map(|v| v.len()).ok());
    }
    s.note("move the top", sys::rename(s.p("level0"), s.p("moved")));
    let bottom = s.p("moved").join(path.strip_prefix(s.p("level0")).unwrap());
    s.note("the bottom is there", crate::common::dir::list(bottom).map(|l| l.len()));
}

fn links_count(s: &mut Side) {
    let d = s.dir("d");
    for i in 0..5 {
        s.dir(format!("d/sub{i}"));
    }
    // 1 says "not counted", else it is 2 and one for each directory in it; find(1) relies on that.
    let links = sys::lstat(&d).unwrap().st_nlink;
    s.note("counted right or not at all", links == 1 || links == 7);
}

fn stamps(s: &mut Side) {
    let d = s.dir("d");
    let old = |d: &std::path::Path| sys::utimens(d, (1000, 0), (1000, 0), 0).unwrap();
    let moved = |d: &std::path::Path| sys::lstat(d).unwrap().st_mtime > 1000;
    let name = s.two().1.file_name().unwrap().to_os_string();
    for (what, act) in [
        ("create", &(|| sys::create(d.join(&name)).map(drop)) as &dyn Fn() -> sys::R<()>),
        ("unlink", &|| sys::unlink(d.join(&name))),
        ("mkdir", &|| sys::mkdir(d.join("sub"), 0o755)),
        ("rmdir", &|| sys::rmdir(d.join("sub"))),
        ("symlink", &|| sys::symlink("x", d.join("l"))),
        ("rename inside", &|| sys::rename(d.join("l"), d.join("m"))),
    ] {
        old(&d);
        let r = act();
        s.note(format!("{what} moves the directory's mtime"), (r, moved(&d)));
    }
    old(&d);
    let _ = crate::common::dir::list(&d);
    s.note("listing leaves mtime", moved(&d));
}

fn hash_fanout(s: &mut Side) {
    // LMCache's and vLLM's layouts: several levels of short directories, made if missing.
    for i in 0..40u32 {
        let (a, b) = (format!("{:02x}", i * 7 % 16), format!("{:02x}", i * 13 % 16));
        let d = s.p(&a).join(&b);
        let made = std::fs::create_dir_all(&d).is_ok();
        let wrote = std::fs::write(d.join(ranked(i as usize, i as usize)), [i as u8; 64]).is_ok();
        s.note(format!("chunk {i}"), (made, wrote));
    }
}
