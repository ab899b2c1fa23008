//! Copies the kernel makes: copy_file_range, sendfile and splice, on one backing and across two.

use libc::*;

use super::{Side, parity};
use crate::common::{pattern, sys, tree};

parity!(copy_within, copy_across, copy_edges, send, splicing);

fn all(from: &std::os::fd::OwnedFd, to: &std::os::fd::OwnedFd, len: usize) -> sys::R<usize> {
    let mut done = 0;
    while done < len {
        match sys::copy_file_range(from, done as i64, to, done as i64, len - done)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

fn copy_within(s: &mut Side) {
    let f = s.file("f", &pattern(1, 300_000));
    let (a, b) = (sys::open(&f, O_RDONLY, 0).unwrap(), sys::create(s.p("copy-of-f")).unwrap());
    s.note("copy", all(&a, &b, 300_000));
    s.note("same", std::fs::read(s.p("copy-of-f")).unwrap() == pattern(1, 300_000));
    let rw = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("inside one file", sys::copy_file_range(&rw, 0, &rw, 200_000, 50_000));
    s.note("overlapping", sys::copy_file_range(&rw, 0, &rw, 100, 1000));
    s.look("after", "f");
}

fn copy_across(s: &mut Side) {
    let (pa, pb) = s.two();
    std::fs::write(&pa, pattern(2, 1_000_000)).unwrap();
    let (a, b) = (sys::open(&pa, O_RDONLY, 0).unwrap(), sys::create(&pb).unwrap());
    s.note("copy", all(&a, &b, 1_000_000));
    s.note("same", std::fs::read(&pb).unwrap() == pattern(2, 1_000_000));
    s.note("cp", std::fs::copy(&pb, s.p("third")).ok());
    s.note("cp is right", std::fs::read(s.p("third")).unwrap() == pattern(2, 1_000_000));
}

fn copy_edges(s: &mut Side) {
    let f = s.file("f", b"0123456789");
    let (r, w) = (sys::open(&f, O_RDONLY, 0).unwrap(), sys::create(s.p("g")).unwrap());
    s.note("past the end", sys::copy_file_range(&r, 100, &w, 0, 10));
    s.note("over the end", sys::copy_file_range(&r, 5, &w, 0, 100));
    s.note("nothing", sys::copy_file_range(&r, 0, &w, 0, 0));
    s.note("into a reader", sys::copy_file_range(&w, 0, &r, 0, 5));
    let append = sys::open(s.p("g"), O_WRONLY | O_APPEND, 0).unwrap();
    s.note("into an appender", sys::copy_file_range(&r, 0, &append, 0, 5));
    let d = sys::open(s.dir("d"), O_RDONLY, 0).unwrap();
    s.note("from a directory", sys::copy_file_range(&d, 0, &w, 0, 5));
    s.look("after", "g");
}

fn send(s: &mut Side) {
    let f = s.file("f", &pattern(3, 200_000));
    let (r, w) = (sys::open(&f, O_RDONLY, 0).unwrap(), sys::create(s.p("g")).unwrap());
    let mut done = 0;
    while done < 200_000 {
        match sys::sendfile(&w, &r, done as i64, 200_000 - done) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) => {
                s.note("sendfile", e);
                break;
            }
        }
    }
    s.note("sent", done);
    s.note("same", std::fs::read(s.p("g")).unwrap() == pattern(3, 200_000));
    let (pr, pw) = sys::pipe().unwrap();
    s.note("to a pipe", sys::sendfile(&pw, &r, 100, 4096));
    s.note("from the pipe", sys::read(&pr, 4096).map(|v| v == pattern(3, 200_000)[100..4196]));
}

fn splicing(s: &mut Side) {
    let f = s.file("f", &pattern(4, 16_384));
    let (r, w) = (sys::open(&f, O_RDONLY, 0).unwrap(), sys::create(s.p("g")).unwrap());
    let (pr, pw) = sys::pipe().unwrap();
    for at in [0, 4096, 8192, 12_288] {
        s.note(format!("out {at}"), sys::splice(&r, Some(at), &pw, None, 4096));
        s.note(format!("in {at}"), sys::splice(&pr, None, &w, Some(at), 4096));
    }
    s.note("at the end", sys::splice(&r, Some(16_384), &pw, None, 4096));
    s.note("copied", std::fs::read(s.p("g")).map(|v| tree::digest(&v)).ok());
}
