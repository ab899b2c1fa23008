//! The fast path, asked by others than those whose buffers and files they are.

use kvfs::direct::abi::Op;
use libc::{O_RDONLY, O_RDWR, O_WRONLY};

use super::limits::become_user;
use super::raw::calls::{self, Buf, read_op, transfer, write_op};
use crate::common::user::in_child;
use crate::common::{Errno, Lab, Mount, R, sys};

fn mount(lab: &Lab, args: &[&str]) -> Mount {
    let builder = lab.mount(&lab.dirs(2));
    let mount = args.iter().fold(builder, |builder, arg| builder.arg(arg)).start();
    for (name, mode) in [("shared", 0o666), ("read-only", 0o644), ("secret", 0o600)] {
        std::fs::write(mount.path(name), format!("content of {name}")).unwrap();
        sys::chmod(mount.path(name), mode).unwrap();
    }
    mount
}

fn told<T: std::fmt::Debug>(result: R<T>) -> String {
    format!("{:?}", result.err())
}

fn is(errno: Errno) -> String {
    format!("{:?}", Some(errno))
}

/// What another user's process is answered.
fn as_other(work: impl FnOnce() -> String) -> String {
    in_child(|| {
        become_user(1001);
        work()
    })
}

#[test]
fn another_users_buffers_and_files_are_out_of_reach() {
    let lab = Lab::new();
    let mount = mount(&lab, &[]);
    let secret = sys::open(mount.path("secret"), O_RDWR, 0).unwrap();
    let buf = Buf::new(&secret, 4096);
    let token = calls::token(&secret);
    let (shared, read_only) = (mount.path("shared"), mount.path("read-only"));
    let open = |flags| sys::open(&shared, flags, 0).unwrap();
    // Their own file, our buffer, by its number or one near it, before and after they are known.
    for known in [false, true] {
        for id in [buf.id, buf.id.wrapping_add(1), buf.id ^ (1 << 63), 1, u64::MAX] {
            let answer = as_other(|| {
                let file = open(O_RDWR);
                if known {
                    calls::query(&file).unwrap();
                }
                told(transfer(&file, read_op(id, 0, 0, 7)))
            });
            let expected = if id == buf.id { Errno::EPERM } else { Errno::ENOENT };
            assert_eq!(answer, is(expected), "{id:x}");
            let answer = as_other(|| told(calls::unregister(&open(O_RDWR), id, 0)));
            assert!(answer == is(Errno::EPERM) || answer == is(Errno::ENOENT), "{id:x} {answer}");
        }
    }
    let with_own = |flags: i32, op: &dyn Fn(u64) -> Op| {
        as_other(|| {
            let file = open(flags);
            let own = Buf::new(&file, 4096);
            told(transfer(&file, op(own.id)))
        })
    };
    let ebadf = is(Errno::EBADF);
    // Our file, by its token, or one near it; the number of a handle isn't one.
    for token in [token, token.wrapping_sub(1), 1, 2, u64::MAX] {
        assert_eq!(with_own(O_RDWR, &|id| Op { file: token, ..read_op(id, 0, 0, 7) }), ebadf);
        assert_eq!(with_own(O_RDWR, &|id| Op { file: token, ..write_op(id, 0, 0, 7) }), ebadf);
    }
    // What a file was opened for holds, by itself and by its token.
    assert_eq!(with_own(O_RDONLY, &|id| write_op(id, 0, 0, 7)), ebadf);
    assert_eq!(with_own(O_WRONLY, &|id| read_op(id, 0, 0, 7)), ebadf);
    let by_token = as_other(|| {
        let (file, other) = (open(O_RDWR), sys::open(&read_only, O_RDONLY, 0).unwrap());
        let own = Buf::new(&file, 4096);
        let token = calls::token(&other);
        told(transfer(&file, Op { file: token, ..write_op(own.id, 0, 0, 7) }))
    });
    assert_eq!(by_token, ebadf);
    // A descriptor with O_PATH takes no ioctl at all.
    assert_eq!(as_other(|| told(calls::query(&open(libc::O_PATH)))), ebadf);
    // Nor does another's descriptor become theirs by its number.
    let number = std::os::fd::AsRawFd::as_raw_fd(&buf.memfd);
    let stolen = as_other(|| {
        let file = open(O_RDWR);
        let mut reg = calls::reg(&buf.memfd, 4096);
        reg.fd = number + 1000;
        told(calls::register(&file, &reg))
    });
    assert_eq!(stolen, ebadf);
    buf.holds(0, b"", "our buffer");
    assert_eq!(std::fs::read(mount.path("secret")).unwrap(), b"content of secret");
    assert_eq!(std::fs::read(mount.path("read-only")).unwrap(), b"content of read-only");
    assert_eq!(transfer(&secret, read_op(buf.id, 0, 0, 7)), Ok(7), "ours is as it was");
}

#[test]
fn names_are_not_told_to_who_may_not_search() {
    let lab = Lab::new();
    let mount = mount(&lab, &[]);
    std::fs::create_dir(mount.path("closed")).unwrap();
    std::fs::write(mount.path("closed/x"), "x").unwrap();
    sys::chmod(mount.path("closed"), 0o700).unwrap();
    let root = mount.point().to_owned();
    let asked = |name: &str| {
        let name = name.to_owned();
        as_other(|| {
            let dir = sys::open(&root, O_RDONLY, 0).unwrap();
            format!("{:?}", calls::prefix(&dir, &[&name], 0).map(|(found, _)| found))
        })
    };
    assert_eq!(asked("shared"), "Ok(1)");
    for name in ["closed/x", "../etc/passwd", "shared/../secret", "./shared", "closed/../shared"] {
        let answer = asked(name);
        assert!(answer == "Ok(0)" || answer.starts_with("Err"), "{name}: {answer}");
    }
    for name in [".kvfs-backing", ".kvfs-socket", "closed/.kvfs-x"] {
        assert_ne!(asked(name), "Ok(1)", "{name}");
    }
}

#[test]
fn a_user_at_their_limit_leaves_others_theirs() {
    let lab = Lab::new();
    let mount = mount(&lab, &["--direct-buffers", "4"]);
    let shared = mount.path("shared");
    let fill = || {
        let file = sys::open(&shared, O_RDWR, 0).unwrap();
        let memfd = calls::memfd(4096);
        let made: Vec<R<u64>> =
            (0..6).map(|_| calls::register(&file, &calls::reg(&memfd, 4096)).map(|reg| reg.buf_id)).collect();
        let well = made.iter().filter(|made| made.is_ok()).count();
        let refused = made.iter().filter(|made| **made == Err(Errno::EDQUOT)).count();
        format!("{well} {refused}")
    };
    let mut holds = crate::common::process::Process::start(|say| {
        become_user(1001);
        let file = sys::open(&shared, O_RDWR, 0).unwrap();
        let memfd = calls::memfd(4096);
        for _ in 0..4 {
            calls::register(&file, &calls::reg(&memfd, 4096)).unwrap();
        }
        say("full");
        loop {
            nix::unistd::pause();
        }
    });
    assert_eq!(holds.hear(), "full");
    assert_eq!(as_other(fill), "0 6", "another process of the same user");
    assert_eq!(in_child(fill), "4 2", "another user");
    holds.kill();
    super::limits::until(&mount, "all dropped", |s| s["direct"]["buffers"] == 0);
    assert_eq!(as_other(fill), "4 2", "given back");
}
