//! Listing directories: types, many names, changes while reading, positions.

use std::collections::BTreeSet;

use libc::*;

use super::{Side, parity};
use crate::common::dir::{self, Dir};
use crate::common::{ranked, sys};

parity!(
    types,
    dots,
    ten_thousand,
    unlink_while_reading,
    create_while_reading,
    positions,
    rewind,
    errors,
    after_rename,
    numbers_match,
    small_buffer
);

fn types(s: &mut Side) {
    s.file("file", b"x");
    s.dir("dir");
    sys::symlink("file", s.p("link")).unwrap();
    sys::mknod(s.p("fifo"), S_IFIFO | 0o644, 0).unwrap();
    sys::mknod(s.p("sock"), S_IFSOCK | 0o644, 0).unwrap();
    sys::mknod(s.p("char"), S_IFCHR | 0o644, makedev(1, 3)).unwrap();
    let list = dir::list(&s.root);
    s.note("names and types", list);
}

fn dots(s: &mut Side) {
    let d = s.dir("d");
    for path in [s.root.clone(), d] {
        let all = Dir::open(&path).unwrap().rest().unwrap();
        let count = |n: &str| all.iter().filter(|e| e.name == n && e.kind == DT_DIR).count();
        s.note("dots", (count("."), count("..")));
    }
}

fn ten_thousand(s: &mut Side) {
    let d = s.dir("d");
    for i in 0..10_000 {
        sys::create(d.join(ranked(i % 8, i))).unwrap();
    }
    let all = dir::list(&d).unwrap();
    let distinct: BTreeSet<_> = all.iter().map(|(n, _)| n).collect();
    s.note("each once", (all.len(), distinct.len()));
    s.note("all files", all.iter().all(|(_, kind)| *kind == DT_REG));
    s.note("by name", sys::lstat(d.join(ranked(7, 9999))).map(|st| st.st_size));
    for i in 0..10_000 {
        sys::unlink(d.join(ranked(i % 8, i))).unwrap();
    }
    s.note("empty", sys::rmdir(&d));
}

fn unlink_while_reading(s: &mut Side) {
    // rm -r: whatever is unlinked during the walk, the rest is still met once.
    let d = s.dir("d");
    for i in 0..3000 {
        sys::create(d.join(ranked(i % 4, i))).unwrap();
    }
    let mut stream = Dir::open(&d).unwrap();
    let mut seen = 0;
    while let Some(e) = stream.next().unwrap() {
        if e.name != "." && e.name != ".." {
            sys::unlink(d.join(&e.name)).unwrap();
            seen += 1;
        }
    }
    s.note("seen", seen);
    s.note("nothing left", dir::list(&d).map(|l| l.len()));
    s.note("rmdir", sys::rmdir(&d));
}

fn create_while_reading(s: &mut Side) {
    let d = s.dir("d");
    for i in 0..1000 {
        sys::create(d.join(ranked(i % 4, i))).unwrap();
    }
    let mut stream = Dir::open(&d).unwrap();
    let mut seen = BTreeSet::new();
    let (mut twice, mut made) = (0, 1000);
    while let Some(e) = stream.next().unwrap() {
        if !seen.insert(e.name.clone()) {
            twice += 1;
        }
        if made < 1200 {
            sys::create(d.join(ranked(made % 4, made))).unwrap();
            made += 1;
        }
    }
    let old = (0..1000).filter(|i| seen.contains(std::ffi::OsStr::new(&ranked(i % 4, *i)))).count();
    s.note("what was there is met, once", (old, twice));
    s.note("all are there after", dir::list(&d).map(|l| l.len()));
}

fn positions(s: &mut Side) {
    let d = s.dir("d");
    for i in 0..500 {
        sys::create(d.join(format!("n{i}"))).unwrap();
    }
    let mut stream = Dir::open(&d).unwrap();
    let mut marks = Vec::new();
    let mut order = Vec::new();
    loop {
        marks.push(stream.tell());
        match stream.next().unwrap() {
            Some(e) => order.push(e.name),
            None => break,
        }
    }
    s.note("entries", order.len());
    let mut right = 0;
    for at in [0, 1, 2, 100, 250, 333, 499, 501] {
        stream.seek(marks[at]);
        if stream.next().unwrap().map(|e| e.name).as_ref() == order.get(at) {
            right += 1;
        }
    }
    s.note("each position leads back", right);
    stream.seek(marks[10]);
    let rest: Vec<_> = stream.rest().unwrap().into_iter().map(|e| e.name).collect();
    s.note("the rest follows", rest == order[10..]);
}

