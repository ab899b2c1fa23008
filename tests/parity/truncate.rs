//! truncate and ftruncate: shorter, longer, open elsewhere, refused.

use libc::*;

use super::{Side, parity};
use crate::common::user::{NOBODY, as_user};
use crate::common::{pattern, sys};

parity!(shorter_and_longer, while_open, refused, as_others, stamps);

fn shorter_and_longer(s: &mut Side) {
    let f = s.file("f", &pattern(1, 100_000));
    for len in [50_000, 49_999, 4096, 1, 0, 10, 5000, 300_000, 0] {
        s.note(format!("truncate to {len}"), sys::truncate(&f, len));
        s.look(format!("after {len}"), "f");
    }
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    sys::write(&fd, &pattern(2, 10_000)).unwrap();
    s.note("ftruncate", sys::ftruncate(&fd, 5_001));
    s.note("grown again", sys::ftruncate(&fd, 9_000));
    s.note(
        "the tail is zero",
        sys::pread(&fd, 9_000, 5_001).map(|v| v.iter().all(|b| *b == 0) && v.len() == 3999),
    );
}

fn while_open(s: &mut Side) {
    let f = s.file("f", &pattern(1, 20_000));
    let (a, b) = (sys::open(&f, O_RDWR, 0).unwrap(), sys::open(&f, O_RDONLY, 0).unwrap());
    s.note("warm", sys::pread(&b, 20_000, 0).map(|v| v.len()));
    s.note("by name", sys::truncate(&f, 6_000));
    s.note("the reader", sys::pread(&b, 20_000, 0).map(|v| v.len()));
    s.note("by descriptor", sys::ftruncate(&a, 15_000));
    s.note("the reader then", sys::pread(&b, 20_000, 6_000).map(|v| (v.len(), v.iter().all(|x| *x == 0))));
    s.note("the size for both", (sys::fstat(&a).map(|x| x.st_size), sys::fstat(&b).map(|x| x.st_size)));
    s.note("end", sys::lseek(&b, 0, SEEK_END));
}

fn refused(s: &mut Side) {
    let f = s.file("f", b"abc");
    s.note("negative", sys::truncate(&f, -1));
    s.note("directory", sys::truncate(s.dir("d"), 0));
    s.note("missing", sys::truncate(s.p("no"), 0));
    s.note("below a file", sys::truncate(s.p("f/g"), 0));
    sys::mknod(s.p("fifo"), S_IFIFO | 0o644, 0).unwrap();
    s.note("fifo", sys::truncate(s.p("fifo"), 0));
    s.note("beyond any file", sys::truncate(&f, i64::MAX));
    sys::symlink("f", s.p("l")).unwrap();
    s.note("through a link", sys::truncate(s.p("l"), 1));
}

fn as_others(s: &mut Side) {
    let f = s.file("f", b"abcdef");
    sys::chmod(&s.root, 0o777).unwrap();
    sys::chmod(&f, 0o644).unwrap();
    s.note("no right", as_user(NOBODY, NOBODY, || sys::truncate(&f, 1)));
    sys::chmod(&f, 0o666).unwrap();
    s.note("with the right", as_user(NOBODY, NOBODY, || sys::truncate(&f, 1)));
    let kept = as_user(NOBODY, NOBODY, || sys::open(&f, O_RDWR, 0)).unwrap();
    sys::chmod(&f, 0).unwrap();
    s.note("by an open descriptor", as_user(NOBODY, NOBODY, || sys::ftruncate(&kept, 4)));
}

fn stamps(s: &mut Side) {
    let f = s.file("f", &[1; 5000]);
    for (name, len) in [("shorter", 100), ("longer", 9000)] {
        sys::utimens(&f, (1000, 0), (1000, 0), 0).unwrap();
        sys::tick();
        let before = sys::lstat(&f).unwrap();
        sys::tick();
        sys::truncate(&f, len).unwrap();
        let after = sys::lstat(&f).unwrap();
        s.note(format!("{name}: mtime moved"), after.st_mtime > before.st_mtime);
        s.note(
            format!("{name}: ctime moved"),
            (after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec),
        );
        s.note(format!("{name}: atime stayed"), after.st_atime == 1000);
    }
}
