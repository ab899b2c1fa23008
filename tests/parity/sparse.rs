//! Holes: SEEK_DATA and SEEK_HOLE, and the space a file takes.

use libc::*;

use super::{Side, parity};
use crate::common::{FsKind, sys};

parity!(data_and_hole, no_hole, empty, blocks);

fn data_and_hole(s: &mut Side) {
    let fd = sys::create(s.p("f")).unwrap();
    sys::pwrite(&fd, &[1; 65536], 0).unwrap();
    sys::pwrite(&fd, &[2; 65536], 1 << 20).unwrap();
    sys::ftruncate(&fd, 4 << 20).unwrap();
    // File systems may report delayed blocks late; after fsync they all know.
    sys::fsync(&fd).unwrap();
    for at in [0, 1, 65535, 65536, 500_000, 1 << 20, (1 << 20) + 65536, (4 << 20) - 1, 4 << 20, 5 << 20, -1] {
        s.note(format!("data from {at}"), sys::lseek(&fd, at, SEEK_DATA));
        s.note(format!("hole from {at}"), sys::lseek(&fd, at, SEEK_HOLE));
    }
    s.note("position", sys::lseek(&fd, 0, SEEK_CUR));
}

fn no_hole(s: &mut Side) {
    let fd = sys::create(s.p("f")).unwrap();
    sys::write(&fd, &[1; 65536]).unwrap();
    sys::fsync(&fd).unwrap();
    s.note("data", sys::lseek(&fd, 10, SEEK_DATA));
    s.note("hole is the end", sys::lseek(&fd, 10, SEEK_HOLE));
}

fn empty(s: &mut Side) {
    let fd = sys::create(s.p("f")).unwrap();
    s.note("data", sys::lseek(&fd, 0, SEEK_DATA));
    s.note("hole", sys::lseek(&fd, 0, SEEK_HOLE));
    sys::ftruncate(&fd, 1 << 20).unwrap();
    s.note("data in a hole", sys::lseek(&fd, 0, SEEK_DATA));
    s.note("hole in a hole", sys::lseek(&fd, 4096, SEEK_HOLE));
}

fn blocks(s: &mut Side) {
    let fd = sys::create(s.p("f")).unwrap();
    sys::pwrite(&fd, &[1; 65536], 8 << 20).unwrap();
    sys::fsync(&fd).unwrap();
    let st = sys::lstat(s.p("f")).unwrap();
    s.note("size", st.st_size);
    // XFS may keep blocks past the end for a while, on either side.
    let room = if s.fs == FsKind::Xfs { 1 << 20 } else { 65536 + 65536 };
    s.note("only the data takes space", st.st_blocks * 512 >= 65536 && st.st_blocks * 512 <= 65536 + room);
    s.note("block size is sane", st.st_blksize >= 512);
}
