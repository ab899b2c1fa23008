//! SUBMIT: many ops on many files in one call, each with a result of its own.

use kvfs::direct::abi::{self, Op, Path};

use super::raw::{self, Buf, differ, outcome, read_op, submit, write_op};
use crate::common::{Errno, FsKind, Lab, Mount, Passthrough, R, pattern, ranked, sys};

const SIZE: usize = 33_333;

/// A mount over each kind of file system.
fn mixed(lab: &Lab, mode: Passthrough) -> Mount {
    let kinds = [FsKind::Xfs, FsKind::Ext4, FsKind::Tmpfs];
    let backings = kinds.map(|kind| lab.volume(kind, 512).join("kv"));
    lab.mount(&backings).passthrough(mode).start()
}

fn a_full_batch_over_three_backings(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mixed(&lab, mode);
    let dir = sys::open(mount.point(), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    let n = abi::BATCH_MAX;
    assert_eq!(n, 127);
    let files: Vec<_> = (0..n).map(|i| sys::create(mount.path(ranked(i % 3, i))).unwrap()).collect();
    let mut slots: Vec<_> = files.iter().map(|f| raw::query(f).unwrap().backing_id).collect();
    slots.dedup();
    assert_eq!(slots.len(), n, "neighbours are on different backings");
    let mut buf = Buf::new(&dir, n * SIZE);
    let data: Vec<_> = (0..n).map(|i| pattern(i as u64, SIZE)).collect();
    for (i, data) in data.iter().enumerate() {
        buf.map.put(i * SIZE, data);
    }
    let mut ops: Vec<Op> = (0..n)
        .map(|i| Op {
            file: raw::token(&files[i]),
            user_data: i as u64 ^ 0xdead_beef_0bad_cafe,
            ..write_op(buf.id, i * SIZE, 100 * (i as u64 % 7), SIZE)
        })
        .collect();
    for way in [abi::OP_WRITE, abi::OP_READ] {
        ops.iter_mut().for_each(|op| op.opcode = way);
        // On a directory: each op names its file.
        let (head, done) = submit(&dir, &ops).unwrap();
        assert_eq!((head.completed, head.path), (n as u32, Path::UringHost as u32));
        for (i, op) in done.iter().enumerate() {
            assert_eq!((op.result, op.user_data), (SIZE as i64, ops[i].user_data), "op {i}");
            let file = std::fs::read(mount.path(ranked(i % 3, i))).unwrap();
            assert_eq!(differ(&file[100 * (i % 7)..], &data[i]), None, "file {i}");
            assert_eq!(differ(&buf.map.get(i * SIZE, SIZE), &data[i]), None, "in the buffer for file {i}");
        }
        buf.blank();
    }
    let counts = &mount.status()["direct"]["counts"];
    assert_eq!((counts["reads"].as_u64(), counts["writes"].as_u64()), (Some(127), Some(127)));
    assert_eq!(counts["bytes_written"].as_u64(), Some((n * SIZE) as u64));
}

/// Records that share pages and sectors, written at once.
fn neighbours(mode: Passthrough) {
    for kind in [FsKind::Xfs, FsKind::Ext4, FsKind::Tmpfs] {
        let lab = Lab::new();
        let mount = lab.mount(&[lab.volume(kind, 512).join("kv")]).passthrough(mode).start();
        let fd = sys::create(mount.path("f")).unwrap();
        let buf = &mut Buf::new(&fd, 4 << 20);
        for round in 0..24u64 {
            let size = [1000, 1536, 5000, 30_000, 4608, 512][round as usize % 6];
            let data = pattern(round, 127 * size);
            buf.map.put(0, &data);
            let ops: Vec<_> = (0..127).map(|i| write_op(buf.id, i * size, (i * size) as u64, size)).collect();
            let (head, _) = submit(&fd, &ops).unwrap();
            assert_eq!(head.completed, 127);
            let path = mount.path("f");
            let seen = std::fs::read(&path).unwrap();
            assert_eq!(differ(&seen[..data.len()], &data), None, "{kind:?} {size} {round}: read(2)");
            let below = mount.backings()[0].join("f");
            super::engine::cool(&below);
            let seen = std::fs::read(&below).unwrap();
            assert_eq!(differ(&seen[..data.len()], &data), None, "{kind:?} {size} {round}: on the device");
        }
    }
}

/// Aligned records with unaligned ones between them: of the file some go past the page cache and some through
/// it, in folios that a read has made large.
fn neighbours_of_both_kinds(mode: Passthrough) {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let lab = Lab::new();
        let mount = lab.mount(&[lab.volume(kind, 512).join("kv")]).passthrough(mode).start();
        let fd = sys::create(mount.path("f")).unwrap();
        let below = mount.backings()[0].join("f");
        let (records, whole, part) = (60, 65_536, 1000);
        let mut model = pattern(0, records * (whole + 4096));
        assert_eq!(sys::pwrite(&fd, &model, 0), Ok(model.len()));
        let buf = &mut Buf::new(&fd, model.len());
        for round in 1..16u64 {
            super::engine::cool(&below);
            assert!(std::fs::read(&below).unwrap() == model);
            let data = pattern(round, model.len());
            buf.map.put(0, &data);
            let places = (0..records).flat_map(|i| {
                let start = i * (whole + 4096);
                [(start, whole), (start + whole + 100, part)]
            });
            let places: Vec<_> = places.collect();
            let ops: Vec<_> = places.iter().map(|&(at, len)| write_op(buf.id, at, at as u64, len)).collect();
            assert_eq!(submit(&fd, &ops).unwrap().0.completed as usize, ops.len());
            places.iter().for_each(|&(at, len)| model[at..at + len].copy_from_slice(&data[at..at + len]));
            assert_eq!(differ(&std::fs::read(&below).unwrap(), &model), None, "{kind:?} {round}: read(2)");
            super::engine::cool(&below);
            assert_eq!(differ(&std::fs::read(&below).unwrap(), &model), None, "{kind:?} {round}: the device");
        }
    }
}

