//! A file system that takes no changes any more.

use std::process::Command;
use std::time::Instant;

use super::{LEN, Load, Server, check, flush, kill_device, put};
use crate::common::{Errno, FsKind, ns, sys};

fn remount(server: &Server, rank: usize, how: &str) {
    let deadline = Instant::now() + ns::HANG;
    let volume = &server.volumes[rank];
    // Busy as long as a file is open for writing.
    while !Command::new("mount").args(["-o", how]).arg(volume).output().unwrap().status.success() {
        assert!(Instant::now() < deadline, "{} can't be remounted", volume.display());
    }
}

#[test]
fn remounted_read_only_and_back() {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let server = Server::new(kind);
        server.fill();
        let server = server.restarted();
        let load = Load::start(server.mount.point(), 3);
        load.rest(1, true);
        remount(&server, 1, "remount,ro");
        load.rest(1, false);
        assert_eq!(sys::truncate(server.kept(1, 1), 5), Err(Errno::EROFS));
        let ro = server.until(1, "read-only");
        assert!(ro["health"]["advice"].as_str().unwrap().contains("remount"), "{ro:#}");
        (0..4).for_each(|i| check(&server.kept(1, i), 10 + i as u64, LEN));
        assert_eq!(sys::open(server.kept(1, 1), libc::O_RDWR, 0).map(drop), Err(Errno::EROFS));
        assert_eq!(sys::unlink(server.kept(1, 1)), Err(Errno::EROFS));
        server.new_files_go_elsewhere(1);
        (0..3).for_each(|rank| load.goes_on(rank));
        assert_eq!(server.logged(&["WARN"]), 1, "one line for all:\n{}", server.mount.story());
        load.rest(1, true);
        remount(&server, 1, "remount,rw");
        load.rest(1, false);
        server.set_rw(1).code(0);
        server.until(1, "rw");
        put(&server.kept(1, 1), 11, LEN);
        check(&server.kept(1, 1), 11, LEN);
        (0..3).for_each(|rank| load.goes_on(rank));
        for other in [0, 2] {
            assert_eq!(load.errors(other), [] as [i32; 0], "clients of the others met nothing");
        }
    }
}

/// It's in use, and nothing was changed: so it's used again as soon as that's possible, by itself.
#[test]
fn it_comes_back_by_itself_and_may_fail_meanwhile() {
    let server = Server::new(FsKind::Ext4);
    server.fill();
    let server = server.restarted();
    server.volumes.iter().for_each(|volume| flush(volume));
    remount(&server, 1, "remount,ro");
    assert_eq!(sys::truncate(server.kept(1, 1), 5), Err(Errno::EROFS));
    server.until(1, "read-only");
    remount(&server, 1, "remount,rw");
    server.until(1, "rw");
    remount(&server, 1, "remount,ro");
    assert_eq!(sys::truncate(server.kept(1, 1), 5), Err(Errno::EROFS));
    server.until(1, "read-only");
    kill_device(&server.volumes[1]);
    server.until(1, "failed");
    server.others_are_as_before(1);
}
