//! The socket in the mount, by which descriptors come from where the daemon can't take them.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use kvfs::direct::abi::{FdHello, feature};
use libc::*;
use zerocopy::IntoBytes;

use super::process::{self, Process, drained};
use super::raw::{self, read_op, transfer};
use super::sending::{HELLO, NAME, answer, by_token, connected, send, sent, whole_way};
use crate::common::user::NOBODY;
use crate::common::{Errno, Lab, Mount, R, cli, dir, ns, sys};

struct Place {
    mount: Mount,
    lab: Lab,
}

fn place() -> Place {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    std::fs::write(mount.path("f"), "content").unwrap();
    process::until(&mount, "the socket", |s| s["direct"]["fd_socket"].as_bool() == Some(true));
    Place { mount, lab }
}

#[test]
fn a_token_is_good_once_and_for_its_process() {
    let p = place();
    let path = p.mount.path(NAME);
    let file = sys::open(p.mount.path("f"), O_RDONLY, 0).unwrap();
    assert_ne!(raw::query(&file).unwrap().features & feature::FD_SOCKET, 0);
    whole_way(p.mount.point()).unwrap();
    let memfd = raw::memfd(4096);
    let token = sent(&path, &memfd).unwrap();
    assert_ne!(token, 0);
    // Another process can't use it, nor use it up.
    let theirs =
        crate::common::user::in_child(|| format!("{:?}", raw::register(&file, &by_token(token)).err()));
    assert_eq!(theirs, "Some(ENOENT)");
    let buf = raw::register(&file, &by_token(token)).unwrap();
    assert_eq!(transfer(&file, read_op(buf.buf_id, 0, 0, 7)), Ok(7));
    assert_eq!(raw::register(&file, &by_token(token)).err(), Some(Errno::ENOENT), "twice");
    assert_eq!(raw::register(&file, &by_token(1)).err(), Some(Errno::ENOENT), "a guess");
    // Sent, and no memfd: the same as without the socket.
    let (pipe, _write) = sys::pipe().unwrap();
    let token = sent(&path, &pipe).unwrap();
    assert_eq!(raw::register(&file, &by_token(token)).err(), Some(Errno::EBADF));
    // Several on one connection.
    let to = connected(&path).unwrap();
    for _ in 0..3 {
        send(&to, HELLO.as_bytes(), &[memfd.as_raw_fd()]).unwrap();
        let token = answer(&to).unwrap().token;
        raw::register(&file, &by_token(token)).unwrap();
    }
}

#[test]
fn for_ordinary_users_and_the_undumpable() {
    let p = place();
    let mut other = Process::start(|say| {
        process::become_user(NOBODY);
        // SAFETY: prctl takes integers.
        unsafe { prctl(PR_SET_DUMPABLE, 0) };
        say(&format!("{:?}", whole_way(p.mount.point())));
    });
    assert_eq!(other.hear(), "Ok(())");
    other.finish();
    drained(&p.mount);
}

/// As in a container: other namespaces, another root.
#[test]
fn from_a_container() {
    let p = place();
    let jail = p.lab.dir("jail");
    std::fs::create_dir(jail.join("data")).unwrap();
    std::fs::create_dir(jail.join("proc")).unwrap();
    let mut other = Process::start(|say| {
        sys::unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS).unwrap();
        // The first child is the new namespace's process 1.
        let said = crate::common::user::in_child(|| {
            use nix::mount::{MsFlags, mount};
            let none = None::<&str>;
            mount(Some(p.mount.point()), &jail.join("data"), none, MsFlags::MS_BIND, none).unwrap();
            mount(Some("proc"), &jail.join("proc"), Some("proc"), MsFlags::empty(), none).unwrap();
            nix::unistd::chroot(&jail).unwrap();
            std::env::set_current_dir("/").unwrap();
            assert_eq!(std::process::id(), 1);
            let seen = raw::query(&sys::open("/data/f", O_RDONLY, 0).unwrap()).unwrap().seen_tgid;
            assert!(seen > 1, "the daemon sees another number: {seen}");
            format!("{:?}", whole_way(Path::new("/data")))
        });
        say(&said);
    });
    assert_eq!(other.hear(), "Ok(())");
    other.finish();
    drained(&p.mount);
}

#[test]
fn garbage_is_refused() {
    let p = place();
    let path = p.mount.path(NAME);
    let memfd = raw::memfd(4096);
    let fd = memfd.as_raw_fd();
    let einval = Some(EINVAL);
    let error = |hello: &[u8], fds: &[RawFd]| {
        let to = connected(&path).unwrap();
        send(&to, hello, fds).unwrap();
        answer(&to).map(|a| {
            assert!(a.error == 0 || a.token == 0);
            a.error
        })
    };
    assert_eq!(error(HELLO.as_bytes(), &[fd]), Some(0));
    assert_eq!(error(HELLO.as_bytes(), &[]), einval, "no descriptor");
    assert_eq!(error(HELLO.as_bytes(), &[fd, fd]), einval, "two");
    assert_eq!(error(HELLO.as_bytes(), &vec![fd; 200]), einval, "more than are looked at");
    assert_eq!(error(&HELLO.as_bytes()[..7], &[fd]), einval, "too short");
    assert_eq!(error(&[HELLO.as_bytes(), &[0]].concat(), &[fd]), einval, "too long");
    assert_eq!(error(&vec![0x66; 60_000], &[fd]), einval, "much too long");
    for hello in
        [FdHello { magic: 1, ..HELLO }, FdHello { version: 0, ..HELLO }, FdHello { version: 2, ..HELLO }]
    {
        assert_eq!(error(hello.as_bytes(), &[fd]), einval, "{hello:?}");
    }
    // An empty message is as good as a closed connection.
    assert_eq!(error(b"", &[]), None);
    // Who doesn't wait for the answer.
    for _ in 0..200 {
        let to = connected(&path).unwrap();
        let _ = send(&to, HELLO.as_bytes(), &[]);
    }
    whole_way(p.mount.point()).unwrap();
    let held = process::descriptors(&p.mount).iter().filter(|d| d.contains("memfd:kvfs-test")).count();
    assert!(held <= 2, "what was refused is closed: {held} are held");
}

