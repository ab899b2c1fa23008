//! Who may move what: open modes, directions of buffers, and whose a buffer or a token is.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Child;

use kvfs::direct::abi::{self, Op, RegBuf};
use libc::*;

use super::process::{self, Process};
use super::raw::{self, Buf, query, read_op, token, transfer, write_op};
use crate::common::user::{NOBODY, as_user, in_child};
use crate::common::{Errno, Lab, Mount, Passthrough, R, sys};

fn mount(lab: &Lab, mode: Passthrough) -> Mount {
    let mount = lab.mount(&lab.dirs(1)).passthrough(mode).start();
    std::fs::write(mount.path("f"), "content").unwrap();
    mount
}

fn open_modes(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    let open = |flags| sys::open(&path, flags, 0).unwrap();
    let helper = open(O_RDONLY);
    let buf = Buf::new(&helper, 4096);
    let (read, write) = (read_op(buf.id, 0, 0, 7), write_op(buf.id, 0, 0, 7));
    // 3 is for ioctls alone: neither reading nor writing.
    for (flags, may_read, may_write) in [
        (O_RDONLY, true, false),
        (O_WRONLY, false, true),
        (O_RDWR, true, true),
        (3, false, false),
        (O_WRONLY | O_APPEND, false, true),
        (O_RDONLY | O_DIRECT, true, false),
    ] {
        let fd = open(flags);
        let want = |may| if may { Ok(7) } else { Err(Errno::EBADF) };
        assert_eq!(transfer(&fd, read), want(may_read), "READ on a file open with {flags:o}");
        // By its token the same, whatever the file of the ioctl allows.
        let file = token(&fd);
        assert_eq!(transfer(&open(O_RDWR), Op { file, ..read }), want(may_read));
        assert_eq!(transfer(&open(O_RDWR), Op { file, ..write }), want(may_write));
        assert_eq!(transfer(&fd, write), want(may_write), "WRITE on a file open with {flags:o}");
        assert_eq!(transfer(&fd, Op { file: token(&open(O_RDWR)), ..write }), Ok(7), "by another's token");
    }
    let dir = sys::open(mount.point(), O_RDONLY | O_DIRECTORY, 0).unwrap();
    assert_eq!(transfer(&dir, read), Err(Errno::EISDIR));
    let pathfd = sys::open(&path, O_PATH, 0).unwrap();
    assert_eq!(query(&pathfd).map(drop), Err(Errno::EBADF));
}

fn directions_of_buffers(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let fd = sys::open(mount.path("f"), O_RDWR, 0).unwrap();
    let memfd = raw::memfd(4096);
    for (flags, read, write) in [
        (abi::BUF_RD, Ok(7), Err(Errno::EACCES)),
        (abi::BUF_WR, Err(Errno::EACCES), Ok(7)),
        (abi::BUF_RD | abi::BUF_WR, Ok(7), Ok(7)),
    ] {
        let id = raw::register(&fd, &RegBuf { flags, ..raw::reg(&memfd, 4096) }).unwrap().buf_id;
        assert_eq!(transfer(&fd, read_op(id, 0, 0, 7)), read, "READ with {flags}");
        assert_eq!(transfer(&fd, write_op(id, 0, 0, 7)), write, "WRITE with {flags}");
    }
}

fn bounds(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let fd = sys::open(mount.path("f"), O_RDWR, 0).unwrap();
    let buf = Buf::new(&fd, 8192);
    // The region is less than the mapped page.
    let id = raw::register(&fd, &RegBuf { length: 5000, ..raw::reg(&buf.memfd, 0) }).unwrap().buf_id;
    let most = u64::MAX;
    for (buf_off, length, want) in [
        (0, 5000, Ok(5000)),
        (4999, 1, Ok(1)),
        (5000, 0, Ok(0)),
        (0, 5001, Err(Errno::ERANGE)),
        (1, 5000, Err(Errno::ERANGE)),
        (5000, 1, Err(Errno::ERANGE)),
        (5001, 0, Err(Errno::ERANGE)),
        (most, 1, Err(Errno::ERANGE)),
        (most - 6, 7, Err(Errno::ERANGE)),
        (most, 0, Err(Errno::ERANGE)),
    ] {
        let op = Op { buf_off, length, ..write_op(id, 0, 0, 0) };
        assert_eq!(transfer(&fd, op), want, "{length} at {buf_off}");
    }
    for (file_off, want) in [
        (most, Errno::EINVAL),
        (most - 6, Errno::EINVAL),
        (i64::MAX as u64 - 6, Errno::EINVAL),
        (i64::MAX as u64 - 7, Errno::EFBIG),
    ] {
        let op = Op { file_off, ..write_op(id, 0, 0, 7) };
        assert_eq!(transfer(&fd, op), Err(want), "at {file_off}");
    }
    assert_eq!(sys::fstat(&fd).unwrap().st_size, 5000);
}

