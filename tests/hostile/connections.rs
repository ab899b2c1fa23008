//! The socket for descriptors: a user who fills it keeps nobody else out.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use kvfs::direct::abi::{FD_SOCKET_MAGIC, FdAnswer, FdHello, VERSION};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, sendmsg, socket,
};
use zerocopy::{FromBytes, IntoBytes};

use super::limits::{become_user, count, until};
use super::raw::calls;
use crate::common::process::Process;
use crate::common::{Errno, Lab, R, sys};

fn connected(path: &Path) -> R<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Sends these descriptors with one message, and says the answer; none where the connection was closed.
fn send(to: &OwnedFd, fds: &[RawFd]) -> Option<FdAnswer> {
    let hello = FdHello { magic: FD_SOCKET_MAGIC, version: VERSION };
    let rights = [ControlMessage::ScmRights(fds)];
    let parts = [IoSlice::new(hello.as_bytes())];
    sendmsg::<()>(to.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None).ok()?;
    let mut bytes = [0u8; 64];
    let len = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        recvmsg::<()>(to.as_raw_fd(), &mut parts, None, MsgFlags::empty()).map_or(0, |m| m.bytes)
    };
    (len > 0).then(|| FdAnswer::read_from_bytes(&bytes[..len]).unwrap())
}

#[test]
fn a_user_who_fills_the_socket_keeps_nobody_out() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).start();
    until(&mount, "the socket", |s| s["direct"]["fd_socket"].as_bool() == Some(true));
    let path = mount.path(".kvfs-socket");
    let before = count(&mount, "fd");
    let theirs = path.clone();
    let mut fills = Process::start(move |say| {
        become_user(1001);
        let held: Vec<OwnedFd> = (0..300).map(|_| connected(&theirs).unwrap()).collect();
        // And descriptors that wait for a registration which never comes: 64 of one process.
        let memfd = calls::memfd(4096);
        let sent = |_: &i32| {
            let answer = send(&connected(&theirs).unwrap(), &[memfd.as_raw_fd()]);
            answer.is_some_and(|answer| answer.error == 0)
        };
        let kept = (0..100).filter(sent).count();
        say(&format!("{} {kept}", held.len()));
        loop {
            drop(connected(&theirs));
        }
    });
    assert_eq!(fills.hear(), "300 64");
    // While that one goes on connecting.
    for _ in 0..50 {
        let memfd = calls::memfd(4096);
        let answer = send(&connected(&path).unwrap(), &[memfd.as_raw_fd()]).expect("an answer");
        assert_eq!(answer.error, 0);
    }
    let more = count(&mount, "fd") - before;
    assert!(more <= 128 + 64 + 50 + 8, "{more} more descriptors");
    let many: Vec<OwnedFd> = (0..200).map(|_| calls::memfd(4096)).collect();
    let many: Vec<RawFd> = many.iter().map(AsRawFd::as_raw_fd).collect();
    let answer = send(&connected(&path).unwrap(), &many).expect("an answer");
    assert_eq!(answer.error, Errno::EINVAL as i32, "more than one");
    fills.kill();
    until(&mount, "what was theirs is gone", |_| count(&mount, "fd") <= before + 50 + 8);
    // The longest silence is waited out by whoever asks next.
    drop(sys::open(mount.point(), libc::O_RDONLY, 0).unwrap());
}