fn a_wrong_op_is_its_own_affair(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mixed(&lab, mode);
    let files: Vec<_> = (0..3).map(|i| sys::create(mount.path(ranked(i, i))).unwrap()).collect();
    let reader = sys::open(mount.path(ranked(0, 0)), libc::O_RDONLY, 0).unwrap();
    let content = pattern(9, 10_000);
    files.iter().for_each(|f| assert_eq!(sys::pwrite(f, &content, 0), Ok(10_000)));
    let mut buf = Buf::new(&files[0], 100_000);
    let memfd = raw::memfd(8192);
    let sink = abi::RegBuf { flags: abi::BUF_RD, ..raw::reg(&memfd, 8192) };
    let sink = raw::register(&files[0], &sink).unwrap().buf_id;
    let good = |i: usize| Op { file: raw::token(&files[i]), ..read_op(buf.id, i * 20_000, 0, 10_000) };
    let wrong: Vec<(Op, R<usize>)> = vec![
        (Op { opcode: 3, ..good(0) }, Err(Errno::EINVAL)),
        (Op { opcode: 0, ..good(0) }, Err(Errno::EINVAL)),
        (Op { flags: 1, ..good(0) }, Err(Errno::EINVAL)),
        (Op { file: 12345, ..good(0) }, Err(Errno::EBADF)),
        (Op { buf_id: buf.id ^ 1, ..good(0) }, Err(Errno::ENOENT)),
        (Op { buf_id: 0, ..good(0) }, Err(Errno::ENOENT)),
        (Op { buf_off: 90_001, ..good(0) }, Err(Errno::ERANGE)),
        (Op { buf_off: u64::MAX - 5, ..good(0) }, Err(Errno::ERANGE)),
        (Op { file_off: u64::MAX - 5, ..good(0) }, Err(Errno::EINVAL)),
        (Op { file_off: i64::MAX as u64, ..good(0) }, Err(Errno::EINVAL)),
        (Op { opcode: abi::OP_WRITE, file: raw::token(&reader), ..good(0) }, Err(Errno::EBADF)),
        (Op { opcode: abi::OP_WRITE, buf_id: sink, length: 100, ..good(0) }, Err(Errno::EACCES)),
        (Op { file_off: 9_990, buf_off: 95_000, length: 100, ..good(1) }, Ok(10)),
        (Op { file_off: 20_000, ..good(2) }, Ok(0)),
    ];
    let mut ops = vec![good(0)];
    for (op, _) in &wrong {
        ops.push(*op);
        ops.push(good(ops.len() % 3));
    }
    let (head, done) = submit(&files[2], &ops).unwrap();
    for (i, (op, want)) in wrong.iter().enumerate() {
        assert_eq!(outcome(done[2 * i + 1].result), *want, "{op:?}");
    }
    assert!(done.iter().step_by(2).all(|op| op.result == 10_000));
    assert_eq!(head.completed as usize, wrong.len() + 1 + 2);
    for i in 0..3 {
        assert_eq!(differ(&buf.map.get(i * 20_000, 10_000), &content), None, "file {i}");
        assert_eq!(std::fs::read(mount.path(ranked(i, i))).unwrap(), content, "no file was changed");
    }
    // All wrong: the call was still looked at.
    buf.blank();
    let (head, done) = submit(&files[0], &[wrong[0].0, wrong[3].0]).unwrap();
    assert_eq!((head.completed, head.path), (0, Path::None as u32));
    assert!(done.iter().all(|op| op.result < 0));
    buf.holds(0, b"", "wrong ops");
}

/// One op of a batch may write what another's file has no room for.
fn a_full_backing_fails_its_own_ops(mode: Passthrough) {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Tmpfs, 16).join("kv"), lab.volume(FsKind::Tmpfs, 64).join("kv")];
    let mount = lab.mount(&backings).arg("--min-free").arg("0").passthrough(mode).start();
    let files: Vec<_> = (0..2).map(|i| sys::create(mount.path(ranked(i, i))).unwrap()).collect();
    let len = 24 << 20;
    let buf = Buf::new(&files[0], len);
    let ops: Vec<_> =
        files.iter().map(|f| Op { file: raw::token(f), ..write_op(buf.id, 0, 0, len) }).collect();
    let (head, done) = submit(&files[0], &ops).unwrap();
    assert_eq!(outcome(done[0].result), Err(Errno::ENOSPC));
    assert_eq!((outcome(done[1].result), head.completed), (Ok(len), 1));
    assert_eq!(std::fs::read(mount.path(ranked(1, 1))).unwrap(), buf.all());
}

super::both!(
    a_full_batch_over_three_backings,
    neighbours,
    neighbours_of_both_kinds,
    a_wrong_op_is_its_own_affair,
    a_full_backing_fails_its_own_ops
);
