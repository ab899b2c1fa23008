//! Who may do what: access(2) and the real operations, as root and as an ordinary user.

use libc::*;

use super::{Side, parity};
use crate::common::user::{NOBODY, as_user};
use crate::common::{dir, sys};

parity!(access_modes, opens, in_directories, no_search, group_rights, execute, owner_without_rights);

fn access_modes(s: &mut Side) {
    for mode in [0o000, 0o444, 0o222, 0o111, 0o644, 0o755, 0o004, 0o002, 0o001] {
        let f = s.file(format!("f{mode:o}"), b"x");
        sys::chmod(&f, mode).unwrap();
        for how in [F_OK, R_OK, W_OK, X_OK, R_OK | W_OK] {
            s.note(format!("root {mode:o} {how}"), sys::access(&f, how));
            s.note(format!("user {mode:o} {how}"), as_user(NOBODY, NOBODY, || sys::access(&f, how)));
        }
    }
    s.note("missing", sys::access(s.p("no"), F_OK));
    s.note("below a file", sys::access(s.p("f755/x"), F_OK));
    s.note("bad mode", sys::access(s.p("f755"), 64));
}

fn opens(s: &mut Side) {
    for mode in [0o000, 0o004, 0o002, 0o006, 0o640, 0o604] {
        let f = s.file(format!("f{mode:o}"), b"data");
        sys::chmod(&f, mode).unwrap();
        for (name, flags) in [("r", O_RDONLY), ("w", O_WRONLY), ("rw", O_RDWR), ("trunc", O_RDONLY | O_TRUNC)]
        {
            s.note(
                format!("user {mode:o} {name}"),
                as_user(NOBODY, NOBODY, || sys::open(&f, flags, 0).map(drop)),
            );
        }
        s.note(format!("root {mode:o}"), sys::open(&f, O_RDWR, 0).map(drop));
    }
}

fn in_directories(s: &mut Side) {
    for mode in [0o755, 0o777, 0o733, 0o722, 0o700] {
        let d = s.dir(format!("d{mode:o}"));
        s.file(format!("d{mode:o}/f"), b"x");
        sys::chmod(&d, mode).unwrap();
        let tried = as_user(NOBODY, NOBODY, || {
            (
                sys::create(d.join("new")).map(drop),
                sys::mkdir(d.join("dir"), 0o755),
                sys::symlink("x", d.join("link")),
                sys::rename(d.join("new"), d.join("renamed")),
                sys::unlink(d.join("f")),
                dir::list(&d).map(|l| l.len()),
                sys::lstat(d.join("f")).map(drop),
            )
        });
        s.note(format!("{mode:o}"), tried);
    }
}

fn no_search(s: &mut Side) {
    let d = s.dir("d");
    s.dir("d/e");
    s.file("d/e/f", b"x");
    sys::chmod(&d, 0o600).unwrap();
    let tried = as_user(NOBODY, NOBODY, || {
        (
            sys::lstat(d.join("e/f")).map(drop),
            sys::open(d.join("e/f"), O_RDONLY, 0).map(drop),
            sys::lstat(d.join("no")).map(drop),
        )
    });
    s.note("as a user", tried);
    s.note("as root", sys::lstat(d.join("e/f")).map(drop));
}

fn group_rights(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::chown(&f, 0, 4242).unwrap();
    sys::chmod(&f, 0o060).unwrap();
    s.note("in the group", as_user(NOBODY, 4242, || sys::open(&f, O_RDWR, 0).map(drop)));
    s.note("not in it", as_user(NOBODY, NOBODY, || sys::open(&f, O_RDONLY, 0).map(drop)));
}

fn execute(s: &mut Side) {
    let f = s.file("script", b"#!/bin/sh\nexit 7\n");
    let run = |f: &std::path::Path| {
        std::process::Command::new(f).status().map(|x| x.code()).map_err(|e| e.raw_os_error())
    };
    s.note("not executable", run(&f));
    sys::chmod(&f, 0o755).unwrap();
    s.note("executable", run(&f));
    std::fs::copy("/bin/true", s.p("binary")).unwrap();
    s.note("binary", run(&s.p("binary")));
    sys::unlink(s.p("binary")).unwrap();
}

fn owner_without_rights(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::chown(&f, NOBODY, NOBODY).unwrap();
    sys::chmod(&f, 0o077).unwrap();
    s.note("owner's bits count", as_user(NOBODY, NOBODY, || sys::open(&f, O_RDONLY, 0).map(drop)));
    sys::chmod(&s.root, 0o777).unwrap();
    let made = as_user(NOBODY, NOBODY, || {
        // A file made without rights can still be written by who made it.
        sys::open(s.p("made"), O_RDWR | O_CREAT | O_EXCL, 0).and_then(|fd| sys::write(&fd, b"data"))
    });
    s.note("created without rights", made);
    s.note("opened again", as_user(NOBODY, NOBODY, || sys::open(s.p("made"), O_RDONLY, 0).map(drop)));
}
