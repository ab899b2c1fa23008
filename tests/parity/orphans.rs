//! Files that are unlinked while open: they live on for those who have them.

use libc::*;

use super::{Side, parity};
use crate::common::{pattern, sys, tree};

parity!(everything_still_works, direct, name_reused, two_holders, last_link, replaced, many);

fn everything_still_works(s: &mut Side) {
    let f = s.file("f", b"0123456789");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("unlink", sys::unlink(&f));
    s.note("name", sys::lstat(&f).map(drop));
    s.note("fstat", sys::fstat(&fd).map(|st| tree::describe(&st)));
    s.note("read", sys::pread(&fd, 100, 0));
    s.note("write", sys::pwrite(&fd, b"abc", 20));
    s.note("size", sys::fstat(&fd).map(|st| st.st_size));
    s.note("ftruncate", sys::ftruncate(&fd, 5));
    s.note("read then", sys::pread(&fd, 100, 0));
    s.note("grow", sys::ftruncate(&fd, 10_000));
    s.note("fallocate", sys::fallocate(&fd, 0, 0, 20_000));
    s.note("fchmod", sys::fchmod(&fd, 0o600));
    s.note("fchown", sys::fchown(&fd, 1, 1));
    s.note("futimens", sys::futimens(&fd, (5, 0), (6, 0)));
    s.note("fsync", sys::fsync(&fd));
    s.note("end", sys::lseek(&fd, 0, SEEK_END));
    s.note("in the end", sys::fstat(&fd).map(|st| (tree::describe(&st), st.st_mtime)));
    s.note("unlink again", sys::unlink(&f));
}

fn direct(s: &mut Side) {
    let f = s.file("f", &pattern(1, 8192));
    let fd = sys::open(&f, O_RDWR | O_DIRECT, 0).unwrap();
    sys::unlink(&f).unwrap();
    s.note("read", sys::pread_at_skew(&fd, 8192, 0, 0).map(|v| v == pattern(1, 8192)));
    s.note("write", sys::pwrite_at_skew(&fd, &[1; 4096], 8192, 0));
    s.note("size", sys::fstat(&fd).map(|st| st.st_size));
}

fn name_reused(s: &mut Side) {
    let f = s.file("f", b"old");
    let old = sys::open(&f, O_RDWR, 0).unwrap();
    sys::unlink(&f).unwrap();
    s.file("f", b"brand new");
    let new = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("old", sys::pread(&old, 100, 0));
    s.note("new", sys::pread(&new, 100, 0));
    s.note("write to old", sys::pwrite(&old, b"OLD", 0));
    s.note("new untouched", sys::pread(&new, 100, 0));
    s.note("links", (sys::fstat(&old).map(|x| x.st_nlink), sys::fstat(&new).map(|x| x.st_nlink)));
}

fn two_holders(s: &mut Side) {
    let f = s.file("f", b"shared");
    let (a, b) = (sys::open(&f, O_RDWR, 0).unwrap(), sys::open(&f, O_RDONLY, 0).unwrap());
    sys::unlink(&f).unwrap();
    s.note("write by one", sys::pwrite(&a, b"SHARED", 0));
    s.note("seen by the other", sys::pread(&b, 10, 0));
    drop(a);
    s.note("after the first left", sys::pread(&b, 10, 0));
    s.note("fstat", sys::fstat(&b).map(|st| (st.st_size, st.st_nlink)));
}

fn last_link(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::link(&f, s.p("g")).unwrap();
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    sys::unlink(&f).unwrap();
    s.note("one left", sys::fstat(&fd).map(|st| st.st_nlink));
    s.note("reached by the other name", sys::lstat(s.p("g")).map(|st| st.st_nlink));
    sys::unlink(s.p("g")).unwrap();
    s.note("none left", sys::fstat(&fd).map(|st| st.st_nlink));
    s.note("still read", sys::pread(&fd, 1, 0));
}

fn replaced(s: &mut Side) {
    let (a, b) = s.two();
    std::fs::write(&a, b"first").unwrap();
    let fd = sys::open(&a, O_RDWR, 0).unwrap();
    std::fs::write(&b, b"second").unwrap();
    sys::rename(&b, &a).unwrap();
    s.note("orphan by rename", sys::fstat(&fd).map(|st| (st.st_size, st.st_nlink)));
    s.note("truncate it", sys::ftruncate(&fd, 2));
    s.note("read it", sys::pread(&fd, 10, 0));
    s.note("the file", std::fs::read(&a).ok());
}

fn many(s: &mut Side) {
    let fds: Vec<_> = (0..64)
        .map(|i| {
            let f = s.file("same-name", &pattern(i, 3000));
            let fd = sys::open(&f, O_RDWR, 0).unwrap();
            sys::unlink(&f).unwrap();
            fd
        })
        .collect();
    let good = (0..64).filter(|i| sys::pread(&fds[*i as usize], 4000, 0) == Ok(pattern(*i, 3000)));
    let good = good.count();
    s.note("each has its own content", good);
}
