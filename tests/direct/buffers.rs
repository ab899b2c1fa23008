//! Buffers: what memory is taken, how much of it, and when it goes.

use std::os::fd::{AsRawFd, OwnedFd};

use kvfs::direct::abi::{self, RegBuf};
use libc::*;

use super::process::{self, Process, direct, drained, mapped};
use super::raw::{self, Buf, hollow, read_op, reg, register, seal, transfer, unregister, write_op};
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, Lab, Mount, R, pattern, sys};

struct Place {
    /// Before the mount is taken away.
    fd: OwnedFd,
    mount: Mount,
    _lab: Lab,
}

fn place(args: &[&str]) -> Place {
    let lab = Lab::new();
    let mut builder = lab.mount(&lab.dirs(1));
    for arg in args {
        builder = builder.arg(arg);
    }
    let mount = builder.start();
    std::fs::write(mount.path("f"), pattern(1, 8192)).unwrap();
    let fd = sys::open(mount.path("f"), O_RDWR, 0).unwrap();
    Place { fd, mount, _lab: lab }
}

fn errno(answer: R<RegBuf>) -> Option<Errno> {
    answer.err()
}

#[test]
fn only_whole_sealed_memfds() {
    let p = place(&[]);
    let full = |len: usize| {
        let fd = hollow(len);
        sys::pwrite(&fd, &vec![1; len], 0).unwrap();
        fd
    };
    let unsealed = full(8192);
    assert_eq!(errno(register(&p.fd, &reg(&unsealed, 8192))), Some(Errno::EPERM), "not sealed");
    seal(&unsealed, F_SEAL_GROW);
    assert_eq!(
        errno(register(&p.fd, &reg(&unsealed, 8192))),
        Some(Errno::EPERM),
        "sealed against growth alone"
    );
    seal(&unsealed, F_SEAL_SHRINK);
    assert_eq!(errno(register(&p.fd, &reg(&unsealed, 8192))), None);
    let good = unsealed;
    for (offset, length) in [(0, 8193), (4096, 4097), (8192, 1), (1 << 40, 1), (0, 1 << 39)] {
        let beyond = RegBuf { offset, length, ..reg(&good, 0) };
        assert_eq!(errno(register(&p.fd, &beyond)), Some(Errno::ERANGE), "{length} at {offset}");
    }
    let sparse = hollow(1 << 20);
    sys::pwrite(&sparse, &[1; 8192], 0).unwrap();
    seal(&sparse, F_SEAL_SHRINK);
    assert_eq!(errno(register(&p.fd, &reg(&sparse, 1 << 20))), Some(Errno::ENODATA), "holes behind");
    assert_eq!(errno(register(&p.fd, &reg(&sparse, 8193))), Some(Errno::ENODATA), "a hole at the end");
    assert_eq!(errno(register(&p.fd, &reg(&sparse, 8192))), None, "the part that's there");
    let hole = RegBuf { offset: 65_536, ..reg(&sparse, 4096) };
    assert_eq!(errno(register(&p.fd, &hole)), Some(Errno::ENODATA), "a hole alone");
    // What isn't a memfd.
    let (pipe, _write) = sys::pipe().unwrap();
    let file = sys::open(p.mount.backings()[0].join("f"), O_RDWR, 0).unwrap();
    for other in [&file, &p.fd, &pipe, &sys::open("/dev/zero", O_RDWR, 0).unwrap()] {
        assert_eq!(errno(register(&p.fd, &reg(other, 4096))), Some(Errno::EBADF));
    }
    let none = RegBuf { fd: 4000, ..reg(&good, 4096) };
    assert_eq!(errno(register(&p.fd, &none)), Some(Errno::EBADF), "no descriptor");
    assert_eq!(direct(&p.mount.status(), "buffers"), 2);
    assert_eq!(mapped(&p.mount), 2, "nothing of what was refused is mapped");
}

/// The daemon maps no more than the client's descriptor allows.
#[test]
fn the_descriptors_own_rights() {
    let p = place(&[]);
    let memfd = raw::memfd(8192);
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let readable = sys::open(path, O_RDONLY, 0).unwrap();
    let (rd, wr) = (abi::BUF_RD, abi::BUF_WR);
    let with = |fd: &OwnedFd, flags| register(&p.fd, &RegBuf { flags, ..reg(fd, 8192) });
    assert_eq!(errno(with(&readable, rd)), Some(Errno::EACCES));
    assert_eq!(errno(with(&readable, rd | wr)), Some(Errno::EACCES));
    let id = with(&readable, wr).unwrap().buf_id;
    assert_eq!(transfer(&p.fd, write_op(id, 0, 0, 8192)), Ok(8192), "WRITE from a read-only mapping");
    assert_eq!(std::fs::read(p.mount.path("f")).unwrap(), [0; 8192]);
    for seals in [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE] {
        let memfd = hollow(8192);
        sys::pwrite(&memfd, &pattern(2, 8192), 0).unwrap();
        seal(&memfd, F_SEAL_SHRINK | seals);
        assert_eq!(errno(with(&memfd, rd)), Some(Errno::EPERM), "READ into what is sealed against writing");
        // Linux before 6.7 can't map it at all.
        let id = with(&memfd, wr).unwrap().buf_id;
        assert_eq!(transfer(&p.fd, write_op(id, 0, 0, 8192)), Ok(8192));
        assert_eq!(std::fs::read(p.mount.path("f")).unwrap(), pattern(2, 8192));
        assert_eq!(transfer(&p.fd, read_op(id, 0, 0, 8192)), Err(Errno::EACCES));
    }
}

