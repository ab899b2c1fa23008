//! What one client moves by ioctl, others see at once by every other call, and the other way round.

use libc::*;

use super::raw::{Buf, differ, read_op, transfer, write_op};
use crate::common::user::{NOBODY, as_user, in_child};
use crate::common::{FsKind, Lab, Mount, Passthrough, pattern, sys};

fn mount(lab: &Lab, mode: Passthrough) -> Mount {
    lab.mount(&[lab.volume(FsKind::Xfs, 512).join("kv")]).passthrough(mode).start()
}

fn size_and_times(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    // Closed once, so that others see it.
    std::fs::write(&path, "begin").unwrap();
    let fd = sys::open(&path, O_RDWR, 0).unwrap();
    let other = sys::open(&path, O_RDONLY, 0).unwrap();
    let buf = Buf::new(&fd, 65536);
    let mut size = 5;
    for len in [1, 4096, 5000, 65536] {
        // Cached, and not to be believed.
        let before = [sys::stat(&path).unwrap(), sys::fstat(&other).unwrap()];
        assert!(before.iter().all(|st| st.st_size == size));
        sys::tick();
        assert_eq!(transfer(&fd, write_op(buf.id, 0, size as u64, len)), Ok(len));
        size += len as i64;
        let theirs = in_child(|| sys::stat(&path).unwrap().st_size.to_string());
        assert_eq!(theirs, size.to_string(), "another process");
        assert_eq!(sys::lseek(&other, 0, SEEK_END), Ok(size));
        for st in [sys::stat(&path).unwrap(), sys::fstat(&other).unwrap(), sys::fstat(&fd).unwrap()] {
            assert_eq!(st.st_size, size);
            let time = |st: &stat| (st.st_mtime, st.st_mtime_nsec);
            assert!(time(&st) > time(&before[0]), "a later time of change");
        }
        assert_eq!(sys::pread(&other, 1 << 20, 0).unwrap().len() as i64, size);
    }
    // In place: the size stays.
    sys::tick();
    let before = sys::stat(&path).unwrap();
    assert_eq!(transfer(&fd, write_op(buf.id, 0, 10, 100)), Ok(100));
    let after = sys::stat(&path).unwrap();
    assert_eq!(after.st_size, size);
    assert!((after.st_mtime, after.st_mtime_nsec) > (before.st_mtime, before.st_mtime_nsec));
}

fn read_after_write(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    let len = 300_000;
    std::fs::write(&path, pattern(0, len)).unwrap();
    let fd = sys::open(&path, O_RDWR, 0).unwrap();
    let other = sys::open(&path, O_RDONLY, 0).unwrap();
    let mut buf = Buf::new(&fd, len);
    let mut model = pattern(0, len);
    for round in 1..40u64 {
        // The kernel has all of it cached by now, where it keeps pages.
        assert_eq!(differ(&sys::pread(&other, len, 0).unwrap(), &model), None, "round {round}");
        let (at, size) =
            [(0, len), (100, 5), (4096, 8192), (4000, 9000), (131_072, 65_536)][round as usize % 5];
        let data = pattern(round, size);
        if round % 2 == 0 {
            assert_eq!(sys::pwrite(&other_writer(&path), &data, at as i64), Ok(size));
        } else {
            buf.map.put(at, &data);
            assert_eq!(transfer(&fd, write_op(buf.id, at, at as u64, size)), Ok(size));
        }
        model[at..at + size].copy_from_slice(&data);
        assert_eq!(transfer(&fd, read_op(buf.id, 0, 0, len)), Ok(len));
        assert_eq!(differ(&buf.all(), &model), None, "round {round}: READ");
    }
}

fn other_writer(path: &std::path::Path) -> std::os::fd::OwnedFd {
    sys::open(path, O_WRONLY, 0).unwrap()
}

/// While others read the same bytes without pause, nothing old is left in the cache behind a WRITE.
fn readers_leave_nothing_old(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    let len = 256 << 10;
    std::fs::write(&path, vec![0; len]).unwrap();
    let fd = sys::open(&path, O_RDWR, 0).unwrap();
    let mut buf = Buf::new(&fd, len);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let fd = sys::open(&path, O_RDONLY, 0).unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    sys::pread(&fd, len, 0).unwrap();
                }
            });
        }
        let stopped = crate::fast::raw::Finally(|| stop.store(true, std::sync::atomic::Ordering::Relaxed));
        for round in 1..150usize {
            buf.map.put(0, &vec![round as u8; len]);
            assert_eq!(transfer(&fd, write_op(buf.id, 0, 0, len)), Ok(len));
            let seen = sys::pread(&fd, len, 0).unwrap();
            assert_eq!(seen.iter().position(|b| *b != round as u8), None, "an old byte in round {round}");
        }
        drop(stopped);
    });
}

