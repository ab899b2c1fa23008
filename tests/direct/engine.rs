//! Host memory: what READ brings is what pread(2) does, what WRITE takes is what pread(2) finds, at every size
//! and alignment, on every kind of file system, with the page cache warm and cold.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use kvfs::direct::abi::{self, Path as Way, Why};

use super::raw::{Buf, differ, query, read_op, transfer, write_op};
use crate::common::{FsKind, Lab, Mount, Passthrough, lab, pattern, sys};

const K: usize = 1 << 10;
const M: usize = 1 << 20;
const SIZES: [usize; 14] = [
    1,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    64 * K - 1,
    64 * K,
    64 * K + 1,
    M,
    2 * M + 512,
    4 * M + 1236,
    32 * M,
];
const FILE_OFFS: [usize; 7] = [0, 1, 511, 512, 4096, 4097, 65535];
const BUF_OFFS: [usize; 6] = [0, 1, 511, 512, 4096, 4608];
/// What the largest op at the largest offset needs, and a page of neighbours.
const ROOM: usize = 32 * M + 128 * K;

/// Sizes with file and buffer offsets; of the large ones a few.
fn grid() -> Vec<(usize, usize, usize)> {
    let mut grid = Vec::new();
    for size in SIZES {
        for (i, file_off) in FILE_OFFS.into_iter().enumerate() {
            for (j, buf_off) in BUF_OFFS.into_iter().enumerate() {
                let often = size <= 64 * K + 1 || (size <= M && (i + j) % 3 == 0);
                if often || (i == j && (size < 32 * M || i == 0 || i == 3)) || (size < 32 * M && i == j + 1) {
                    grid.push((size, file_off, buf_off));
                }
            }
        }
    }
    grid
}

