//! A drive that answers everything with an error.

use std::os::unix::fs::FileExt;

use super::{LEN, Load, Server, attached_again, check, flush, kill_device, put, read_errno, unmount};
use crate::common::lab::names;
use crate::common::{Errno, FsKind, kvfs, pattern, sys};

#[test]
fn xfs_that_was_shut_down() {
    fails_and_comes_back(FsKind::Xfs);
}

#[test]
fn ext4_that_was_shut_down() {
    fails_and_comes_back(FsKind::Ext4);
}

fn fails_and_comes_back(kind: FsKind) {
    let server = Server::new(kind);
    let mount = &server.mount;
    server.fill();
    sys::fsync(&sys::open(server.kept(1, 0), libc::O_RDWR, 0).unwrap()).unwrap();
    std::fs::create_dir(mount.path("d/only here")).unwrap();
    server.volumes.iter().for_each(|volume| flush(volume));
    let load = Load::start(mount.point(), 3);
    let all = names(&mount.path("d"));
    let before = sys::statvfs(mount.point()).unwrap().f_blocks;

    kill_device(&server.volumes[1]);
    let failed = server.until(1, "failed");
    assert_eq!(read_errno(&server.kept(1, 0)), Some(libc::EIO));
    assert_eq!(sys::open(server.kept(1, 1), libc::O_WRONLY, 0).map(drop), Err(Errno::EIO));
    assert_eq!(sys::unlink(server.kept(1, 1)), Err(Errno::EIO));
    assert_eq!(sys::rename(server.kept(1, 1), mount.path("d/renamed")), Err(Errno::EIO));
    assert_eq!(names(&mount.path("d")), all, "its names are there still");
    server.new_files_go_elsewhere(1);
    server.others_are_as_before(1);
    (0..3).for_each(|rank| load.goes_on(rank));
    assert!(sys::statvfs(mount.point()).unwrap().f_blocks < before, "it has no room to offer");

    // What, since when, what to do: in JSON, for people, and once in the log.
    assert_eq!(failed["health"]["state"], "failed");
    assert!(failed["health"]["since"].as_u64().unwrap() > 1_600_000_000);
    assert!(failed["health"]["advice"].as_str().unwrap().contains("repair it"), "{failed:#}");
    let text = kvfs(["status".as_ref(), mount.point().as_os_str()]).code(0).stdout;
    let path = server.backing(1);
    let line = text.lines().find(|l| l.contains("backing 1") && l.contains("it fails"));
    assert!(line.is_some_and(|l| l.contains(path.to_str().unwrap()) && l.contains("repair it")), "{text}");
    assert_eq!(server.logged(&["WARN", path.to_str().unwrap(), "it fails"]), 1, "{}", mount.story());
    assert_eq!(server.logged(&["WARN"]), 1, "no line for each request:\n{}", mount.story());

    // Nothing of it is in use, so it can be repaired. Meanwhile it's changed in every way.
    unmount(&server, &server.volumes[1]);
    server.set_rw(1).fault(52, &["can't be used again", "nothing is there"]);
    let aside = server.lab.dir("aside");
    server.attach(1, &aside);
    let file = |i: usize| aside.join("kv").join(server.kept(1, i).strip_prefix(mount.point()).unwrap());
    // In place, by another file, and not at all any more.
    std::fs::OpenOptions::new()
        .write(true)
        .open(file(1))
        .unwrap()
        .write_all_at(&pattern(51, LEN), 0)
        .unwrap();
    put(&aside.join("new"), 52, LEN);
    std::fs::rename(aside.join("new"), file(2)).unwrap();
    std::fs::remove_file(file(3)).unwrap();
    put(&aside.join("kv/d/appeared"), 53, LEN);
    put(&aside.join("kv/new/deep/appeared"), 54, LEN);
    unmount(&server, &aside);
    server.attach(1, &server.volumes[1]);
    server.set_rw(1).code(0);
    server.until(1, "rw");
    check(&server.kept(1, 0), 10, LEN);
    check(&server.kept(1, 1), 51, LEN);
    check(&server.kept(1, 2), 52, LEN);
    assert_eq!(sys::lstat(server.kept(1, 3)).map(drop), Err(Errno::ENOENT));
    check(&mount.path("d/appeared"), 53, LEN);
    check(&mount.path("new/deep/appeared"), 54, LEN);
    server.others_are_as_before(1);
    (0..3).for_each(|rank| load.goes_on(rank));
    assert_eq!(load.errors(0), [] as [i32; 0], "clients of the others met nothing");
    assert_eq!(load.errors(2), [] as [i32; 0], "clients of the others met nothing");
    assert!(load.errors(1).iter().all(|e| *e == libc::EIO), "{:?}", load.errors(1));
    assert_eq!(
        server.logged(&[path.to_str().unwrap(), "used again"]),
        1 + server.logged(&["not used again"])
    );
    drop(load);
    let index = mount.status()["index"].clone();
    let seen = crate::common::tree::snapshot(mount.point());
    let Server { mount, volumes: _volumes, lab: _lab } = server;
    let again = mount.restart();
    for key in ["files", "dirs", "shadows"] {
        assert_eq!(again.status()["index"][key], index[key], "index.{key}: as a mount finds it");
    }
    assert_eq!(crate::common::tree::snapshot(again.point()), seen);
}

/// By itself, as soon as it's mounted again.
#[test]
fn it_comes_back_by_itself() {
    let server = Server::new(FsKind::Xfs);
    server.fill();
    server.volumes.iter().for_each(|volume| flush(volume));
    kill_device(&server.volumes[2]);
    assert_eq!(read_errno(&server.kept(2, 1)), Some(libc::EIO));
    server.until(2, "failed");
    attached_again(&server, 2);
    server.until(2, "rw");
    (0..3).for_each(|rank| check(&server.kept(rank, 1), rank as u64 * 10 + 1, LEN));
}

/// Files that clients keep open keep the file system in use, and status says so.
#[test]
fn what_is_open_fails_until_it_is_closed() {
    let server = Server::new(FsKind::Ext4);
    server.fill();
    let open = sys::open(server.kept(1, 0), libc::O_RDWR, 0).unwrap();
    server.volumes.iter().for_each(|volume| flush(volume));
    kill_device(&server.volumes[1]);
    assert_eq!(sys::pwrite(&open, b"x", 0), Err(Errno::EIO));
    assert_eq!(sys::fsync(&open), Err(Errno::EIO));
    let failed = server.until(1, "failed");
    assert_eq!(failed["health"]["open_files"], 1);
    drop(open);
    attached_again(&server, 1);
    server.until(1, "rw");
    check(&server.kept(1, 0), 10, LEN);
}

/// A drive that's dead for good is taken out.
#[test]
fn it_can_be_taken_out() {
    let server = Server::new(FsKind::Xfs);
    server.fill();
    kill_device(&server.volumes[1]);
    let _ = std::fs::read(server.kept(1, 0));
    server.until(1, "failed");
    let point = server.mount.point().as_os_str();
    kvfs(["backing".as_ref(), "remove".as_ref(), point, "1".as_ref(), "--force".as_ref(), "--yes".as_ref()])
        .code(0);
    assert_eq!(sys::lstat(server.kept(1, 0)).map(drop), Err(Errno::ENOENT));
    put(&server.kept(1, 0), 7, LEN);
    check(&server.kept(1, 0), 7, LEN);
    server.others_are_as_before(1);
    unmount(&server, &server.volumes[1]);
}