fn mappings(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    std::fs::write(&path, vec![1; 16_384]).unwrap();
    let fd = sys::open(&path, O_RDWR, 0).unwrap();
    let mut map = sys::Map::new(&fd, 65_536, PROT_READ | PROT_WRITE, MAP_SHARED).unwrap();
    let mut buf = Buf::new(&fd, 65_536);
    assert_eq!(map.get(0, 16_384), vec![1; 16_384]);
    for (value, at, len) in [(2, 0, 16_384), (3, 100, 50), (4, 4096, 4096), (5, 16_000, 384)] {
        buf.map.put(at, &vec![value; len]);
        assert_eq!(transfer(&fd, write_op(buf.id, at, at as u64, len)), Ok(len));
        assert_eq!(map.get(at, len), vec![value; len], "mapped, after a WRITE in place");
    }
    // Growth, into pages of the mapping that had none.
    buf.map.put(0, &[6; 65_536]);
    assert_eq!(transfer(&fd, write_op(buf.id, 16_384, 16_384, 49_152)), Ok(49_152));
    assert_eq!(in_child(|| format!("{:?}", map.get(65_535, 1))), "[6]", "mapped, where the file has grown");
    // The other way: what was stored is on its way with msync.
    map.put(5000, b"stored");
    map.sync().unwrap();
    buf.blank();
    assert_eq!(transfer(&fd, read_op(buf.id, 0, 5000, 6)), Ok(6));
    buf.holds(0, b"stored", "READ of what was mapped");
}

fn allocation(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    let fd = sys::create(&path).unwrap();
    let mut buf = Buf::new(&fd, 1 << 20);
    let mut model = vec![0; 300_000];
    sys::fallocate(&fd, 0, 0, 300_000).unwrap();
    assert_eq!(transfer(&fd, read_op(buf.id, 0, 0, 1 << 20)), Ok(300_000));
    assert_eq!(differ(&buf.map.get(0, 300_000), &model), None, "allocated");
    let data = pattern(1, 400_000);
    buf.map.put(0, &data);
    assert_eq!(transfer(&fd, write_op(buf.id, 0, 0, 400_000)), Ok(400_000));
    model = data;
    for (at, len) in [(8192, 65_536), (100_001, 777)] {
        assert_eq!(differ(&sys::pread(&fd, 1 << 20, 0).unwrap(), &model), None, "cached");
        sys::fallocate(&fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at as i64, len as i64).unwrap();
        model[at..at + len].fill(0);
        buf.blank();
        assert_eq!(transfer(&fd, read_op(buf.id, 0, 0, 400_000)), Ok(400_000));
        buf.holds(0, &model, "punched");
    }
    // Room ahead that is no part of the file, and a WRITE into it.
    sys::fallocate(&fd, FALLOC_FL_KEEP_SIZE, 400_000, 600_000).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_size, 400_000);
    buf.map.put(0, &[9; 4096]);
    assert_eq!(transfer(&fd, write_op(buf.id, 0, 500_000, 4096)), Ok(4096));
    model.resize(500_000, 0);
    model.extend([9; 4096]);
    assert_eq!(differ(&std::fs::read(&path).unwrap(), &model), None);
}

/// As write(2) does it: nothing in a cache may be setuid.
fn setuid_goes(mode: Passthrough) {
    let lab = Lab::new();
    for (n, kind) in [FsKind::Xfs, FsKind::Ext4, FsKind::Tmpfs].into_iter().enumerate() {
        let backing = lab.volume(kind, 512).join("kv");
        let builder = lab.mount(&[backing]).at(lab.dir(&format!("mnt{n}"))).passthrough(mode);
        let mount = builder.start();
        let path = mount.path("f");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        for (who, before) in [(0, 0o6777), (NOBODY, 0o6777), (NOBODY, 0o4766), (0, 0o2777)] {
            for (at, len) in [(0, 4096), (10, 10)] {
                sys::chmod(&path, before).unwrap();
                assert_eq!(sys::stat(&path).unwrap().st_mode & 0o7777, before);
                as_user(who, who, || {
                    let fd = sys::open(&path, O_RDWR, 0).unwrap();
                    let wrote = transfer(&fd, write_op(shared(&fd), 0, at, len));
                    assert_eq!(wrote, Ok(len), "{kind:?}: as {who}");
                });
                let left = sys::stat(&path).unwrap().st_mode & 0o7777;
                assert_eq!(left, before & 0o777, "{kind:?}: left of {before:o} after a WRITE by {who}");
            }
        }
    }
}

/// A buffer whose memory the client doesn't need to see.
fn shared(fd: &std::os::fd::OwnedFd) -> u64 {
    let memfd = super::raw::memfd(4096);
    super::raw::register(fd, &super::raw::reg(&memfd, 4096)).unwrap().buf_id
}

/// What has no name any more is still read and written by those who have it open.
fn orphans(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let fd = sys::create(mount.path("f")).unwrap();
    let mut buf = Buf::new(&fd, 65_536);
    sys::rename(mount.path("f"), mount.path("g")).unwrap();
    buf.map.put(0, &pattern(1, 65_536));
    assert_eq!(transfer(&fd, write_op(buf.id, 0, 0, 65_536)), Ok(65_536));
    assert_eq!(differ(&std::fs::read(mount.path("g")).unwrap(), &pattern(1, 65_536)), None);
    sys::unlink(mount.path("g")).unwrap();
    std::fs::write(mount.path("g"), "another").unwrap();
    buf.map.put(0, &pattern(2, 65_536));
    assert_eq!(transfer(&fd, write_op(buf.id, 0, 0, 65_536)), Ok(65_536));
    assert_eq!(std::fs::read(mount.path("g")).unwrap(), b"another");
    buf.blank();
    assert_eq!(transfer(&fd, read_op(buf.id, 0, 0, 65_536)), Ok(65_536));
    buf.holds(0, &pattern(2, 65_536), "a file without a name");
}

super::both!(
    size_and_times,
    read_after_write,
    readers_leave_nothing_old,
    mappings,
    allocation,
    setuid_goes,
    orphans,
);
