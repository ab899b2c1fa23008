//! What clients do comes out as over `/dev/fuse`.

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use kvfs::client::{Access, File, HostBuffer, Mount as Client, Pages};

use super::{by_uring, on_each, servers};
use crate::common::lab::names;
use crate::common::{Errno, FsKind, Lab, Passthrough, dir, kvfs, pattern, sys};

#[test]
fn status_says_how_requests_come() {
    let lab = Lab::new();
    let mount = by_uring(&lab).start();
    assert_eq!(mount.status()["transport"], "io_uring");
    assert!(mount.status()["transport_why"].is_null());
    assert!(servers(&mount) >= std::thread::available_parallelism().unwrap().get());
    let told = kvfs(["status".as_ref(), mount.point().as_os_str()]).code(0).stdout;
    assert!(told.lines().any(|line| line.split_whitespace().eq(["transport", "io_uring"])), "{told}");
    let mount = mount.stop().transport("dev-fuse").start();
    assert_eq!((&mount.status()["transport"], servers(&mount)), (&"/dev/fuse".into(), 0));
}

#[test]
fn bytes_of_every_size_come_back() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let volumes = [lab.volume(FsKind::Xfs, 512), lab.volume(FsKind::Ext4, 512)];
        let mount = lab.mount(&volumes.map(|v| v.join("kv"))).transport("io-uring").passthrough(mode).start();
        on_each(|processor| {
            for (n, len) in [0, 1, 4095, 4096, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9_000_001]
                .into_iter()
                .enumerate()
            {
                let (path, data) =
                    (mount.path(format!("{processor}-{n}")), pattern((processor * 100 + n) as u64, len));
                fs::write(&path, &data).unwrap();
                assert!(fs::read(&path).unwrap() == data, "{len} bytes, {mode:?}");
                // Past the caches, in the kernel and in the daemon.
                let direct = fs::File::options()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_DIRECT)
                    .open(&path)
                    .unwrap();
                let whole = len / 4096 * 4096;
                let mut room = vec![0u8; whole + 4096];
                let at = room.as_ptr().align_offset(4096);
                let room = &mut room[at..at + whole];
                direct.read_exact_at(room, 0).unwrap();
                assert!(*room == data[..whole], "{len} bytes, O_DIRECT, {mode:?}");
                room.reverse();
                direct.write_all_at(room, 0).unwrap();
                assert!(
                    fs::read(&path).unwrap()[..whole] == *room,
                    "{len} bytes written, O_DIRECT, {mode:?}"
                );
            }
        });
        if mode == Passthrough::Off {
            assert!(mount.op("write") > 0 && mount.op("read") > 0, "the data came to the daemon");
        }
    }
}

#[test]
fn many_clients_on_all_processors() {
    const EACH: usize = 8;
    const FILES: usize = 60;
    let lab = Lab::new();
    let mount = by_uring(&lab).start();
    on_each(|processor| {
        std::thread::scope(|scope| {
            for client in 0..EACH {
                let mount = &mount;
                scope.spawn(move || {
                    let dir = mount.path(format!("d{processor}-{client}"));
                    sys::mkdir(&dir, 0o755).unwrap();
                    for i in 0..FILES {
                        let (new, name) = (dir.join(format!("n{i}")), dir.join(format!("f{i}")));
                        fs::write(&new, pattern(i as u64, 3000)).unwrap();
                        sys::rename(&new, &name).unwrap();
                        assert_eq!(sys::lstat(&new).map(drop), Err(Errno::ENOENT));
                        assert_eq!(sys::lstat(&name).unwrap().st_size, 3000);
                        sys::symlink(format!("f{i}"), dir.join(format!("l{i}"))).unwrap();
                        assert!(fs::read(dir.join(format!("l{i}"))).unwrap() == pattern(i as u64, 3000));
                        if i % 2 == 1 {
                            sys::unlink(&name).unwrap();
                        }
                    }
                    assert_eq!(dir::list(&dir).unwrap().len(), FILES + FILES / 2);
                });
            }
        });
    });
    let left = on_each(|processor| {
        let files = |client| dir::list(mount.path(format!("d{processor}-{client}"))).unwrap().len();
        (0..EACH).map(files).sum::<usize>()
    });
    assert_eq!(left.iter().sum::<usize>(), left.len() * EACH * (FILES + FILES / 2));
    assert_eq!(names(mount.point()).len(), left.len() * EACH);
}

