//! A drive that doesn't answer: its file system is frozen, so that every change of it waits.

use std::fs::File;
use std::thread::JoinHandle;
use std::time::Instant;

use super::frozen::Frozen;
use super::{LEN, Load, Server, check, put, read_errno};
use crate::common::{Errno, FsKind, Passthrough, R, ns, sys};

/// Requests that wait for drive 1 in the daemon, more than it has threads, each on a thread of its own.
fn stuck(server: &Server) -> Vec<JoinHandle<R<()>>> {
    let kept = |i| server.kept(1, i);
    let (chmod, utimes, truncate, xattr) = (kept(0), kept(1), kept(2), kept(3));
    let mut all = vec![
        std::thread::spawn(move || sys::chmod(chmod, 0o600)),
        std::thread::spawn(move || sys::utimens(utimes, (5, 5), (5, 5), 0)),
        std::thread::spawn(move || sys::truncate(truncate, LEN as i64)),
        std::thread::spawn(move || sys::setxattr(xattr, "user.k", b"v", 0)),
    ];
    for n in 0..4 {
        let path = server.mount.path(format!("own{n}/{}", crate::common::ranked(1, 500 + n)));
        let create =
            move || File::create(path).map(drop).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap()));
        all.push(std::thread::spawn(create));
    }
    all
}

#[test]
fn the_kernel_reads_and_writes() {
    hangs_and_answers_again(FsKind::Xfs, Passthrough::Auto);
    hangs_and_answers_again(FsKind::Ext4, Passthrough::Auto);
}

#[test]
fn the_daemon_reads_and_writes() {
    hangs_and_answers_again(FsKind::Xfs, Passthrough::Off);
    hangs_and_answers_again(FsKind::Ext4, Passthrough::Off);
}

fn hangs_and_answers_again(kind: FsKind, mode: Passthrough) {
    let server = Server::with(kind, |m| m.passthrough(mode).arg("--threads=2").arg("--drive-timeout=2"));
    server.fill();
    (0..4).for_each(|n| std::fs::create_dir(server.mount.path(format!("own{n}"))).unwrap());
    let load = Load::start(server.mount.point(), 3);
    // A client whose data the kernel moves is in the kernel's hands: see below.
    load.rest(1, true);
    let open = sys::open(server.kept(1, 0), libc::O_RDWR, 0).unwrap();
    let frozen = Frozen::new(&server.volumes[1]);
    let stuck = stuck(&server);
    // At once, though every thread that answers is taken.
    [0, 2].iter().for_each(|rank| load.goes_on(*rank));
    let hung = server.until(1, "hung");
    assert!(hung["health"]["advice"].as_str().unwrap().contains("as soon as it answers"), "{hung:#}");
    for (n, client) in stuck.into_iter().enumerate() {
        let answer = client.join().unwrap();
        // A create that comes to its turn only now goes elsewhere.
        assert!(answer == Err(Errno::EIO) || n >= 4 && answer.is_ok(), "request {n}: {answer:?}");
    }
    // From here on it's refused at once.
    assert_eq!(read_errno(&server.kept(1, 0)), Some(libc::EIO));
    assert_eq!(sys::fsync(&open), Err(Errno::EIO));
    assert_eq!(sys::chmod(server.kept(1, 0), 0o600), Err(Errno::EIO));
    let writing = match mode {
        // The kernel waits for the drive on the client's behalf, and nobody else waits.
        Passthrough::Auto => {
            Some(std::thread::spawn(move || sys::pwrite(&open, b"in the kernel's hands", 0)))
        }
        Passthrough::Off => {
            assert_eq!(sys::pwrite(&open, b"x", 0), Err(Errno::EIO));
            drop(open);
            None
        }
    };
    server.new_files_go_elsewhere(1);
    server.others_are_as_before(1);
    load.rest(1, false);
    (0..3).for_each(|rank| load.goes_on(rank));
    assert_eq!(server.logged(&["WARN", "doesn't answer"]), 1, "{}", server.mount.story());
    assert_eq!(server.logged(&["WARN"]), 1, "no line for each request:\n{}", server.mount.story());
    drop(frozen);
    server.until(1, "rw");
    if let Some(writing) = writing {
        assert_eq!(writing.join().unwrap(), Ok(21));
        put(&server.kept(1, 0), 10, LEN);
    }
    (0..4).for_each(|i| check(&server.kept(1, i), 10 + i as u64, LEN));
    (0..3).for_each(|rank| load.goes_on(rank));
    for rank in [0, 2] {
        assert_eq!(load.errors(rank), [] as [i32; 0], "clients of the others met nothing");
    }
    assert_eq!(server.logged(&["ERROR"]), 0, "{}", server.mount.story());
    drop(load);
    // Nothing is kept open of what was given up.
    let deadline = Instant::now() + ns::HANG;
    while server.mount.status()["open_files"] != 0 {
        assert!(Instant::now() < deadline, "files stay open: {:#}", server.mount.status());
    }
    let seen = crate::common::tree::snapshot(server.mount.point());
    let server = server.restarted();
    assert_eq!(crate::common::tree::snapshot(server.mount.point()), seen);
}

/// Data that comes to the daemon: what was under way is answered too.
#[test]
fn writes_that_were_under_way_are_answered() {
    let server = Server::with(FsKind::Xfs, |m| {
        m.passthrough(Passthrough::Off).arg("--threads=2").arg("--drive-timeout=2")
    });
    server.fill();
    let open: Vec<_> = (0..4).map(|i| sys::open(server.kept(1, i), libc::O_RDWR, 0).unwrap()).collect();
    let frozen = Frozen::new(&server.volumes[1]);
    let writers: Vec<_> =
        open.into_iter().map(|fd| std::thread::spawn(move || (sys::pwrite(&fd, b"late", 0), fd))).collect();
    let open: Vec<_> = writers
        .into_iter()
        .map(|writer| {
            let (written, fd) = writer.join().unwrap();
            assert_eq!(written, Err(Errno::EIO));
            fd
        })
        .collect();
    server.until(1, "hung");
    server.others_are_as_before(1);
    drop(frozen);
    server.until(1, "rw");
    for fd in &open {
        sys::pwrite(fd, b"again", 0).unwrap();
        assert_eq!(sys::pread(fd, 5, 0).unwrap(), b"again");
    }
}

/// A pause that's shorter than the deadline is none of anybody's business.
#[test]
fn a_short_freeze_is_waited_for() {
    let server = Server::with(FsKind::Ext4, |m| m.arg("--threads=2").arg("--drive-timeout=3600"));
    server.fill();
    (0..4).for_each(|n| std::fs::create_dir(server.mount.path(format!("own{n}"))).unwrap());
    let load = Load::start(server.mount.point(), 3);
    load.rest(1, true);
    let frozen = Frozen::new(&server.volumes[1]);
    let stuck = stuck(&server);
    [0, 2].iter().for_each(|rank| load.goes_on(*rank));
    drop(frozen);
    for client in stuck {
        assert_eq!(client.join().unwrap(), Ok(()));
    }
    load.rest(1, false);
    (0..3).for_each(|rank| load.goes_on(rank));
    (0..3).for_each(|rank| assert_eq!(load.errors(rank), [] as [i32; 0]));
    assert_eq!(server.logged(&["WARN"]), 0, "{}", server.mount.story());
}
