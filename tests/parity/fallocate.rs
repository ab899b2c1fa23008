//! fallocate in every mode, allowed and refused.

use libc::*;

use super::{Side, parity};
use crate::common::{pattern, sys};

parity!(plain, keep_size, punch, zero, collapse_and_insert, refused);

const KEEP: i32 = FALLOC_FL_KEEP_SIZE;

fn plain(s: &mut Side) {
    let fd = sys::create(s.p("f")).unwrap();
    s.note("empty file", sys::fallocate(&fd, 0, 0, 1 << 20));
    let st = sys::fstat(&fd).unwrap();
    s.note("size", st.st_size);
    s.note("takes the space", st.st_blocks * 512 >= 1 << 20);
    s.note("reads zero", sys::pread(&fd, 1 << 20, 0).map(|v| v.iter().all(|b| *b == 0)));
    sys::pwrite(&fd, b"data", 100).unwrap();
    s.note("over data", sys::fallocate(&fd, 0, 0, 4096));
    s.note("data stays", sys::pread(&fd, 4, 100));
    s.note("further", sys::fallocate(&fd, 0, 2 << 20, 4096));
    s.note("size then", sys::lstat(s.p("f")).map(|st| st.st_size));
}

fn keep_size(s: &mut Side) {
    let f = s.file("f", b"abc");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("beyond the end", sys::fallocate(&fd, KEEP, 0, 1 << 20));
    let st = sys::fstat(&fd).unwrap();
    s.note("size stays", st.st_size);
    s.note("space is there", st.st_blocks * 512 >= 1 << 20);
    s.note("read", sys::pread(&fd, 100, 0));
}

fn punch(s: &mut Side) {
    let f = s.file("f", &pattern(1, 1 << 20));
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("warm", sys::pread(&fd, 1 << 20, 0).map(|v| v.len()));
    s.note("punch", sys::fallocate(&fd, FALLOC_FL_PUNCH_HOLE | KEEP, 65536, 131_072));
    s.note("hole reads zero", sys::pread(&fd, 131_072, 65536).map(|v| v.iter().all(|b| *b == 0)));
    s.note("odd ends", sys::fallocate(&fd, FALLOC_FL_PUNCH_HOLE | KEEP, 300_001, 5000));
    s.note("past the end", sys::fallocate(&fd, FALLOC_FL_PUNCH_HOLE | KEEP, 4 << 20, 5000));
    s.note("without keep", sys::fallocate(&fd, FALLOC_FL_PUNCH_HOLE, 0, 4096));
    s.look("after", "f");
}

fn zero(s: &mut Side) {
    let f = s.file("f", &pattern(1, 100_000));
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("zero", sys::fallocate(&fd, FALLOC_FL_ZERO_RANGE, 1000, 50_000));
    s.note("zero over the end", sys::fallocate(&fd, FALLOC_FL_ZERO_RANGE, 90_000, 50_000));
    s.look("after", "f");
    s.note("zero past the end, size kept", sys::fallocate(&fd, FALLOC_FL_ZERO_RANGE | KEEP, 200_000, 50_000));
    s.look("size kept", "f");
}

fn collapse_and_insert(s: &mut Side) {
    let f = s.file("f", &pattern(1, 262_144));
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    // The FUSE kernel side hands on only plain, keep-size, punch and zero; nobody among the clients moves ranges.
    let why = "FUSE in the kernel refuses to move ranges";
    let eopnotsupp = Err::<(), _>(crate::common::Errno::EOPNOTSUPP);
    let collapse = sys::fallocate(&fd, FALLOC_FL_COLLAPSE_RANGE, 65536, 65536);
    if collapse.is_ok() {
        sys::fallocate(&fd, FALLOC_FL_INSERT_RANGE, 65536, 65536).unwrap();
    }
    s.note_or("collapse and insert", collapse, eopnotsupp, why);
    sys::pwrite(&fd, &pattern(1, 262_144), 0).unwrap();
}

fn refused(s: &mut Side) {
    let f = s.file("f", b"abc");
    let (fd, r) = (sys::open(&f, O_RDWR, 0).unwrap(), sys::open(&f, O_RDONLY, 0).unwrap());
    s.note("nothing", sys::fallocate(&fd, 0, 0, 0));
    s.note("negative offset", sys::fallocate(&fd, 0, -1, 10));
    s.note("negative length", sys::fallocate(&fd, 0, 0, -1));
    s.note("too far", sys::fallocate(&fd, 0, i64::MAX - 10, 4096));
    s.note("reader", sys::fallocate(&r, 0, 0, 10));
    s.note("bad mode", sys::fallocate(&fd, 0x4000_0000, 0, 10));
    s.note("more than there is", sys::fallocate(&fd, 0, 0, 1 << 34));
    // Ext4 keeps what it could get; how much that is depends on what else is on the volume.
    sys::ftruncate(&fd, 3).unwrap();
    let d = sys::open(s.dir("d"), O_RDONLY, 0).unwrap();
    s.note("directory", sys::fallocate(&d, 0, 0, 10));
}
