//! setuid and setgid: dropped when somebody changes the file, inherited from setgid directories.

use libc::*;

use super::{Side, parity};
use crate::common::sys;
use crate::common::user::{NOBODY, as_user};

parity!(
    write_by_user,
    truncate_by_user,
    chown_by_user,
    by_root,
    by_owner,
    open_trunc,
    mapped,
    setgid_directory
);

fn bits(s: &Side, name: &str) -> u32 {
    sys::lstat(s.p(name)).unwrap().st_mode & 0o7777
}

fn write_by_user(s: &mut Side) {
    for mode in [0o6777, 0o4777, 0o2777, 0o2767] {
        let name = format!("f{mode:o}");
        let f = s.file(&name, b"data");
        sys::chmod(&f, mode).unwrap();
        s.note(
            format!("write {mode:o}"),
            as_user(NOBODY, NOBODY, || sys::open(&f, O_WRONLY, 0).and_then(|fd| sys::write(&fd, b"D"))),
        );
        let left = format!("{:o}", bits(s, &name));
        let why =
            "a FUSE filesystem drops setgid only where the group may execute: elsewhere it means nothing";
        let kept = if mode & 0o010 == 0 { format!("{mode:o}") } else { left.clone() };
        s.note_or(format!("left of {mode:o}"), left, kept, why);
        sys::chmod(&f, 0o644).unwrap();
    }
}

fn truncate_by_user(s: &mut Side) {
    for (mode, len) in [(0o6777, 2), (0o6777, 10), (0o2777, 0)] {
        let name = format!("f{mode:o}-{len}");
        let f = s.file(&name, b"data");
        sys::chmod(&f, mode).unwrap();
        s.note(format!("truncate to {len}"), as_user(NOBODY, NOBODY, || sys::truncate(&f, len)));
        let left = bits(s, &name);
        s.note(format!("left of {mode:o} at {len}"), format!("{left:o}"));
    }
}

fn chown_by_user(s: &mut Side) {
    let f = s.file("f", b"data");
    sys::chown(&f, NOBODY, NOBODY).unwrap();
    sys::chmod(&f, 0o6755).unwrap();
    s.note("chown to itself", as_user(NOBODY, NOBODY, || sys::chown(&f, NOBODY, NOBODY)));
    let left = bits(s, "f");
    s.note("left", format!("{left:o}"));
}

fn by_root(s: &mut Side) {
    let why = "kvfs drops the bits for every caller: nothing in a cache may be setuid";
    for (what, dropped) in [("write", "755"), ("truncate", "755"), ("chown", "755")] {
        let f = s.file(what, b"data");
        sys::chmod(&f, 0o6755).unwrap();
        match what {
            "write" => drop(sys::open(&f, O_WRONLY, 0).and_then(|fd| sys::write(&fd, b"D")).unwrap()),
            "truncate" => sys::truncate(&f, 1).unwrap(),
            _ => sys::chown(&f, 1, 1).unwrap(),
        }
        let left = bits(s, what);
        s.note_or(format!("{what} leaves"), format!("{left:o}"), dropped, why);
        sys::chmod(&f, 0o644).unwrap();
    }
}

fn by_owner(s: &mut Side) {
    let f = s.file("f", b"data");
    sys::chown(&f, NOBODY, NOBODY).unwrap();
    sys::chmod(&f, 0o6755).unwrap();
    s.note(
        "the owner writes",
        as_user(NOBODY, NOBODY, || sys::open(&f, O_RDWR, 0).and_then(|fd| sys::pwrite(&fd, b"D", 9))),
    );
    let left = bits(s, "f");
    s.note("left", format!("{left:o}"));
    sys::chmod(&f, 0o6755).unwrap();
    s.note("the owner sets the mode", format!("{:o}", bits(s, "f")));
}

fn open_trunc(s: &mut Side) {
    let f = s.file("f", b"data");
    sys::chmod(&f, 0o6777).unwrap();
    s.note("O_TRUNC", as_user(NOBODY, NOBODY, || sys::open(&f, O_WRONLY | O_TRUNC, 0).map(drop)));
    let left = bits(s, "f");
    s.note("left", format!("{left:o}"));
}

fn mapped(s: &mut Side) {
    let f = s.file("f", &[0; 8192]);
    sys::chmod(&f, 0o6777).unwrap();
    s.note(
        "fallocate",
        as_user(NOBODY, NOBODY, || sys::open(&f, O_WRONLY, 0).and_then(|fd| sys::fallocate(&fd, 0, 0, 9000))),
    );
    let left = bits(s, "f");
    s.note("left after fallocate", format!("{left:o}"));
}

fn setgid_directory(s: &mut Side) {
    let d = s.dir("d");
    sys::chown(&d, 0, 4242).unwrap();
    sys::chmod(&d, 0o2777).unwrap();
    for who in [0, NOBODY] {
        let made = as_user(who, who, || {
            (
                sys::open(d.join(format!("file{who}")), O_RDWR | O_CREAT, 0o6775).map(drop),
                sys::mkdir(d.join(format!("dir{who}")), 0o755),
                sys::symlink("x", d.join(format!("link{who}"))),
                sys::mknod(d.join(format!("fifo{who}")), S_IFIFO | 0o644, 0),
            )
        });
        s.note(format!("made by {who}"), made);
        for kind in ["file", "dir", "link", "fifo"] {
            s.look(format!("{kind} of {who}"), format!("d/{kind}{who}"));
        }
        s.note(
            format!("deeper by {who}"),
            as_user(who, who, || sys::create(d.join(format!("dir{who}/deep"))).map(drop)),
        );
        s.look("deep", format!("d/dir{who}/deep"));
    }
}
