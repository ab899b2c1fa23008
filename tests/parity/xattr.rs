//! Extended attributes: set, get, list, remove, flags, sizes, namespaces, rights.

use libc::*;

use super::{Side, parity};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, sys};

parity!(round_trip, flags, sizes, namespaces, rights, on_directories, kept_by_rename, buffers);

fn round_trip(s: &mut Side) {
    let f = s.file("f", b"x");
    s.note("none", sys::listxattr(&f));
    s.note("missing", sys::getxattr(&f, "user.a"));
    s.note("set", sys::setxattr(&f, "user.a", b"one", 0));
    s.note("set binary", sys::setxattr(&f, "user.b", &[0, 1, 255, 0], 0));
    s.note("set empty", sys::setxattr(&f, "user.c", b"", 0));
    s.note("list", sys::listxattr(&f));
    s.note("get", (sys::getxattr(&f, "user.a"), sys::getxattr(&f, "user.b"), sys::getxattr(&f, "user.c")));
    s.note("replace", sys::setxattr(&f, "user.a", b"another value", 0));
    s.note("get again", sys::getxattr(&f, "user.a"));
    s.note("remove", sys::removexattr(&f, "user.b"));
    s.note("remove again", sys::removexattr(&f, "user.b"));
    s.note("list then", sys::listxattr(&f));
    s.note("file missing", sys::getxattr(s.p("no"), "user.a"));
}

fn flags(s: &mut Side) {
    let f = s.file("f", b"x");
    s.note("replace nothing", sys::setxattr(&f, "user.a", b"1", XATTR_REPLACE));
    s.note("create", sys::setxattr(&f, "user.a", b"2", XATTR_CREATE));
    s.note("create again", sys::setxattr(&f, "user.a", b"3", XATTR_CREATE));
    s.note("replace", sys::setxattr(&f, "user.a", b"4", XATTR_REPLACE));
    s.note("bad flags", sys::setxattr(&f, "user.a", b"5", 99));
    s.note("get", sys::getxattr(&f, "user.a"));
}

fn sizes(s: &mut Side) {
    let f = s.file("f", b"x");
    for len in [1, 255, 1000, 3000] {
        let value = crate::common::pattern(len as u64, len);
        s.note(format!("set {len}"), sys::setxattr(&f, "user.v", &value, 0));
        s.note(format!("get {len}"), sys::getxattr(&f, "user.v").map(|v| v == value));
    }
    s.note("beyond the limit", sys::setxattr(&f, "user.v", &vec![1; 65537], 0));
    s.note("long name", sys::setxattr(&f, &format!("user.{}", "n".repeat(250)), b"x", 0));
    s.note("too long a name", sys::setxattr(&f, &format!("user.{}", "n".repeat(251)), b"x", 0));
    s.note("empty name", sys::setxattr(&f, "", b"x", 0));
}

fn namespaces(s: &mut Side) {
    let f = s.file("f", b"x");
    s.note("trusted", sys::setxattr(&f, "trusted.t", b"root's", 0));
    s.note("root reads it", sys::getxattr(&f, "trusted.t"));
    s.note("a user can't", as_user(NOBODY, NOBODY, || sys::getxattr(&f, "trusted.t")));
    s.note("a user can't set", as_user(NOBODY, NOBODY, || sys::setxattr(&f, "trusted.u", b"x", 0)));
    s.note(
        "no namespace",
        sys::setxattr(&f, "plain", b"x", 0).map_err(|e| e == Errno::EOPNOTSUPP || e == Errno::EPERM),
    );
    sys::symlink("f", s.p("l")).unwrap();
    s.note("user on a link", sys::setxattr(s.p("l"), "user.a", b"x", 0));
    sys::mknod(s.p("fifo"), S_IFIFO | 0o644, 0).unwrap();
    s.note("user on a fifo", sys::setxattr(s.p("fifo"), "user.a", b"x", 0));
}

fn rights(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::setxattr(&f, "user.a", b"x", 0).unwrap();
    sys::chmod(&f, 0o644).unwrap();
    s.note("reader gets", as_user(NOBODY, NOBODY, || sys::getxattr(&f, "user.a")));
    s.note("reader sets", as_user(NOBODY, NOBODY, || sys::setxattr(&f, "user.b", b"x", 0)));
    s.note("reader removes", as_user(NOBODY, NOBODY, || sys::removexattr(&f, "user.a")));
    sys::chmod(&f, 0o600).unwrap();
    s.note("stranger gets", as_user(NOBODY, NOBODY, || sys::getxattr(&f, "user.a")));
    sys::chmod(&f, 0o666).unwrap();
    s.note("writer sets", as_user(NOBODY, NOBODY, || sys::setxattr(&f, "user.b", b"x", 0)));
}

fn on_directories(s: &mut Side) {
    let d = s.dir("d");
    for i in 0..4 {
        std::fs::write(d.join(crate::common::ranked(i, i)), b"x").unwrap();
    }
    s.note("set", sys::setxattr(&d, "user.layout", b"v1", 0));
    s.note("get", sys::getxattr(&d, "user.layout"));
    s.note("list", sys::listxattr(&d));
    s.note("remove", sys::removexattr(&d, "user.layout"));
    s.note("gone", sys::listxattr(&d));
}

fn kept_by_rename(s: &mut Side) {
    let (a, b) = s.two();
    std::fs::write(&a, b"new").unwrap();
    std::fs::write(&b, b"old").unwrap();
    sys::setxattr(&a, "user.which", b"new", 0).unwrap();
    sys::setxattr(&b, "user.which", b"old", 0).unwrap();
    s.note("rename", sys::rename(&a, &b));
    s.note("goes with the file", sys::getxattr(&b, "user.which"));
}

fn buffers(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::setxattr(&f, "user.a", b"12345", 0).unwrap();
    s.note("size", sys::getxattr_into(&f, "user.a", 0));
    s.note("too small", sys::getxattr_into(&f, "user.a", 4));
    s.note("exact", sys::getxattr_into(&f, "user.a", 5));
}