fn rewind(s: &mut Side) {
    let d = s.dir("d");
    sys::create(d.join("a")).unwrap();
    let mut stream = Dir::open(&d).unwrap();
    s.note("first", stream.rest().map(|l| l.len()));
    sys::create(d.join(s.two().1.file_name().unwrap())).unwrap();
    sys::unlink(d.join("a")).unwrap();
    stream.rewind();
    let names: BTreeSet<_> = stream.rest().unwrap().into_iter().map(|e| e.name).collect();
    s.note("rewind sees the changes", names);
}

fn errors(s: &mut Side) {
    let f = s.file("f", b"x");
    s.note("file", Dir::open(&f).map(drop));
    s.note("nothing", Dir::open(s.p("no")).map(drop));
    let d = s.dir("d");
    sys::chmod(&d, 0o711).unwrap();
    let denied = crate::common::user::as_user(65534, 65534, || Dir::open(&d).map(drop));
    s.note("not readable", denied);
    let mut stream = Dir::open(&d).unwrap();
    sys::rmdir(&d).unwrap();
    s.note(
        "removed while open",
        stream.rest().map(|l| l.iter().filter(|e| e.name != "." && e.name != "..").count()),
    );
}

fn after_rename(s: &mut Side) {
    let (d, e) = (s.dir("d"), s.dir("e"));
    for i in 0..20 {
        sys::create(d.join(ranked(i, i))).unwrap();
    }
    for i in 0..10 {
        sys::rename(d.join(ranked(i, i)), e.join(ranked(i + 1, 100 + i))).unwrap();
    }
    s.note("from", dir::list(&d));
    s.note("to", dir::list(&e));
    s.note("move", sys::rename(&e, d.join("e")));
    s.note("after", dir::list(&d));
}

fn numbers_match(s: &mut Side) {
    for i in 0..50 {
        s.file(ranked(i, i), b"x");
    }
    s.dir("d");
    let all = Dir::open(&s.root).unwrap().rest().unwrap();
    let right = all
        .iter()
        .filter(|e| e.name != "." && e.name != "..")
        .filter(|e| sys::lstat(s.p(&e.name)).is_ok_and(|st| st.st_ino == e.ino))
        .count();
    s.note("d_ino is st_ino", right);
    let distinct: BTreeSet<_> = all.iter().map(|e| e.ino).collect();
    s.note("distinct numbers", distinct.len() >= 51);
}

fn small_buffer(s: &mut Side) {
    for i in 0..30 {
        s.file(format!("a-fairly-long-name-{i:0100}"), b"");
    }
    let fd = sys::open(&s.root, O_RDONLY | O_DIRECTORY, 0).unwrap();
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    let mut names = 0;
    loop {
        let mut buf = [0u8; 300];
        // SAFETY: the buffer is as long as said and outlives the call.
        let n = unsafe { syscall(SYS_getdents64, raw, buf.as_mut_ptr(), buf.len()) };
        if n <= 0 {
            s.note("ends with", n);
            break;
        }
        let mut at = 0;
        while at < n as usize {
            let len = usize::from(u16::from_le_bytes([buf[at + 16], buf[at + 17]]));
            names += usize::from(buf[at + 19] == b'a');
            at += len;
        }
    }
    s.note("all through a small buffer", names);
    let mut tiny = [0u8; 10];
    sys::lseek(&fd, 0, SEEK_SET).unwrap();
    // SAFETY: the buffer is as long as said and outlives the call.
    let n = unsafe { syscall(SYS_getdents64, raw, tiny.as_mut_ptr(), tiny.len()) };
    s.note("too small a buffer", (n, crate::common::Errno::last()));
}
