//! chmod and chown, as root and as others, by name and by descriptor.

use libc::*;

use super::{Side, parity};
use crate::common::user::{NOBODY, as_user};
use crate::common::{ranked, sys};

parity!(
    chmod,
    chown,
    by_descriptor,
    as_user_own,
    as_user_foreign,
    directories,
    ctime_moves,
    on_every_backing
);

fn chmod(s: &mut Side) {
    let f = s.file("f", b"x");
    for mode in [0, 0o777, 0o644, 0o7777, 0o4755, 0o2755, 0o1755, 0o600] {
        s.note(format!("chmod {mode:o}"), sys::chmod(&f, mode));
        s.look(format!("after {mode:o}"), "f");
    }
    s.note("missing", sys::chmod(s.p("no"), 0o600));
    sys::mknod(s.p("fifo"), S_IFIFO | 0o644, 0).unwrap();
    s.note("fifo", sys::chmod(s.p("fifo"), 0o600));
    s.look("fifo", "fifo");
}

fn chown(s: &mut Side) {
    let f = s.file("f", b"x");
    for (uid, gid) in [
        (1, 2),
        (u32::MAX, 3),
        (4, u32::MAX),
        (u32::MAX, u32::MAX),
        (0, 0),
        (65534, 65534),
        (3_000_000_000, 7),
    ] {
        s.note(format!("chown {uid} {gid}"), sys::chown(&f, uid, gid));
        s.look(format!("after {uid} {gid}"), "f");
    }
    sys::symlink("f", s.p("l")).unwrap();
    s.note("through a link", sys::chown(s.p("l"), 11, 12));
    s.look("the file", "f");
    s.look("the link", "l");
}

fn by_descriptor(s: &mut Side) {
    let f = s.file("f", b"x");
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    s.note("fchmod", sys::fchmod(&fd, 0o640));
    s.note("fchown", sys::fchown(&fd, 5, 6));
    s.note("fstat", sys::fstat(&fd).map(|st| crate::common::tree::describe(&st)));
    s.look("by name", "f");
}

fn as_user_own(s: &mut Side) {
    sys::chmod(&s.root, 0o777).unwrap();
    let f = s.p("mine");
    s.note("create", as_user(NOBODY, NOBODY, || sys::create(&f).map(drop)));
    s.look("owner", "mine");
    s.note("chmod", as_user(NOBODY, NOBODY, || sys::chmod(&f, 0o600)));
    s.note("give away", as_user(NOBODY, NOBODY, || sys::chown(&f, 1, u32::MAX)));
    s.note("foreign group", as_user(NOBODY, NOBODY, || sys::chown(&f, u32::MAX, 1)));
    s.note("own group", as_user(NOBODY, NOBODY, || sys::chown(&f, u32::MAX, NOBODY)));
    s.note("setgid kept for the own group", as_user(NOBODY, NOBODY, || sys::chmod(&f, 0o2710)));
    s.look("after", "mine");
    sys::chown(&f, NOBODY, 1).unwrap();
    s.note("setgid of a foreign group", as_user(NOBODY, NOBODY, || sys::chmod(&f, 0o2710)));
    s.look("is dropped", "mine");
    s.note("mkdir", as_user(NOBODY, NOBODY, || sys::mkdir(s.p("dir"), 0o755)));
    s.look("its owner", "dir");
    s.note("symlink", as_user(NOBODY, NOBODY, || sys::symlink("x", s.p("link"))));
    s.look("its owner too", "link");
    s.note("mknod", as_user(NOBODY, NOBODY, || sys::mknod(s.p("fifo"), S_IFIFO | 0o600, 0)));
    s.look("and the fifo's", "fifo");
}

fn as_user_foreign(s: &mut Side) {
    let f = s.file("f", b"x");
    s.note("chmod", as_user(NOBODY, NOBODY, || sys::chmod(&f, 0o777)));
    s.note("chown", as_user(NOBODY, NOBODY, || sys::chown(&f, NOBODY, NOBODY)));
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    s.note("fchmod", as_user(NOBODY, NOBODY, || sys::fchmod(&fd, 0o777)));
    s.look("untouched", "f");
}

fn directories(s: &mut Side) {
    let d = s.dir("d");
    for mode in [0o700, 0o1777, 0o2750, 0o755] {
        s.note(format!("chmod {mode:o}"), sys::chmod(&d, mode));
        s.look(format!("after {mode:o}"), "d");
    }
    s.note("chown", sys::chown(&d, 7, 8));
    s.look("after chown", "d");
}

fn ctime_moves(s: &mut Side) {
    let (f, g) = (s.file("f", b"x"), s.p("g"));
    for (name, act) in [
        ("chmod", &(|| sys::chmod(&f, 0o600)) as &dyn Fn() -> sys::R<()>),
        ("chown", &|| sys::chown(&f, 1, 1)),
        ("link", &|| sys::link(&f, &g)),
        ("setxattr", &|| sys::setxattr(&f, "user.x", b"1", 0)),
    ] {
        let before = sys::lstat(&f).unwrap();
        sys::tick();
        let done = act();
        let after = sys::lstat(&f).unwrap();
        let moved = (after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec);
        let kept = (after.st_mtime, after.st_mtime_nsec) == (before.st_mtime, before.st_mtime_nsec);
        s.note(format!("{name}: ctime moves, mtime stays"), (done, moved, kept));
    }
}

fn on_every_backing(s: &mut Side) {
    // A directory that exists on several backings has one mode and owner, wherever one looks.
    let d = s.dir("d");
    for i in 0..4 {
        std::fs::write(d.join(ranked(i, i)), b"x").unwrap();
    }
    s.note("chmod", sys::chmod(&d, 0o2770));
    s.note("chown", sys::chown(&d, 9, 10));
    s.look("after", "d");
    std::fs::write(d.join(ranked(5, 5)), b"x").unwrap();
    s.look("after more files", "d");
}
