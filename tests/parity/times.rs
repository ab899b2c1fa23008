//! utimensat and futimens: now, omit, far past, who may; and which operations move which stamp.

use libc::*;

use super::{Side, parity};
use crate::common::sys;
use crate::common::user::{NOBODY, as_user};

parity!(explicit, now_and_omit, before_1970, far_future, links, rights, reads_and_writes, by_descriptor);

const NOW: (i64, i64) = (0, UTIME_NOW);
const OMIT: (i64, i64) = (0, UTIME_OMIT);

fn times(s: &mut Side, label: &str, name: &str) {
    let st = sys::lstat(s.p(name)).map(|st| (st.st_atime, st.st_atime_nsec, st.st_mtime, st.st_mtime_nsec));
    s.note(label, st);
}

fn explicit(s: &mut Side) {
    let f = s.file("f", b"x");
    s.dir("d");
    s.note("set", sys::utimens(&f, (1_234_567_890, 123_456_789), (987_654_321, 987_654_321), 0));
    times(s, "file", "f");
    s.note("directory", sys::utimens(s.p("d"), (1000, 0), (2000, 999_999_999), 0));
    times(s, "directory", "d");
    s.note("bad nanoseconds", sys::utimens(&f, (0, 1_000_000_000), (0, 0), 0));
    s.note("missing", sys::utimens(s.p("no"), (0, 0), (0, 0), 0));
}

fn now_and_omit(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::utimens(&f, (1000, 1), (2000, 2), 0).unwrap();
    s.note("only mtime", sys::utimens(&f, OMIT, (3000, 3), 0));
    times(s, "after mtime", "f");
    s.note("only atime", sys::utimens(&f, (4000, 4), OMIT, 0));
    times(s, "after atime", "f");
    s.note("neither", sys::utimens(&f, OMIT, OMIT, 0));
    times(s, "after neither", "f");
    s.note("now", sys::utimens(&f, NOW, OMIT, 0));
    let st = sys::lstat(&f).unwrap();
    s.note("atime is now, mtime kept", (st.st_atime > 1_600_000_000, st.st_mtime));
    s.note("both now", sys::utimens(&f, NOW, NOW, 0));
    let st = sys::lstat(&f).unwrap();
    s.note("both are", (st.st_atime > 1_600_000_000, st.st_mtime > 1_600_000_000));
}

fn before_1970(s: &mut Side) {
    let f = s.file("f", b"x");
    for at in [(-1, 0), (-1, 999_999_999), (-1_000_000_000, 5), (0, 0), (-2_147_483_648, 0)] {
        s.note(format!("set {at:?}"), sys::utimens(&f, at, at, 0));
        times(s, "get", "f");
    }
}

fn far_future(s: &mut Side) {
    let f = s.file("f", b"x");
    for at in [(2_147_483_647, 0), (2_147_483_648, 1), (4_294_967_296, 7), (10_000_000_000, 7)] {
        s.note(format!("set {at:?}"), sys::utimens(&f, at, at, 0));
        times(s, "get", "f");
    }
}

fn links(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::symlink("f", s.p("l")).unwrap();
    sys::utimens(&f, (1000, 0), (1000, 0), 0).unwrap();
    s.note("the link itself", sys::utimens(s.p("l"), (5000, 0), (6000, 0), AT_SYMLINK_NOFOLLOW));
    s.note("its mtime", sys::lstat(s.p("l")).map(|st| st.st_mtime));
    times(s, "the file", "f");
    s.note("through the link", sys::utimens(s.p("l"), (7000, 0), (8000, 0), 0));
    times(s, "the file then", "f");
}

fn rights(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::chmod(&f, 0o644).unwrap();
    s.note("stranger, explicit", as_user(NOBODY, NOBODY, || sys::utimens(&f, (1, 0), (1, 0), 0)));
    s.note("stranger, now", as_user(NOBODY, NOBODY, || sys::utimens(&f, NOW, NOW, 0)));
    sys::chmod(&f, 0o666).unwrap();
    s.note("writer, explicit", as_user(NOBODY, NOBODY, || sys::utimens(&f, (1, 0), (1, 0), 0)));
    s.note("writer, now", as_user(NOBODY, NOBODY, || sys::utimens(&f, NOW, NOW, 0)));
    s.note("writer, one now", as_user(NOBODY, NOBODY, || sys::utimens(&f, NOW, OMIT, 0)));
    sys::chown(&f, NOBODY, NOBODY).unwrap();
    sys::chmod(&f, 0).unwrap();
    s.note("owner, explicit", as_user(NOBODY, NOBODY, || sys::utimens(&f, (1, 0), (1, 0), 0)));
    s.note("owner, now", as_user(NOBODY, NOBODY, || sys::utimens(&f, NOW, NOW, 0)));
}

fn reads_and_writes(s: &mut Side) {
    let f = s.file("f", b"content");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    sys::utimens(&f, (1000, 0), (1000, 0), 0).unwrap();
    let before = sys::lstat(&f).unwrap();
    sys::tick();
    s.note("write", sys::write(&fd, b"C"));
    let after = sys::lstat(&f).unwrap();
    s.note(
        "write moves mtime and ctime",
        (
            after.st_mtime > 1000,
            after.st_ctime_nsec != before.st_ctime_nsec || after.st_ctime > before.st_ctime,
        ),
    );
    s.note("write leaves atime", after.st_atime);
    let by_fd = sys::fstat(&fd).unwrap();
    s.note(
        "fstat and lstat agree",
        (by_fd.st_mtime, by_fd.st_mtime_nsec) == (after.st_mtime, after.st_mtime_nsec),
    );
    sys::utimens(&f, (1000, 0), (2000, 0), 0).unwrap();
    s.note("write nothing", sys::pwrite(&fd, b"", 0));
    s.note("leaves mtime", sys::lstat(&f).map(|st| st.st_mtime));
    sys::utimens(&f, (1000, 0), (2000, 0), 0).unwrap();
    s.note("set after a write and close", sys::pwrite(&fd, b"x", 0));
    sys::futimens(&fd, (3000, 0), (4000, 0)).unwrap();
    drop(fd);
    times(s, "survives the close", "f");
}

fn by_descriptor(s: &mut Side) {
    let f = s.file("f", b"x");
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    s.note("futimens", sys::futimens(&fd, (1111, 1), (2222, 2)));
    times(s, "get", "f");
    s.note("omit", sys::futimens(&fd, OMIT, (3333, 3)));
    times(s, "then", "f");
}
