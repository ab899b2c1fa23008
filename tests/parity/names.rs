//! Names: every byte that is allowed, the longest, one too long, and long paths.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{Side, parity};
use crate::common::{dir, sys};

parity!(every_byte, not_utf8, lengths, long_paths, dots, alike);

fn every_byte(s: &mut Side) {
    for byte in (1..=255u8).filter(|b| *b != b'/') {
        let name = [b'n', byte, b'n'];
        let made = sys::create(s.p(OsStr::from_bytes(&name))).and_then(|fd| sys::write(&fd, &[byte]));
        if made != Ok(1) {
            s.note(format!("byte {byte}"), made);
        }
    }
    s.note("listed", dir::list(&s.root).map(|l| l.len()));
    s.note("read back", std::fs::read(s.p(OsStr::from_bytes(b"n\xffn"))).ok());
}

fn not_utf8(s: &mut Side) {
    let (a, b) = (OsStr::from_bytes(b"\xff\xfe-a"), OsStr::from_bytes(b"\x80\xc3"));
    s.note("create", sys::create(s.p(a)).map(drop));
    s.note("rename", sys::rename(s.p(a), s.p(b)));
    s.note("mkdir", sys::mkdir(s.p(a), 0o755));
    s.note("inside", sys::create(s.p(a).join(b)).map(drop));
    s.note("link target", sys::symlink(b, s.p("l")));
    s.note("readlink", sys::readlink(s.p("l")));
    s.note("list", dir::list(&s.root));
}

fn lengths(s: &mut Side) {
    for len in [1, 254, 255, 256, 300, 1000] {
        let name = "n".repeat(len);
        s.note(format!("create {len}"), sys::create(s.p(&name)).map(drop));
        s.note(format!("stat {len}"), sys::lstat(s.p(&name)).map(drop));
        s.note(format!("mkdir {len}"), sys::mkdir(s.p("d".repeat(len)), 0o755));
        s.note(format!("rename {len}"), sys::rename(s.p(&name), s.p("m".repeat(len))));
        s.note(format!("unlink {len}"), sys::unlink(s.p("m".repeat(len))));
    }
    let wide = "ü".repeat(127);
    s.note("254 bytes of two each", sys::create(s.p(&wide)).map(drop));
}

fn long_paths(s: &mut Side) {
    let mut path = s.root.clone();
    for i in 0..12 {
        path.push(format!("{i:0>250}"));
        s.note(format!("level {i}"), sys::mkdir(&path, 0o755));
    }
    s.note("file at the bottom", std::fs::write(path.join("f"), b"deep").is_ok());
    s.note("read", std::fs::read(path.join("f")).ok());
    s.note("a path too long", sys::lstat(s.p("x/".repeat(2100))).map(drop));
}

fn dots(s: &mut Side) {
    for name in ["...", "..a", ".hidden", "a.", ".kvf", ".kvfsx", "kvfs-x"] {
        s.note(format!("create {name}"), sys::create(s.p(name)).map(drop));
    }
    s.note("dot", sys::lstat(s.p(".")).map(drop));
    s.note("dot dot slash", sys::lstat(s.p("../")).map(drop));
    s.note("create dot", sys::mkdir(s.p("."), 0o755));
    s.note("create dot dot", sys::mkdir(s.p(".."), 0o755));
    s.note("empty", sys::create("").map(drop));
}

fn alike(s: &mut Side) {
    // Names that differ only in case or in Unicode form are different names.
    for name in ["chunk", "Chunk", "CHUNK", "\u{e9}", "e\u{301}"] {
        s.note(format!("create {name}"), std::fs::write(s.p(name), name).is_ok());
    }
    s.note("all there", dir::list(&s.root).map(|l| l.len()));
    s.note("own content", std::fs::read(s.p("Chunk")).ok());
}