/// A client that takes pages out of its buffer harms itself alone.
#[test]
fn holes_punched_later() {
    let p = place(&[]);
    let canary = Buf::new(&p.fd, 65_536);
    for pinned in [true, false] {
        let buf = Buf::new(&p.fd, 65_536);
        if pinned {
            // The first use pins it.
            assert_eq!(transfer(&p.fd, read_op(buf.id, 0, 0, 8192)), Ok(8192));
        }
        sys::fallocate(&buf.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 65_536).unwrap();
        assert_eq!(transfer(&p.fd, read_op(buf.id, 0, 0, 8192)), Ok(8192));
        let seen = buf.map.get(0, 8192);
        assert!(seen == pattern(1, 8192) || seen == [0; 8192], "its data or none");
        let wrote = transfer(&p.fd, write_op(buf.id, 0, 100_000, 8192));
        assert_eq!(wrote, Ok(8192));
        let written = sys::pread(&p.fd, 8192, 100_000).unwrap();
        assert!(written == pattern(1, 8192) || written == [0; 8192]);
        assert_eq!(unregister(&p.fd, buf.id, 0), Ok(()));
    }
    canary.holds(0, b"", "another buffer");
    assert_eq!(p.mount.op("panics"), 0);
}

#[test]
fn quota_of_buffers() {
    let p = place(&["--direct-buffers", "3"]);
    let memfd = raw::memfd(4096);
    let new = || register(&p.fd, &reg(&memfd, 4096)).map(|r| r.buf_id);
    let ids: Vec<u64> = (0..3).map(|_| new().unwrap()).collect();
    assert_eq!(new(), Err(Errno::EDQUOT));
    // Of each user.
    as_user(NOBODY, NOBODY, || assert_eq!(new(), Err(Errno::EDQUOT), "the process is still the same user's"));
    let mut theirs = Process::start(|say| {
        process::become_user(NOBODY);
        let ids: Vec<_> = (0..4).map(|_| new().map(|_| ())).collect();
        say(&format!("{ids:?}"));
        process::hang();
    });
    assert_eq!(theirs.hear(), "[Ok(()), Ok(()), Ok(()), Err(EDQUOT)]", "another user has a quota of its own");
    theirs.kill();
    process::until(&p.mount, "the dead process's are gone", |s| direct(s, "buffers") == 3);
    unregister(&p.fd, ids[1], 0).unwrap();
    assert_eq!(unregister(&p.fd, ids[1], 0), Err(Errno::ENOENT), "twice");
    let again = new().unwrap();
    assert!(!ids.contains(&again), "an id isn't used again");
    assert_eq!(new(), Err(Errno::EDQUOT));
    // What was refused for another reason has taken nothing.
    unregister(&p.fd, ids[0], 0).unwrap();
    for _ in 0..5 {
        assert_eq!(errno(register(&p.fd, &reg(&hollow(4096), 4096))), Some(Errno::EPERM));
        assert_eq!(errno(register(&p.fd, &reg(&memfd, 8192))), Some(Errno::ERANGE));
    }
    new().unwrap();
}

#[test]
fn quota_of_bytes() {
    let p = place(&["--direct-buffer-bytes", "1M"]);
    let memfd = raw::memfd(2 << 20);
    let new = |len: usize| register(&p.fd, &reg(&memfd, len)).map(|r| r.buf_id);
    assert_eq!(new((1 << 20) + 1), Err(Errno::EDQUOT));
    let first = new(600_000).unwrap();
    let second = new((1 << 20) - 600_000).unwrap();
    assert_eq!(new(1), Err(Errno::EDQUOT));
    assert_eq!(
        errno(register(&p.fd, &RegBuf { length: u64::MAX / 2, ..reg(&memfd, 0) })),
        Some(Errno::EDQUOT)
    );
    assert_eq!(direct(&p.mount.status(), "buffer_bytes"), 1 << 20);
    unregister(&p.fd, first, 0).unwrap();
    assert_eq!(new(600_001), Err(Errno::EDQUOT));
    new(600_000).unwrap();
    unregister(&p.fd, second, 0).unwrap();
    assert_eq!(direct(&p.mount.status(), "buffer_bytes"), 600_000);
}