/// The errno of an op, whether the call or the op has it.
fn refusal(result: R<usize>) -> String {
    format!("{:?}", result.err())
}

fn other_processes(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let fd = sys::open(mount.path("f"), O_RDWR, 0).unwrap();
    let mut buf = Buf::new(&fd, 4096);
    let mine = token(&fd);
    // A forked child has the same descriptors, and shares the memory.
    let child = |work: &dyn Fn() -> R<usize>| in_child(|| refusal(work()));
    let eperm = refusal(Err(Errno::EPERM));
    let ebadf = refusal(Err(Errno::EBADF));
    assert_eq!(child(&|| transfer(&fd, read_op(buf.id, 0, 0, 7))), eperm, "a child that is new here");
    assert_eq!(
        child(&|| {
            query(&fd).unwrap();
            transfer(&fd, read_op(buf.id, 0, 0, 7))
        }),
        eperm,
        "a child that is known here"
    );
    assert_eq!(child(&|| raw::unregister(&fd, buf.id, 0).map(|()| 0)), eperm);
    let own = |op: &dyn Fn(u64) -> Op| {
        child(&|| {
            let memfd = raw::memfd(4096);
            let id = raw::register(&fd, &raw::reg(&memfd, 4096)).unwrap().buf_id;
            transfer(&fd, op(id))
        })
    };
    assert_eq!(own(&|id| Op { file: mine, ..read_op(id, 0, 0, 7) }), ebadf, "another's token");
    assert_eq!(own(&|id| read_op(id, 0, 0, 7)), "None", "a child's own buffer, on the file it was left");
    buf.holds(0, b"", "the parent's buffer");
    assert_eq!(transfer(&fd, read_op(buf.id, 0, 0, 7)), Ok(7), "the parent's is as it was");
    buf.holds(0, b"content", "the parent's buffer");
    buf.blank();
    // Another user with the same open file, though of the same process: a process is one.
    as_user(NOBODY, NOBODY, || assert_eq!(transfer(&fd, read_op(buf.id, 0, 0, 7)), Ok(7)));
}

/// The handle's number is used again at once; the token isn't.
fn tokens_of_closed_files(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let fd = sys::open(mount.path("f"), O_RDWR, 0).unwrap();
    let buf = Buf::new(&fd, 4096);
    let open_files = mount.status()["open_files"].as_u64();
    for name in ["a", "b", "c"] {
        std::fs::write(mount.path(name), name).unwrap();
        let other = sys::open(mount.path(name), O_RDWR, 0).unwrap();
        let file = token(&other);
        assert_eq!(transfer(&fd, Op { file, ..read_op(buf.id, 0, 0, 7) }), Ok(1));
        // A second descriptor of the same open file keeps it.
        let same = other.try_clone().unwrap();
        drop(other);
        assert_eq!(transfer(&fd, Op { file, ..read_op(buf.id, 0, 0, 7) }), Ok(1));
        drop(same);
        process::until(&mount, "the file is released", |s| s["open_files"].as_u64() == open_files);
        let next = sys::open(mount.path("f"), O_RDWR, 0).unwrap();
        assert_eq!(transfer(&fd, Op { file, ..read_op(buf.id, 0, 0, 7) }), Err(Errno::EBADF));
        assert_ne!(token(&next), file);
        drop(next);
        process::until(&mount, "the next is released", |s| s["open_files"].as_u64() == open_files);
    }
}