/// Others who say nothing hold nobody up.
#[test]
fn silent_connections() {
    let p = place();
    let path = p.mount.path(NAME);
    let silent: Vec<_> = (0..200).filter_map(|_| connected(&path).ok()).collect();
    assert!(silent.len() >= 64, "{} connections", silent.len());
    whole_way(p.mount.point()).unwrap();
    drop(silent);
    whole_way(p.mount.point()).unwrap();
}

#[test]
fn descriptors_of_one_process_are_bounded() {
    let p = place();
    let path = p.mount.path(NAME);
    let memfd = raw::memfd(4096);
    let tokens: Vec<_> = (0..70).map(|_| sent(&path, &memfd)).collect();
    assert!(tokens[..64].iter().all(|t| t.is_ok()));
    assert!(tokens[64..].iter().all(|t| *t == Err(Errno::EDQUOT)), "{:?}", &tokens[64..]);
    // Another process has its own.
    assert_eq!(crate::common::user::in_child(|| format!("{:?}", whole_way(p.mount.point()))), "Ok(())");
    // One that is used makes room for one.
    let file = sys::open(p.mount.path("f"), O_RDONLY, 0).unwrap();
    raw::register(&file, &by_token(*tokens[5].as_ref().unwrap())).unwrap();
    assert!(sent(&path, &memfd).is_ok());
    assert_eq!(sent(&path, &memfd), Err(Errno::EDQUOT));
}

/// A process that sent descriptors and ended leaves none in the daemon, whether it did more or not.
#[test]
fn descriptors_of_the_dead_go() {
    let p = place();
    let path = p.mount.path(NAME);
    let mut other = Process::start(|say| {
        let memfd = raw::memfd(4096);
        for _ in 0..10 {
            sent(&path, &memfd).unwrap();
        }
        say("sent");
        process::hang();
    });
    assert_eq!(other.hear(), "sent");
    let held = || process::descriptors(&p.mount).iter().filter(|d| d.contains("memfd:kvfs-test")).count();
    assert_eq!(held(), 10);
    other.kill();
    process::until(&p.mount, "the dead process's descriptors are closed", |_| held() == 0);
}

#[test]
fn its_name_is_the_daemons_own() {
    let p = place();
    let path = p.mount.path(NAME);
    let st = sys::lstat(&path).unwrap();
    assert_eq!(st.st_mode, S_IFSOCK | 0o666);
    let listed = dir::list(p.mount.point()).unwrap();
    assert_eq!(listed.iter().map(|(n, _)| n.to_str().unwrap()).collect::<Vec<_>>(), ["f"]);
    assert!(p.mount.holders(NAME).is_empty(), "it's on no backing");
    // Nobody takes its name, removes or changes it.
    let (f, refused) = (p.mount.path("f"), |r: R<()>| assert!(r.is_err()));
    refused(sys::unlink(&path));
    refused(sys::rename(&path, p.mount.path("g")));
    refused(sys::rename(&f, &path));
    refused(sys::link(&path, p.mount.path("g")));
    refused(sys::link(&f, &path));
    refused(sys::chmod(&path, 0o600));
    refused(sys::chown(&path, 1, 1));
    refused(sys::mknod(&path, S_IFSOCK | 0o644, 0));
    refused(sys::symlink("f", &path));
    refused(sys::mkdir(&path, 0o755));
    refused(sys::open(&path, O_RDONLY, 0).map(drop));
    refused(sys::open(&path, O_RDWR | O_CREAT, 0o644).map(drop));
    refused(sys::truncate(&path, 0));
    whole_way(p.mount.point()).unwrap();
    assert_eq!(sys::lstat(p.mount.path("d").join(NAME)).map(drop), Err(Errno::ENOENT), "in the root alone");
    std::fs::create_dir(p.mount.path("d")).unwrap();
    assert_eq!(sys::lstat(p.mount.path("d").join(NAME)).map(drop), Err(Errno::ENOENT), "in the root alone");
}

/// The socket keeps no mount busy, and the daemon ends with the mount.
#[test]
fn a_plain_umount() {
    let p = place();
    whole_way(p.mount.point()).unwrap();
    let kept = connected(&p.mount.path(NAME)).unwrap();
    let point = p.mount.point().to_owned();
    nix::mount::umount2(&point, nix::mount::MntFlags::empty()).expect("umount(2) is not busy");
    let status = p.mount.ended();
    assert!(status.success(), "the daemon ended with {}", cli::ended(status));
    assert_eq!(ns::mounts_at(&point).len(), 0);
    drop(kept);
}

/// A later daemon has a socket of its own, and nothing of the earlier.
#[test]
fn again_after_a_restart() {
    let p = place();
    let memfd = raw::memfd(4096);
    let token = sent(&p.mount.path(NAME), &memfd).unwrap();
    let mount = p.mount.restart();
    process::until(&mount, "the socket", |s| s["direct"]["fd_socket"].as_bool() == Some(true));
    let file = sys::open(mount.path("f"), O_RDONLY, 0).unwrap();
    assert_eq!(raw::register(&file, &by_token(token)).err(), Some(Errno::ENOENT));
    whole_way(mount.point()).unwrap();
}