/// With UNREGISTER, with its process, with the file it was registered on.
#[test]
fn ends_of_buffers() {
    let p = place(&[]);
    let dir = sys::open(p.mount.point(), O_RDONLY | O_DIRECTORY, 0).unwrap();
    let file = sys::open(p.mount.path("f"), O_RDONLY, 0).unwrap();
    let (on_file, on_dir) = (Buf::new(&file, 4096), Buf::new(&dir, 4096));
    drop(dir);
    let same = file.try_clone().unwrap();
    drop(file);
    assert_eq!(transfer(&p.fd, read_op(on_file.id, 0, 0, 5)), Ok(5), "a copy of the descriptor keeps it");
    drop(same);
    process::until(&p.mount, "the file's buffer is gone", |s| direct(s, "buffers") == 1);
    assert_eq!(transfer(&p.fd, read_op(on_file.id, 0, 0, 5)), Err(Errno::ENOENT));
    assert_eq!(transfer(&p.fd, read_op(on_dir.id, 0, 0, 5)), Ok(5), "the directory's stays");
    unregister(&p.fd, on_dir.id, abi::UNREG_NOWAIT).unwrap();
    drained(&p.mount);
    let mut other = Process::start(|say| {
        let (_a, _b) = (Buf::new(&p.fd, 4096), Buf::new(&p.fd, 8192));
        say("registered");
        process::hang();
    });
    assert_eq!(other.hear(), "registered");
    assert_eq!(mapped(&p.mount), 2);
    other.kill();
    drained(&p.mount);
    // Of a process that ends by itself, too.
    let mut other = Process::start(|say| {
        std::mem::forget(Buf::new(&p.fd, 4096));
        say("registered");
    });
    assert_eq!(other.hear(), "registered");
    other.finish();
    drained(&p.mount);
    assert_eq!(unregister(&p.fd, 1, 0), Err(Errno::ENOENT));
    assert_eq!(unregister(&p.fd, 0, 0), Err(Errno::ENOENT));
}

/// Many clients that come and go leave no descriptor and no memory in the daemon.
#[test]
fn nothing_leaks() {
    let p = place(&[]);
    let client = || {
        let mut other = Process::start(|say| {
            let fd = sys::open(p.mount.path("f"), O_RDWR, 0).unwrap();
            let mut buf = Buf::new(&fd, 1 << 20);
            for at in [0, 512, 3] {
                assert_eq!(transfer(&fd, read_op(buf.id, at, 0, 8192)), Ok(8192));
                assert_eq!(transfer(&fd, write_op(buf.id, at, 0, 8192)), Ok(8192));
                buf.blank();
            }
            say("done");
            process::hang();
        });
        assert_eq!(other.hear(), "done");
        other.kill();
    };
    let descriptors = || process::descriptors(&p.mount);
    client();
    drained(&p.mount);
    let open_files = p.mount.status()["open_files"].as_u64();
    process::until(&p.mount, "nothing of the client is left", |_| process::left_of_the_dead(&p.mount) == 0);
    let before = descriptors();
    for _ in 0..20 {
        client();
    }
    drained(&p.mount);
    process::until(&p.mount, "no descriptor more", |s| {
        s["open_files"].as_u64() == open_files && descriptors().len() <= before.len()
    });
}

/// More buffers than a ring pins, and more parts than one buffer.
#[test]
fn many_and_large_buffers() {
    let p = place(&[]);
    let memfd = raw::memfd(192 << 20);
    // Across the borders of what is pinned at once.
    let large = register(&p.fd, &reg(&memfd, 192 << 20)).unwrap().buf_id;
    let content = pattern(1, 8192);
    for at in [(64 << 20) - 4096, (64 << 20) - 5, 64 << 20, (128 << 20) - 100, (192 << 20) - 8192] {
        assert_eq!(transfer(&p.fd, read_op(large, at, 0, 8192)), Ok(8192));
        assert_eq!(sys::pread(&memfd, 8192, at as i64).unwrap(), content, "at {at}");
    }
    let small: Vec<_> = (0..400u64)
        .map(|i| {
            let part = RegBuf { offset: i * 8192, ..reg(&memfd, 8192) };
            register(&p.fd, &part).unwrap().buf_id
        })
        .collect();
    for round in 0..2 {
        let mark = vec![round + 5; 8192];
        sys::pwrite(&p.fd, &mark, 0).unwrap();
        for id in &small {
            assert_eq!(transfer(&p.fd, read_op(*id, 0, 0, 8192)), Ok(8192));
        }
        assert!(sys::pread(&memfd, 400 * 8192, 0).unwrap().iter().all(|b| *b == round + 5));
    }
    small.iter().for_each(|id| unregister(&p.fd, *id, 0).unwrap());
    assert_eq!(mapped(&p.mount), 1);
}
