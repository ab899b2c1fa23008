//! flock, POSIX and open-file-description locks, within and between processes.

use libc::*;

use super::{Side, parity};
use crate::common::sys;
use crate::common::user::in_child;

parity!(
    flock_one_process,
    flock_two_processes,
    posix_two_processes,
    posix_ranges,
    posix_lost_on_close,
    ofd,
    on_read_only
);

fn flock_one_process(s: &mut Side) {
    let f = s.file("f", b"x");
    let (a, b) = (sys::open(&f, O_RDWR, 0).unwrap(), sys::open(&f, O_RDWR, 0).unwrap());
    s.note("exclusive", sys::flock(&a, LOCK_EX | LOCK_NB));
    s.note("second exclusive", sys::flock(&b, LOCK_EX | LOCK_NB));
    s.note("second shared", sys::flock(&b, LOCK_SH | LOCK_NB));
    s.note("downgrade", sys::flock(&a, LOCK_SH | LOCK_NB));
    s.note("both shared", sys::flock(&b, LOCK_SH | LOCK_NB));
    s.note("upgrade", sys::flock(&b, LOCK_EX | LOCK_NB));
    s.note("unlock", sys::flock(&a, LOCK_UN));
    s.note("upgrade then", sys::flock(&b, LOCK_EX | LOCK_NB));
    drop(b);
    s.note("freed by close", sys::flock(&a, LOCK_EX | LOCK_NB));
}

fn flock_two_processes(s: &mut Side) {
    let f = s.file("f", b"x");
    let a = sys::open(&f, O_RDWR, 0).unwrap();
    let theirs = || {
        in_child(|| {
            let fd = sys::open(&f, O_RDWR, 0).unwrap();
            format!("{:?}", sys::flock(&fd, LOCK_EX | LOCK_NB))
        })
    };
    s.note("free", theirs());
    sys::flock(&a, LOCK_EX).unwrap();
    s.note("held", theirs());
    sys::flock(&a, LOCK_UN).unwrap();
    s.note("given back", theirs());
    s.note("gone with the child", sys::flock(&a, LOCK_EX | LOCK_NB));
}

fn posix_two_processes(s: &mut Side) {
    let f = s.file("f", b"0123456789");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    let theirs = |kind: i32, at: i64, len: i64| {
        in_child(|| {
            let fd = sys::open(&f, O_RDWR, 0).unwrap();
            let seen = sys::record_lock(&fd, F_GETLK, kind, at, len);
            format!("{seen:?} {:?}", sys::record_lock(&fd, F_SETLK, kind, at, len))
        })
    };
    s.note("free", theirs(F_WRLCK, 0, 0));
    s.note("write lock", sys::record_lock(&fd, F_SETLK, F_WRLCK, 0, 5));
    s.note("same range", theirs(F_WRLCK, 0, 5));
    s.note("to read", theirs(F_RDLCK, 4, 1));
    s.note("beside it", theirs(F_WRLCK, 5, 5));
    s.note("read lock", sys::record_lock(&fd, F_SETLK, F_RDLCK, 0, 5));
    s.note("shared", theirs(F_RDLCK, 0, 5));
    s.note("but not to write", theirs(F_WRLCK, 0, 5));
    s.note("unlock", sys::record_lock(&fd, F_SETLK, F_UNLCK, 0, 0));
    s.note("free again", theirs(F_WRLCK, 0, 0));
}

fn posix_ranges(s: &mut Side) {
    let f = s.file("f", &[0; 100]);
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    s.note("whole", sys::record_lock(&fd, F_SETLK, F_WRLCK, 0, 0));
    s.note("a hole in it", sys::record_lock(&fd, F_SETLK, F_UNLCK, 40, 20));
    let map = in_child(|| {
        let fd = sys::open(&f, O_RDWR, 0).unwrap();
        (0..10).map(|i| sys::record_lock(&fd, F_SETLK, F_WRLCK, i * 10, 10).map_or('-', |_| '+')).collect()
    });
    s.note("what another can lock", map);
    s.note("negative", sys::record_lock(&fd, F_SETLK, F_WRLCK, -1, 1));
}

fn posix_lost_on_close(s: &mut Side) {
    let f = s.file("f", b"x");
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    sys::record_lock(&fd, F_SETLK, F_WRLCK, 0, 0).unwrap();
    let theirs = || {
        in_child(|| {
            let fd = sys::open(&f, O_RDWR, 0).unwrap();
            format!("{:?}", sys::record_lock(&fd, F_SETLK, F_WRLCK, 0, 0))
        })
    };
    s.note("held", theirs());
    drop(sys::open(&f, O_RDONLY, 0).unwrap());
    s.note("lost by closing any descriptor", theirs());
}

fn ofd(s: &mut Side) {
    let f = s.file("f", b"x");
    let (a, b) = (sys::open(&f, O_RDWR, 0).unwrap(), sys::open(&f, O_RDWR, 0).unwrap());
    s.note("first", sys::record_lock(&a, F_OFD_SETLK, F_WRLCK, 0, 0));
    s.note("second", sys::record_lock(&b, F_OFD_SETLK, F_WRLCK, 0, 0));
    s.note("seen", sys::record_lock(&b, F_OFD_GETLK, F_WRLCK, 0, 0));
    drop(a);
    s.note("then", sys::record_lock(&b, F_OFD_SETLK, F_WRLCK, 0, 0));
}

fn on_read_only(s: &mut Side) {
    let f = s.file("f", b"x");
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    s.note("write lock on a reader", sys::record_lock(&fd, F_SETLK, F_WRLCK, 0, 0));
    s.note("read lock on a reader", sys::record_lock(&fd, F_SETLK, F_RDLCK, 0, 0));
    s.note("flock exclusive on a reader", sys::flock(&fd, LOCK_EX | LOCK_NB));
}
