//! read, write and their relatives: at, over and past the end, in pieces, large and small.

use libc::*;

use super::{Side, parity};
use crate::common::{pattern, sys, tree};

parity!(at_eof, past_eof, vectors, sizes, two_descriptors, positions, large, wrong_mode, many_files);

fn at_eof(s: &mut Side) {
    let f = s.file("f", b"0123456789");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("over the end", sys::pread(&fd, 100, 5));
    s.note("at the end", sys::pread(&fd, 100, 10));
    s.note("past the end", sys::pread(&fd, 100, 1000));
    s.note("nothing", sys::pread(&fd, 0, 0));
    s.note("negative", sys::pread(&fd, 1, -1));
    s.note("write at the end", sys::pwrite(&fd, b"abc", 10));
    s.note("read it", sys::pread(&fd, 100, 8));
    s.note("write nothing", sys::pwrite(&fd, b"", 500));
    s.note("size", sys::fstat(&fd).map(|st| st.st_size));
    s.note("negative write", sys::pwrite(&fd, b"x", -1));
}

fn past_eof(s: &mut Side) {
    let f = s.file("f", b"head");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("far write", sys::pwrite(&fd, b"tail", 100_000));
    s.note("size", sys::fstat(&fd).map(|st| st.st_size));
    s.note("the gap", sys::pread(&fd, 99_996, 4).map(|v| (v.len(), v.iter().all(|b| *b == 0))));
    s.note("the tail", sys::pread(&fd, 10, 99_998));
    s.note("very far", sys::pwrite(&fd, b"x", (1 << 40) - 1));
    s.note("size then", sys::fstat(&fd).map(|st| st.st_size));
    s.note("too far", sys::pwrite(&fd, b"x", i64::MAX - 1));
    sys::ftruncate(&fd, 200_000).unwrap();
}

fn vectors(s: &mut Side) {
    let fd = sys::create(s.p("f")).unwrap();
    s.note("writev", sys::writev(&fd, &[b"one ", b"", b"two ", &pattern(3, 9000)]));
    s.note("position", sys::lseek(&fd, 0, SEEK_CUR));
    sys::lseek(&fd, 0, SEEK_SET).unwrap();
    s.note("readv", sys::readv(&fd, &[3, 5000, 1, 9000]).map(|v| tree::digest(&v)));
    s.note("readv at the end", sys::readv(&fd, &[3, 3]));
}

fn sizes(s: &mut Side) {
    for len in [1, 511, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1 << 20, (1 << 20) + 1] {
        let fd = sys::create(s.p(format!("f{len}"))).unwrap();
        let data = pattern(len as u64, len);
        s.note(format!("write {len}"), sys::write(&fd, &data));
        s.note(format!("read {len}"), sys::pread(&fd, len + 1, 0).map(|v| v == data));
        s.note(
            format!("middle of {len}"),
            sys::pread(&fd, len, (len / 2) as i64).map(|v| v == data[len / 2..]),
        );
        s.note(format!("overwrite {len}"), sys::pwrite(&fd, &[0xaa], (len / 3) as i64));
    }
}

fn two_descriptors(s: &mut Side) {
    let a = sys::create(s.p("f")).unwrap();
    let b = sys::open(s.p("f"), O_RDWR, 0).unwrap();
    let c = sys::open(s.p("f"), O_RDONLY, 0).unwrap();
    for i in 0..20u8 {
        let at = i64::from(i) * 1000;
        sys::pwrite(if i % 2 == 0 { &a } else { &b }, &[i; 1500], at).unwrap();
        s.note(format!("round {i}"), sys::pread(&c, 3000, at).map(|v| tree::digest(&v)));
        s.note(format!("size {i}"), sys::fstat(&c).map(|st| st.st_size));
        s.note(format!("size by name {i}"), sys::lstat(s.p("f")).map(|st| st.st_size));
    }
    drop((a, b));
    s.note("after the writers left", sys::pread(&c, 30_000, 0).map(|v| tree::digest(&v)));
}

fn positions(s: &mut Side) {
    let f = s.file("f", b"0123456789");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("read", sys::read(&fd, 4));
    s.note("read on", sys::read(&fd, 4));
    s.note("end", sys::lseek(&fd, 0, SEEK_END));
    s.note("past", sys::lseek(&fd, 5, SEEK_END));
    s.note("read past", sys::read(&fd, 4));
    s.note("negative", sys::lseek(&fd, -100, SEEK_CUR));
    s.note("bad whence", sys::lseek(&fd, 0, 99));
    s.note("write there", sys::write(&fd, b"x"));
    s.note("where", sys::lseek(&fd, 0, SEEK_CUR));
}

fn large(s: &mut Side) {
    // A chunk of a real cache: 16 MiB in one call, as the clients do it.
    let data = pattern(5, 16 << 20);
    let fd = sys::create(s.p("f")).unwrap();
    s.note("one write", sys::write(&fd, &data));
    s.note("one read", sys::pread(&fd, data.len() + 1, 0).map(|v| v == data));
    let direct = s.fd("direct", sys::open(s.p("g"), O_RDWR | O_CREAT | O_DIRECT, 0o644));
    if let Some(fd) = direct {
        s.note("one direct write", sys::pwrite_at_skew(&fd, &data, 0, 0));
        s.note("one direct read", sys::pread_at_skew(&fd, data.len(), 0, 0).map(|v| v == data));
    }
}

fn wrong_mode(s: &mut Side) {
    let f = s.file("f", b"x");
    let (r, w) = (sys::open(&f, O_RDONLY, 0).unwrap(), sys::open(&f, O_WRONLY, 0).unwrap());
    s.note("write on a reader", sys::write(&r, b"y"));
    s.note("read on a writer", sys::read(&w, 1));
    s.note("truncate on a reader", sys::ftruncate(&r, 0));
    s.note("truncate on a writer", sys::ftruncate(&w, 0));
}

fn many_files(s: &mut Side) {
    let fds: Vec<_> = (0..200)
        .map(|i| {
            let fd = sys::create(s.p(format!("chunk{i}"))).unwrap();
            sys::write(&fd, &pattern(i, 5000)).unwrap();
            fd
        })
        .collect();
    let good =
        fds.iter().enumerate().filter(|(i, fd)| sys::pread(fd, 6000, 0) == Ok(pattern(*i as u64, 5000)));
    let good = good.count();
    s.note("all as written", good);
}