/// Has the pages of a file written out and forgotten, so that the next read comes from the device.
pub(super) fn cool(path: &Path) {
    let fd = sys::open(path, libc::O_RDWR, 0).unwrap();
    sys::fsync(&fd).unwrap();
    // SAFETY: integers only.
    assert_eq!(unsafe { libc::posix_fadvise(fd.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
}

/// In the order in which they go.
struct Bench {
    fd: OwnedFd,
    mount: Mount,
    path: PathBuf,
    below: PathBuf,
    _lab: Lab,
}

fn bench(volume: impl FnOnce(&Lab) -> PathBuf, mode: Passthrough, content: &[u8]) -> Bench {
    let lab = Lab::new();
    let backing = volume(&lab).join("kv");
    std::fs::create_dir(&backing).unwrap();
    let below = backing.join("f");
    std::fs::write(&below, content).unwrap();
    let mount = lab.mount(&[backing]).passthrough(mode).start();
    let path = mount.path("f");
    let fd = sys::open(&path, libc::O_RDWR, 0).unwrap();
    Bench { fd, mount, path, below, _lab: lab }
}

fn reads_are_preads(volume: impl FnOnce(&Lab) -> PathBuf, mode: Passthrough) {
    let content = pattern(7, ROOM - 3);
    let b = bench(volume, mode, &content);
    let mut bufs = [128 * K, 2 * M, ROOM].map(|len| Buf::new(&b.fd, len));
    for (n, (size, file_off, buf_off)) in grid().into_iter().enumerate() {
        if n % 5 == 0 {
            cool(&b.below);
        }
        let buf = bufs.iter_mut().find(|buf| size + 8192 <= buf.len).unwrap();
        let what = format!("READ of {size} at {file_off} to {buf_off}");
        buf.blank();
        assert_eq!(transfer(&b.fd, read_op(buf.id, buf_off, file_off as u64, size)), Ok(size), "{what}");
        buf.holds(buf_off, &content[file_off..file_off + size], &what);
    }
}

fn writes_are_seen_by_pread(volume: impl FnOnce(&Lab) -> PathBuf, mode: Passthrough) {
    let mut model = pattern(1, ROOM - 3);
    let b = bench(volume, mode, &model);
    let other = sys::open(&b.path, libc::O_RDONLY, 0).unwrap();
    let mut buf = Buf::new(&b.fd, ROOM);
    for (n, (size, file_off, buf_off)) in grid().into_iter().enumerate() {
        let what = format!("WRITE of {size} at {file_off} from {buf_off}");
        // Neighbours cached or not.
        if n % 5 == 0 {
            cool(&b.below);
        } else {
            sys::pread(&other, size + 2 * 65536, 0).unwrap();
        }
        let data = pattern(n as u64 + 100, size);
        buf.map.put(buf_off, &data);
        model[file_off..file_off + size].copy_from_slice(&data);
        assert_eq!(transfer(&b.fd, write_op(buf.id, buf_off, file_off as u64, size)), Ok(size), "{what}");
        let seen = sys::pread(&other, size + file_off + 8192, 0).unwrap();
        assert_eq!(
            differ(&seen, &model[..seen.len()]),
            None,
            "{what}: the first byte that pread has otherwise"
        );
    }
    for from in [&b.path, &b.below] {
        assert_eq!(differ(&std::fs::read(from).unwrap(), &model), None, "{}", from.display());
        cool(&b.below);
    }
    assert_eq!(differ(&std::fs::read(&b.below).unwrap(), &model), None, "on the device");
    assert!(b.mount.status()["direct"]["counts"]["writes"].as_u64().unwrap() >= 400);
}

macro_rules! on {
    ($($name:ident $volume:expr, $mode:ident;)*) => {
        $(mod $name {
            use super::*;
            #[test]
            fn reads() { reads_are_preads($volume, Passthrough::$mode); }
            #[test]
            fn writes() { writes_are_seen_by_pread($volume, Passthrough::$mode); }
        })*
    };
}

on! {
    xfs_auto |lab| lab.volume(FsKind::Xfs, 512), Auto;
    xfs_off |lab| lab.volume(FsKind::Xfs, 512), Off;
    ext4_auto |lab| lab.volume(FsKind::Ext4, 256), Auto;
    ext4_off |lab| lab.volume(FsKind::Ext4, 256), Off;
    tmpfs_auto |lab| lab.volume(FsKind::Tmpfs, 256), Auto;
    tmpfs_off |lab| lab.volume(FsKind::Tmpfs, 256), Off;
    ramfs refusing, Off;
    sectors_of_4096 |lab| lab.volume_with(FsKind::Xfs, 512, &["-s", "size=4096"]), Auto;
}

/// A file system that refuses O_DIRECT.
fn refusing(lab: &Lab) -> PathBuf {
    let point = lab.dir("ramfs");
    lab::run(Command::new("mount").args(["-t", "ramfs", "kvfs-test"]).arg(&point));
    point
}

#[test]
fn a_backing_without_direct_io_says_so() {
    let b = bench(refusing, Passthrough::Auto, b"data");
    let open = sys::open(&b.below, libc::O_RDONLY | libc::O_DIRECT, 0);
    assert_eq!(open.map(drop), Err(crate::common::Errno::EINVAL), "ramfs refuses direct I/O");
    let q = query(&b.fd).unwrap();
    assert_eq!((q.path_host, q.host_reason), (Way::UringHost as u32, Why::NoDirectIo.code()));
    let buf = Buf::new(&b.fd, 8192);
    assert_eq!(transfer(&b.fd, read_op(buf.id, 0, 0, 4096)), Ok(4));
    buf.holds(0, b"data", "READ");
}

/// The ends of an unaligned transfer go through the page cache and its middle past it, at the same time: none
/// may undo what another has written, in the cache or on the device.
fn ends_and_middle(kind: FsKind, mode: Passthrough) {
    let len = 300_000usize;
    let mut model = pattern(3, len + 8192);
    let b = bench(|lab| lab.volume(kind, 512), mode, &model);
    let other = sys::open(&b.path, libc::O_RDONLY, 0).unwrap();
    let buf = &mut Buf::new(&b.fd, len + 8192);
    for round in 0..60usize {
        match round % 3 {
            0 => cool(&b.below),
            1 => drop(sys::pread(&other, model.len(), 0).unwrap()),
            // As the round before has left it.
            _ => {}
        }
        let at = [100, 612, 3000, 4095, 7777][round % 5];
        let data = pattern(round as u64 + 50, len);
        buf.map.put(at, &data);
        model[at..at + len].copy_from_slice(&data);
        assert_eq!(transfer(&b.fd, write_op(buf.id, at, at as u64, len)), Ok(len));
        let seen = sys::pread(&other, model.len(), 0).unwrap();
        assert_eq!(differ(&seen, &model), None, "round {round}: pread");
        cool(&b.below);
        assert_eq!(differ(&std::fs::read(&b.below).unwrap(), &model), None, "round {round}: on the device");
    }
}

#[test]
fn ends_and_middle_xfs() {
    ends_and_middle(FsKind::Xfs, Passthrough::Auto);
}

#[test]
fn ends_and_middle_ext4() {
    ends_and_middle(FsKind::Ext4, Passthrough::Off);
}

fn ends_of_files(mode: Passthrough) {
    for kind in [FsKind::Xfs, FsKind::Ext4, FsKind::Tmpfs] {
        let b = bench(|lab| lab.volume(kind, 512), mode, b"");
        let mut buf = Buf::new(&b.fd, 4 * M);
        for size in [0, 1, 511, 512, 513, 1000, 1024, 4095, 4096, 4097, 2 * M, 2 * M + 1, 2 * M + 700] {
            let content = pattern(size as u64, size);
            std::fs::write(&b.path, &content).unwrap();
            cool(&b.below);
            for (file_off, buf_off) in [(0, 0), (1, 0), (512, 512), (4096, 4096), (1000, 1000)] {
                let what = format!("{kind:?}: {size} bytes, READ at {file_off}");
                let want = content.get(file_off..).unwrap_or_default();
                buf.blank();
                let read = transfer(&b.fd, read_op(buf.id, buf_off, file_off as u64, 3 * M));
                assert_eq!(read, Ok(want.len()), "{what}");
                assert_eq!(differ(&buf.map.get(buf_off, want.len()), want), None, "{what}");
            }
            for behind in [size as u64, size as u64 + 1, 1 << 40] {
                assert_eq!(transfer(&b.fd, read_op(buf.id, 0, behind, 4096)), Ok(0), "behind the end");
            }
        }
    }
}

/// A file with holes reads as zeros, and a WRITE far behind the end makes one.
fn holes(mode: Passthrough) {
    for kind in [FsKind::Xfs, FsKind::Ext4, FsKind::Tmpfs] {
        let b = bench(|lab| lab.volume(kind, 512), mode, b"");
        let mut buf = Buf::new(&b.fd, 2 * M);
        let mut model = vec![0; 5 * M + 123];
        for (at, len) in [(M + 77, 5000), (3 * M, 4096), (5 * M, 123)] {
            let data = pattern(at as u64, len);
            buf.map.put(0, &data);
            model[at..at + len].copy_from_slice(&data);
            assert_eq!(transfer(&b.fd, write_op(buf.id, 0, at as u64, len)), Ok(len));
        }
        assert_eq!(differ(&std::fs::read(&b.path).unwrap(), &model), None, "{kind:?}: read(2)");
        for at in [0, 512, M - 1, M, 3 * M - 4096, 4 * M + 5] {
            let len = (model.len() - at).min(M + 4096);
            buf.blank();
            assert_eq!(transfer(&b.fd, read_op(buf.id, at % 4096, at as u64, len)), Ok(len));
            buf.holds(at % 4096, &model[at..at + len], &format!("{kind:?}: READ at {at}"));
        }
    }
}

/// A region that starts within a memfd is its own; an op with nothing to move moves nothing.
fn regions(mode: Passthrough) {
    let content = pattern(5, 20_000);
    let b = bench(|lab| lab.dir("plain"), mode, &content);
    let mut whole = Buf::new(&b.fd, 64 * K);
    let part = abi::RegBuf { offset: 8192, length: 12_000, ..super::raw::reg(&whole.memfd, 0) };
    let part = super::raw::register(&b.fd, &part).unwrap();
    assert_eq!((part.path, part.reason), (Way::UringHost as u32, Why::Best.code()));
    assert_eq!(transfer(&b.fd, read_op(part.buf_id, 100, 50, 11_900)), Ok(11_900));
    whole.holds(8292, &content[50..11_950], "a region");
    whole.blank();
    for (buf_off, file_off) in [(0, 0), (12_000, 0), (5, 1 << 50)] {
        assert_eq!(transfer(&b.fd, read_op(part.buf_id, buf_off, file_off, 0)), Ok(0));
        assert_eq!(transfer(&b.fd, write_op(part.buf_id, buf_off, file_off, 0)), Ok(0));
    }
    whole.holds(0, b"", "ops of no length");
    assert_eq!(sys::fstat(&b.fd).unwrap().st_size, 20_000);
}

super::both!(ends_of_files, holes, regions);