/// A process's number may come again: its token must not.
fn tokens_of_dead_processes(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let fd = sys::open(mount.path("f"), O_RDWR, 0).unwrap();
    let mut other = Process::start(|say| {
        say(&token(&fd).to_string());
        process::hang();
    });
    let file: u64 = other.hear().parse().unwrap();
    other.kill();
    let buf = Buf::new(&fd, 4096);
    assert_eq!(transfer(&fd, Op { file, ..read_op(buf.id, 0, 0, 7) }), Err(Errno::EBADF));
}

/// A process that isn't in the daemon's pid namespace can ask, and do nothing more.
fn unseen_processes(mode: Passthrough) {
    let lab = Lab::new();
    // The daemon in a pid namespace of its own doesn't see the test.
    let backings = lab.dirs(1);
    let (mount, mut daemon) = mount_in_own_pids(&lab, &backings, mode);
    std::fs::write(mount.join("f"), "content").unwrap();
    let fd = sys::open(mount.join("f"), O_RDWR, 0).unwrap();
    let q = query(&fd).unwrap();
    assert_eq!((q.seen_tgid, q.file_token), (0, 0));
    let memfd = raw::memfd(4096);
    assert_eq!(raw::register(&fd, &raw::reg(&memfd, 4096)).map(drop), Err(Errno::EPERM));
    assert_eq!(transfer(&fd, read_op(1, 0, 0, 7)), Err(Errno::EPERM));
    assert_eq!(raw::unregister(&fd, 1, 0), Err(Errno::EPERM));
    drop(fd);
    nix::mount::umount2(&mount, nix::mount::MntFlags::empty()).unwrap();
    assert!(crate::common::cli::wait(&mut daemon, crate::common::ns::HANG).is_some(), "the daemon ends");
}

fn mount_in_own_pids(lab: &Lab, backings: &[PathBuf], mode: Passthrough) -> (PathBuf, Child) {
    let point = lab.dir("unseen");
    let mut command = std::process::Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", crate::common::cli::BINARY, "mount", "-f"]).arg(&point);
    command.arg("--backing").arg(crate::common::lab::list(backings)).args(["--passthrough", mode.word()]);
    sys::die_with_parent(&mut command);
    let child = command.spawn().unwrap();
    let pidfd = sys::pidfd(child.id()).unwrap();
    let is_fuse = || crate::common::ns::mounts_at(&point).iter().any(|m| m.fs_type.starts_with("fuse"));
    assert!(crate::common::ns::wait_mounts(Some(pidfd.as_fd()), is_fuse), "mounted in its own pid namespace");
    (point, child)
}

/// An ordinary user's own mount serves that user, files included that only their creator may write.
#[test]
fn a_users_own_mount() {
    let lab = Lab::new();
    lab.fuse_for_everyone();
    let backing = lab.dir("theirs");
    sys::chown(&backing, NOBODY, NOBODY).unwrap();
    let point = lab.dir("user");
    sys::chown(&point, NOBODY, NOBODY).unwrap();
    let mount = lab.mount(&[backing]).at(point).user(NOBODY).start();
    // As a process of theirs: the daemon may take descriptors of that.
    let said = in_child(|| {
        process::become_user(NOBODY);
        for mode in [0o644, 0o444, 0o200] {
            let fd = sys::open(mount.path(format!("f{mode:o}")), O_RDWR | O_CREAT, mode).unwrap();
            let mut buf = Buf::new(&fd, 65_536);
            buf.map.put(0, &[7; 65_536]);
            assert_eq!(transfer(&fd, write_op(buf.id, 0, 0, 65_536)), Ok(65_536), "mode {mode:o}");
            buf.blank();
            assert_eq!(transfer(&fd, read_op(buf.id, 0, 0, 65_536)), Ok(65_536), "mode {mode:o}");
            buf.holds(0, &[7; 65_536], "READ");
        }
        "well".into()
    });
    assert_eq!(said, "well");
}

super::both!(
    open_modes,
    directions_of_buffers,
    bounds,
    other_processes,
    tokens_of_closed_files,
    tokens_of_dead_processes,
    unseen_processes,
);
