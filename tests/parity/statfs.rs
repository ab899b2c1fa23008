//! statfs: what a client computes with has to be there; the sums are the business of the promises.

use super::{Side, parity};
use crate::common::sys;

parity!(fields, any_path, errors, writing_takes_space);

fn fields(s: &mut Side) {
    let st = sys::statvfs(&s.root).unwrap();
    s.note("longest name", st.f_namemax);
    s.note("sizes make sense", (st.f_frsize >= 512, st.f_bsize >= 512, st.f_blocks > 0));
    s.note("free is not more than all", st.f_bfree <= st.f_blocks && st.f_bavail <= st.f_bfree);
    s.note("some is free", st.f_bavail > 0);
    s.note("writable", st.f_flag & libc::ST_RDONLY);
}

fn any_path(s: &mut Side) {
    s.file("f", b"x");
    s.dir("d");
    let root = sys::statvfs(&s.root).unwrap();
    for name in ["f", "d"] {
        let st = sys::statvfs(s.p(name)).unwrap();
        s.note(
            name,
            (st.f_blocks == root.f_blocks, st.f_bsize == root.f_bsize, st.f_frsize == root.f_frsize),
        );
    }
}

fn errors(s: &mut Side) {
    s.file("f", b"x");
    s.note("missing", sys::statvfs(s.p("no")).map(drop));
    s.note("below a file", sys::statvfs(s.p("f/x")).map(drop));
}

fn writing_takes_space(s: &mut Side) {
    let free = |s: &Side| {
        let st = sys::statvfs(&s.root).unwrap();
        st.f_bfree as u128 * st.f_frsize as u128
    };
    let before = free(s);
    let fd = sys::create(s.p("f")).unwrap();
    sys::write(&fd, &vec![1; 8 << 20]).unwrap();
    sys::fsync(&fd).unwrap();
    let taken = before - free(s);
    s.note("eight megabytes are gone", (8 << 20..12 << 20).contains(&taken));
}
