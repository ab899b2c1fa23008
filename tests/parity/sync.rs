//! fsync, fdatasync and fsync of a directory.

use libc::*;

use super::{Side, parity};
use crate::common::{Errno, ranked, sys};

parity!(files, directories, read_only, special);

fn files(s: &mut Side) {
    for (name, flags) in [("buffered", 0), ("direct", O_DIRECT)] {
        let fd = sys::open(s.p(name), O_RDWR | O_CREAT | flags, 0o644).unwrap();
        sys::pwrite_at_skew(&fd, &[1; 8192], 0, 0).unwrap();
        s.note(format!("{name} fsync"), sys::fsync(&fd));
        s.note(format!("{name} fdatasync"), sys::fdatasync(&fd));
    }
    let fd = sys::create(s.p("gone")).unwrap();
    sys::write(&fd, b"x").unwrap();
    sys::unlink(s.p("gone")).unwrap();
    s.note("unlinked", (sys::fsync(&fd), sys::fdatasync(&fd)));
}

fn directories(s: &mut Side) {
    let d = s.dir("d");
    for i in 0..4 {
        std::fs::write(d.join(ranked(i, i)), b"x").unwrap();
    }
    let fd = sys::open(&d, O_RDONLY | O_DIRECTORY, 0).unwrap();
    s.note("fsync", sys::fsync(&fd));
    s.note("fdatasync", sys::fdatasync(&fd));
    let root = sys::open(&s.root, O_RDONLY, 0).unwrap();
    s.note("again", sys::fsync(&root));
}

fn read_only(s: &mut Side) {
    let f = s.file("f", b"x");
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    s.note("fsync of a reader", sys::fsync(&fd));
}

fn special(s: &mut Side) {
    sys::mknod(s.p("fifo"), S_IFIFO | 0o644, 0).unwrap();
    let fd = sys::open(s.p("fifo"), O_RDWR | O_NONBLOCK, 0).unwrap();
    s.note("fifo", sys::fsync(&fd));
    let (r, _w) = sys::pipe().unwrap();
    s.note("pipe", sys::fsync(&r) == Err(Errno::EINVAL));
}
