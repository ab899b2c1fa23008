//! Hard links, symbolic links and readlink.

use libc::*;

use super::{Side, parity};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, dir, sys};

parity!(hard, hard_across_names, hard_errors, one_inode, symbolic, symbolic_errors, publish_by_link);

fn hard(s: &mut Side) {
    let f = s.file("f", b"one");
    s.note("link", sys::link(&f, s.p("g")));
    s.look("f", "f");
    s.look("g", "g");
    std::fs::write(s.p("g"), b"two").unwrap();
    s.look("written through the other", "f");
    s.note("chmod", sys::chmod(s.p("g"), 0o600));
    s.look("seen on both", "f");
    s.note("unlink the first", sys::unlink(&f));
    s.look("the second", "g");
    s.note("link back", sys::link(s.p("g"), &f));
    s.look("first again", "f");
}

fn hard_across_names(s: &mut Side) {
    // The new name would be placed on the other backing if it were a new file.
    let (a, b) = s.two();
    std::fs::write(&a, b"data").unwrap();
    s.note("link", sys::link(&a, &b));
    s.note("nlink", sys::lstat(&b).map(|st| st.st_nlink));
    s.dir("d");
    s.note("into a directory", sys::link(&b, s.p("d/c")));
    s.note("nlink then", sys::lstat(&a).map(|st| st.st_nlink));
    s.note("content", std::fs::read(s.p("d/c")).map_err(|e| e.kind()));
    s.note("rename onto a link of itself", sys::rename(&a, &b));
    s.note("both stay", (sys::lstat(&a).map(|st| st.st_nlink), sys::lstat(&b).map(|st| st.st_nlink)));
}

fn hard_errors(s: &mut Side) {
    let f = s.file("f", b"x");
    s.file("g", b"y");
    let d = s.dir("d");
    s.note("existing", sys::link(&f, s.p("g")));
    s.note("directory", sys::link(&d, s.p("e")));
    s.note("missing", sys::link(s.p("no"), s.p("e")));
    s.note("below nothing", sys::link(&f, s.p("no/e")));
    s.note("below a file", sys::link(&f, s.p("g/e")));
    s.note("onto a directory", sys::link(&f, s.p("d")));
    s.note("long", sys::link(&f, s.p("n".repeat(256))));
    sys::symlink("f", s.p("l")).unwrap();
    s.note("of a symbolic link", sys::link(s.p("l"), s.p("l2")));
    s.note("it is a link", sys::readlink(s.p("l2")));
    sys::chmod(&s.root, 0o777).unwrap();
    s.note(
        "of root's file by a user",
        as_user(NOBODY, NOBODY, || sys::link(&f, s.p("theirs"))).map_err(|e| {
            // Which one depends on fs.protected_hardlinks, the same on both sides.
            e == Errno::EPERM || e == Errno::EACCES
        }),
    );
}

fn one_inode(s: &mut Side) {
    let f = s.file("f", b"x");
    sys::link(&f, s.p("g")).unwrap();
    s.file("h", b"x");
    let ino = |n: &str| sys::lstat(s.p(n)).unwrap().st_ino;
    let (fi, gi, hi) = (ino("f"), ino("g"), ino("h"));
    s.note("links share a number", fi == gi);
    s.note("others don't", fi != hi);
    let listed = dir::Dir::open(&s.root).unwrap().rest().unwrap();
    let of = |n: &str| listed.iter().find(|e| e.name == n).map(|e| e.ino);
    s.note("readdir agrees", (of("f") == Some(fi), of("g") == Some(gi), of("h") == Some(hi)));
    let fd = sys::open(s.p("g"), O_RDONLY, 0).unwrap();
    s.note("fstat agrees", sys::fstat(&fd).unwrap().st_ino == fi);
}

fn symbolic(s: &mut Side) {
    for (name, target) in
        [("a", "f"), ("b", "../elsewhere"), ("c", "/absolute/path"), ("d", "with space\nand line")]
    {
        s.note(format!("symlink {name}"), sys::symlink(target, s.p(name)));
        s.note(format!("readlink {name}"), sys::readlink(s.p(name)));
        s.note(format!("length of {name}"), sys::lstat(s.p(name)).map(|st| st.st_size));
    }
    let long = "x/".repeat(1000);
    s.note("long target", sys::symlink(&long, s.p("long")));
    s.note("read back", sys::readlink(s.p("long")).map(|t| t.as_os_str() == long.as_str()));
    s.file("f", b"here");
    s.note("through it", std::fs::read(s.p("a")).map_err(|e| e.kind()));
    s.note("a chmod goes to the target", sys::chmod(s.p("a"), 0o640));
    s.look("target", "f");
    s.note("lchown stays on the link", sys::lchown(s.p("a"), 1, 2));
    s.look("link", "a");
    s.dir("dir");
    sys::symlink("dir", s.p("ld")).unwrap();
    s.note("create below a link", sys::create(s.p("ld/new")).map(drop));
    s.note("it is there", sys::lstat(s.p("dir/new")).map(|st| st.st_size));
    s.note("rmdir of the link", sys::rmdir(s.p("ld")));
    s.note("unlink of the link", sys::unlink(s.p("ld")));
}

fn symbolic_errors(s: &mut Side) {
    s.file("f", b"x");
    s.note("existing", sys::symlink("t", s.p("f")));
    s.note("empty target", sys::symlink("", s.p("e")));
    s.note("too long", sys::symlink("x".repeat(5000), s.p("e")));
    s.note("below nothing", sys::symlink("t", s.p("no/e")));
    s.note("readlink of a file", sys::readlink(s.p("f")));
    s.note("readlink of nothing", sys::readlink(s.p("no")));
}

fn publish_by_link(s: &mut Side) {
    // NIXL's native plugin publishes with link and unlink instead of rename.
    let tmp = s.file("chunk.tmp.1", &[3; 10_000]);
    s.note("link", sys::link(&tmp, s.p("chunk")));
    s.note("unlink", sys::unlink(&tmp));
    s.note("again", sys::link(s.p("chunk"), s.p("chunk")));
    s.look("chunk", "chunk");
}
