//! rename(2) and renameat2(2): over existing names, across directories and backings, of open
//! files, exchanged, refused.

use libc::*;

use super::{Side, parity};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, ranked, sys};

parity!(
    plain,
    over_existing,
    over_other_backing,
    of_open,
    over_open,
    across_directories,
    noreplace,
    exchange,
    directories,
    refused,
    sticky,
    publish,
    same_file,
    stamps,
    flags
);

fn plain(s: &mut Side) {
    let f = s.file("f", b"data");
    s.note("rename", sys::rename(&f, s.p("g")));
    s.note("old", sys::lstat(&f).map(drop));
    s.look("new", "g");
    s.note("missing", sys::rename(&f, s.p("h")));
}

fn over_existing(s: &mut Side) {
    s.file("f", b"new");
    s.file("g", b"old and longer");
    s.note("rename", sys::rename(s.p("f"), s.p("g")));
    s.look("after", "g");
    s.note("read", std::fs::read(s.p("g")).map_err(|e| e.kind()));
}

fn over_other_backing(s: &mut Side) {
    let (a, b) = s.two();
    for round in 0..3u8 {
        std::fs::write(&a, [round; 5000]).unwrap();
        std::fs::write(&b, [round + 100; 7000]).unwrap();
        s.note(format!("there {round}"), sys::rename(&a, &b));
        s.note(format!("content {round}"), std::fs::read(&b).map(|v| (v.len(), v[0])).map_err(|e| e.kind()));
        std::fs::write(&a, [round + 50; 10]).unwrap();
        s.note(format!("and back {round}"), sys::rename(&b, &a));
        s.note(
            format!("content back {round}"),
            std::fs::read(&a).map(|v| (v.len(), v[0])).map_err(|e| e.kind()),
        );
        s.note(format!("gone {round}"), sys::lstat(&b).map(drop));
    }
}

fn of_open(s: &mut Side) {
    let (a, b) = s.two();
    let fd = sys::create(&a).unwrap();
    sys::write(&fd, b"before").unwrap();
    s.note("rename", sys::rename(&a, &b));
    s.note("write on", sys::write(&fd, b" after"));
    s.note("fstat", sys::fstat(&fd).map(|st| (st.st_size, st.st_nlink)));
    s.note("fchmod", sys::fchmod(&fd, 0o600));
    s.note("read by the new name", std::fs::read(&b).map_err(|e| e.kind()));
    s.note("mode by the new name", sys::lstat(&b).map(|st| st.st_mode));
    s.note("recreate the old name", std::fs::write(&a, b"other").map_err(|e| e.kind()));
    s.note("the descriptor stays with the file", sys::pread(&fd, 100, 0));
}

fn over_open(s: &mut Side) {
    let (a, b) = s.two();
    std::fs::write(&a, b"new").unwrap();
    std::fs::write(&b, b"replaced").unwrap();
    let old = sys::open(&b, O_RDWR, 0).unwrap();
    s.note("rename", sys::rename(&a, &b));
    s.note("old content still there", sys::pread(&old, 100, 0));
    s.note("old links", sys::fstat(&old).map(|st| st.st_nlink));
    s.note("old can be written", sys::pwrite(&old, b"still", 0));
    s.note("the new is untouched", std::fs::read(&b).map_err(|e| e.kind()));
}

fn across_directories(s: &mut Side) {
    s.dir("tmp");
    s.dir("final");
    s.dir("final/sub");
    for i in 0..8 {
        let name = ranked(i, i);
        std::fs::write(s.p("tmp").join(&name), [i as u8; 300]).unwrap();
        s.note(format!("move {i}"), sys::rename(s.p("tmp").join(&name), s.p("final/sub").join(&name)));
    }
    s.note("tmp is empty", sys::rmdir(s.p("tmp")));
    s.note("final is not", sys::rmdir(s.p("final/sub")));
    s.note("up", sys::rename(s.p("final/sub").join(ranked(3, 3)), s.p("up")));
}

fn noreplace(s: &mut Side) {
    let (a, b) = s.two();
    std::fs::write(&a, b"a").unwrap();
    std::fs::write(&b, b"b").unwrap();
    s.note("onto existing", sys::renameat2(&a, &b, RENAME_NOREPLACE));
    s.note("onto nothing", sys::renameat2(&a, s.p("c"), RENAME_NOREPLACE));
    s.dir("d");
    s.note("onto a directory", sys::renameat2(s.p("c"), s.p("d"), RENAME_NOREPLACE));
    s.note("onto itself", sys::renameat2(&b, &b, RENAME_NOREPLACE));
    s.note("directory", sys::renameat2(s.p("d"), s.p("e"), RENAME_NOREPLACE));
}

fn exchange(s: &mut Side) {
    s.file("f", b"was f");
    s.file("g", b"was g!");
    s.note("two files", sys::renameat2(s.p("f"), s.p("g"), RENAME_EXCHANGE));
    s.look("f", "f");
    s.look("g", "g");
    s.note("with nothing", sys::renameat2(s.p("f"), s.p("no"), RENAME_EXCHANGE));
    s.note("nothing with it", sys::renameat2(s.p("no"), s.p("f"), RENAME_EXCHANGE));
    s.note("both flags", sys::renameat2(s.p("f"), s.p("g"), RENAME_EXCHANGE | RENAME_NOREPLACE));
}

