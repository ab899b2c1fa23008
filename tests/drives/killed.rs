//! The daemon dies while a drive is out: another serves what there is, and takes the drive in when it's back.

use super::{LEN, Server, attached_again, check, flush, kill_device, put, read_errno};
use crate::common::killer::{daemon, kill};
use crate::common::{Errno, FsKind, Passthrough, pattern, ranked, sys};

fn others_go_on(kind: FsKind, mode: Passthrough, out: impl FnOnce(&Server)) {
    let server = Server::with(kind, |mount| mount.passthrough(mode).supervised());
    let mount = &server.mount;
    server.fill();
    let open = [0, 2].map(|rank| sys::open(server.kept(rank, 1), libc::O_RDWR, 0).unwrap());
    let of_it = sys::open(server.kept(1, 1), libc::O_RDONLY, 0).unwrap();
    let writing = mount.path(format!("d/{}", ranked(0, 50)));
    let file = sys::open(&writing, libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    assert_eq!(sys::pwrite(&file, &pattern(9, 4096), 0), Ok(4096));
    server.volumes.iter().for_each(|volume| flush(volume));
    out(&server);
    kill(mount);

    // What clients have open of the others, and what they do next.
    for (n, open) in [0, 2].into_iter().zip(&open) {
        assert_eq!(sys::pread(open, LEN, 0).unwrap(), pattern(n as u64 * 10 + 1, LEN));
        assert_eq!(sys::fsync(open), Ok(()));
    }
    assert_eq!(sys::pwrite(&file, &pattern(8, 4096), 4096), Ok(4096));
    drop(file);
    assert_eq!(std::fs::read(&writing).unwrap(), [pattern(9, 4096), pattern(8, 4096)].concat());
    server.others_are_as_before(1);
    server.new_files_go_elsewhere(1);

    // Of the drive nothing is there, and nothing else is in its place.
    let state = server.status(1)["state"].as_str().unwrap().to_owned();
    assert!(["failed", "gone", "absent"].contains(&&*state), "{state}");
    let errno = read_errno(&server.kept(1, 0));
    assert!([Some(libc::EIO), Some(libc::ENOENT)].contains(&errno), "{errno:?}");
    assert_eq!(sys::fsync(&of_it), Err(Errno::ESTALE), "its handle is lost");
    drop(of_it);

    attached_again(&server, 1);
    server.until(1, "rw");
    (0..4).for_each(|i| check(&server.kept(1, i), 10 + i as u64, LEN));
    let new = mount.path(format!("d/{}", ranked(1, 60)));
    put(&new, 60, LEN);
    assert_eq!(mount.holder(new.strip_prefix(mount.point()).unwrap()), 1);
    // And the next daemon finds all of them well.
    kill(mount);
    check(&new, 60, LEN);
    (0..3).for_each(|rank| check(&server.kept(rank, 1), rank as u64 * 10 + 1, LEN));
    assert_eq!(daemon(mount).0, 3);
}

fn shut_down(server: &Server) {
    kill_device(&server.volumes[1]);
}

#[test]
fn beside_a_drive_that_fails_passed_through() {
    others_go_on(FsKind::Xfs, Passthrough::Auto, shut_down);
}

#[test]
fn beside_a_drive_that_fails_through_the_daemon() {
    others_go_on(FsKind::Ext4, Passthrough::Off, shut_down);
}

#[test]
fn beside_a_drive_that_was_found_to_fail() {
    others_go_on(FsKind::Xfs, Passthrough::Auto, |server| {
        shut_down(server);
        assert_eq!(read_errno(&server.kept(1, 0)), Some(libc::EIO));
        server.until(1, "failed");
    });
}