#[test]
fn long_listings_are_whole() {
    let lab = Lab::new();
    let backings = lab.dirs(2);
    let long = |i: usize| format!("{i:0>200}");
    for (i, backing) in backings.iter().cycle().take(8000).enumerate() {
        fs::write(backing.join(long(i)), "").unwrap();
    }
    let mount = lab.mount(&backings).transport("io-uring").start();
    let want: Vec<String> = (0..8000).map(long).collect();
    let all = on_each(|_| names(mount.point()));
    assert!(all.into_iter().all(|names| names == want));
    assert!(mount.op("readdir") + mount.op("readdirplus") > 10);
}

#[test]
fn attributes_as_large_as_they_get() {
    let lab = Lab::new();
    let mount = lab.mount(&[lab.volume(FsKind::Xfs, 512).join("kv")]).transport("io-uring").start();
    let path = mount.path("file");
    fs::write(&path, "").unwrap();
    // The second is longer than what is copied out of a request at most.
    for (len, name) in [(1000, "user.short"), (1 << 16, &*format!("user.{}", "long".repeat(60)))] {
        let value = pattern(len as u64, len);
        sys::setxattr(&path, name, &value, 0).unwrap();
        assert!(sys::getxattr(&path, name).unwrap() == value, "{len} bytes");
        assert_eq!(sys::getxattr_into(&path, name, 7), Err(Errno::ERANGE));
    }
    assert_eq!(sys::listxattr(&path).unwrap().len(), 2);
}

#[test]
fn ioctls_bring_and_take() {
    let lab = Lab::new();
    let mount = by_uring(&lab).start();
    let client = Client::open(mount.point()).unwrap();
    let data = pattern(3, 3_000_001);
    let buffer = HostBuffer::new(data.len(), Pages::Ordinary).unwrap();
    let registered = client.register(&buffer, Access::Both).unwrap();
    buffer.copy_in(0, &data);
    let file = File::create(mount.path("chunk")).unwrap();
    assert_eq!(file.write(0, &registered, 0, data.len() as u64).unwrap(), data.len() as u64);
    drop(file);
    assert!(fs::read(mount.path("chunk")).unwrap() == data);
    buffer.copy_in(0, &vec![0; data.len()]);
    let file = File::open(mount.path("chunk")).unwrap();
    file.read(0, &registered, 0, data.len() as u64).unwrap();
    let mut back = vec![0; data.len()];
    buffer.copy_out(0, &mut back);
    assert!(back == data);
}

#[test]
fn an_ordinary_users_mount_lets_nobody_else_in() {
    let lab = Lab::new();
    let backings = lab.dirs(1);
    let uid = crate::common::user::NOBODY;
    for path in backings.iter().chain([&lab.path("mnt")]) {
        fs::create_dir_all(path).unwrap();
        sys::chown(path, uid, uid).unwrap();
    }
    lab.fuse_for_everyone();
    let mount = lab.mount(&backings).transport("io-uring").user(uid).start();
    assert_eq!(sys::lstat(mount.path("x")).map(drop), Err(Errno::EACCES), "not even root");
    let made = crate::common::user::as_user(uid, uid, || fs::write(mount.path("x"), "mine").is_ok());
    assert!(made);
    drop(mount);
    assert_eq!(fs::read(backings[0].join("x")).unwrap(), b"mine");
}

#[cfg(feature = "fault-points")]
#[test]
fn panics_of_handlers_take_no_entry_with_them() {
    let lab = Lab::new();
    let mount = by_uring(&lab).start();
    let before = servers(&mount);
    // More than there are entries.
    for _ in 0..40 {
        on_each(|_| assert_eq!(sys::lstat(mount.path(".kvfs-fault-panic")).map(drop), Err(Errno::EIO)));
    }
    let n = std::thread::available_parallelism().unwrap().get() as u64;
    mount.expect_panics(40 * n);
    assert_eq!(servers(&mount), before);
    on_each(|processor| fs::write(mount.path(format!("f{processor}")), "after").unwrap());
}