fn directories(s: &mut Side) {
    s.dir("d");
    for i in 0..6 {
        std::fs::write(s.p("d").join(ranked(i, i)), [i as u8; 100]).unwrap();
    }
    s.dir("d/sub");
    s.file("d/sub/deep", b"deep");
    let fd = sys::open(s.p("d/sub/deep"), O_RDWR, 0).unwrap();
    s.note("rename with all in it", sys::rename(s.p("d"), s.p("e")));
    s.note("old", sys::lstat(s.p("d")).map(drop));
    s.note("deep", std::fs::read(s.p("e/sub/deep")).map_err(|e| e.kind()));
    s.note("open file goes on", sys::pwrite(&fd, b"DEEP", 0));
    for i in 0..6 {
        s.note(
            format!("file {i}"),
            std::fs::read(s.p("e").join(ranked(i, i))).map(|v| v == [i as u8; 100]).ok(),
        );
    }
    s.dir("empty");
    s.note("over an empty one", sys::rename(s.p("e"), s.p("empty")));
    s.dir("full");
    s.file("full/x", b"");
    let either = Err::<(), _>(Errno::ENOTEMPTY);
    s.note_or(
        "over a full one",
        sys::rename(s.p("empty"), s.p("full")),
        either,
        "POSIX allows EEXIST and ENOTEMPTY",
    );
    s.note("into itself", sys::rename(s.p("empty"), s.p("empty/sub/inside")));
    s.note("onto its parent", sys::rename(s.p("empty/sub"), s.p("empty")));
    s.dir("other");
    s.note("to another parent", sys::rename(s.p("empty/sub"), s.p("other/sub")));
    s.note("back over the empty place", sys::rename(s.p("other/sub"), s.p("empty/sub")));
    s.note("new files land", std::fs::write(s.p("empty").join(ranked(7, 77)), b"x").is_ok());
}

fn refused(s: &mut Side) {
    let f = s.file("f", b"x");
    let d = s.dir("d");
    s.note("file over directory", sys::rename(&f, &d));
    s.note("directory over file", sys::rename(&d, &f));
    s.note("missing", sys::rename(s.p("no"), s.p("x")));
    s.note("below nothing", sys::rename(&f, s.p("no/x")));
    s.note("below a file", sys::rename(&d, s.p("f/x")));
    s.note("trailing slash", sys::rename(&f, s.p("g/")));
    s.note("dot", sys::rename(s.p("d/."), s.p("x")));
    s.note("long", sys::rename(&f, s.p("n".repeat(256))));
    s.look("still there", "f");
}

fn sticky(s: &mut Side) {
    let d = s.dir("d");
    sys::chmod(&d, 0o1777).unwrap();
    std::fs::write(d.join("roots"), b"r").unwrap();
    sys::chmod(d.join("roots"), 0o666).unwrap();
    let nobody = |f: &(dyn Fn() -> sys::R<()> + Sync)| as_user(NOBODY, NOBODY, f);
    s.note("own file", nobody(&|| sys::create(d.join("mine")).map(drop)));
    s.note("rename own", nobody(&|| sys::rename(d.join("mine"), d.join("mine2"))));
    s.note("rename root's", nobody(&|| sys::rename(d.join("roots"), d.join("x"))));
    s.note("over root's", nobody(&|| sys::rename(d.join("mine2"), d.join("roots"))));
    s.note("unlink root's", nobody(&|| sys::unlink(d.join("roots"))));
    s.note("unlink own", nobody(&|| sys::unlink(d.join("mine2"))));
    sys::chmod(&d, 0o755).unwrap();
    s.note("no right in the directory", nobody(&|| sys::rename(d.join("roots"), d.join("x"))));
}

fn publish(s: &mut Side) {
    // Write under a temporary name, rename into place: what nearly every client does, many times over.
    for i in 0..50 {
        let name = ranked(i % 5, 7);
        let tmp = s.p(format!("{name}.tmp{i:08x}"));
        std::fs::write(&tmp, vec![i as u8; 1000 + i]).unwrap();
        s.note(format!("publish {i}"), sys::rename(&tmp, s.p(&name)));
        s.note(format!("read {i}"), std::fs::read(s.p(&name)).map(|v| (v.len(), v[0])).ok());
    }
}

fn same_file(s: &mut Side) {
    let f = s.file("f", b"x");
    s.note("onto itself", sys::rename(&f, &f));
    sys::link(&f, s.p("g")).unwrap();
    s.note("onto a link of itself", sys::rename(&f, s.p("g")));
    s.note("links", sys::lstat(&f).map(|st| st.st_nlink));
}

fn stamps(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::utimens(&f, (1000, 1), (2000, 2), 0).unwrap();
    sys::rename(&f, s.p("g")).unwrap();
    s.note("times kept", sys::lstat(s.p("g")).map(|st| (st.st_atime, st.st_mtime, st.st_mtime_nsec)));
    let (d, e) = (s.dir("d"), s.dir("e"));
    s.file("d/f", b"");
    for dir in [&d, &e] {
        sys::utimens(dir, (1000, 0), (1000, 0), 0).unwrap();
    }
    sys::rename(d.join("f"), e.join("f")).unwrap();
    s.note("both directories changed", [&d, &e].map(|d| sys::lstat(d).unwrap().st_mtime > 1000));
}

fn flags(s: &mut Side) {
    s.file("f", b"x");
    s.note("unknown flag", sys::renameat2(s.p("f"), s.p("g"), 1 << 20));
    s.look("untouched", "f");
}
