//! Calls that are wrong in themselves, on files and directories: the errno that the header says, and nothing
//! else happens.

use std::os::fd::OwnedFd;

use kvfs::direct::abi::{self, Batch, Locate, Op, Prefix, Query, RegBuf, UnregBuf, feature, kind, nr};
use zerocopy::{FromBytes, IntoBytes};

use super::raw::{self, Buf, call, ioctl, query};
use crate::common::{Errno, Lab, Mount, Passthrough, R, ranked, sys};

struct Field {
    lab_first: Lab,
    mount: Mount,
    file: OwnedFd,
    dir: OwnedFd,
}

fn field() -> Field {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    let file = sys::create(mount.path("f")).unwrap();
    let dir = sys::open(mount.point(), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    Field { lab_first: lab, mount, file, dir }
}

impl Field {
    /// Ends the mount before what is below it.
    fn end(self) {
        let Field { lab_first, mount, file, dir } = self;
        drop((file, dir));
        drop(mount);
        drop(lab_first);
    }
}

fn errno(answer: R<Vec<u8>>) -> Option<Errno> {
    answer.err()
}

/// Each call, well-formed.
fn good(f: &Field, buf: &Buf) -> Vec<(u8, Vec<u8>)> {
    let op = raw::read_op(buf.id, 0, 0, 100);
    let head = Batch { nr_ops: 2, ..Batch::default() };
    let prefix = Prefix { nr_names: 1, names_len: 2, ..Prefix::default() };
    let unreg = UnregBuf {
        buf_id: raw::register(&f.file, &raw::reg(&buf.memfd, 4096)).unwrap().buf_id,
        ..UnregBuf::default()
    };
    vec![
        (nr::QUERY, Query { abi: 1, ..Query::default() }.as_bytes().to_vec()),
        (nr::REGISTER, raw::reg(&buf.memfd, 4096).as_bytes().to_vec()),
        (nr::UNREGISTER, unreg.as_bytes().to_vec()),
        (nr::READ, op.as_bytes().to_vec()),
        (nr::WRITE, Op { opcode: abi::OP_WRITE, ..op }.as_bytes().to_vec()),
        (nr::SUBMIT, [head.as_bytes(), op.as_bytes(), op.as_bytes()].concat()),
        (nr::LOCATE, Locate::default().as_bytes().to_vec()),
        (nr::LOOKUP_PREFIX, [prefix.as_bytes(), b"f\0"].concat()),
    ]
}

#[test]
fn sizes_are_versions() {
    let f = field();
    let buf = Buf::new(&f.file, 4096);
    for (nr, arg) in good(&f, &buf) {
        let on = if nr == nr::LOOKUP_PREFIX { &f.dir } else { &f.file };
        // Nothing is of a size of its own where a list follows.
        let listed = nr == nr::SUBMIT || nr == nr::LOOKUP_PREFIX;
        let allowed = if nr == nr::LOCATE { Some(Errno::EPERM) } else { None };
        for shorter in [0, 1, 4, arg.len() / 2, arg.len() - 1] {
            assert_eq!(errno(call(on, nr, &arg[..shorter])), Some(Errno::EINVAL), "call {nr} of {shorter}");
        }
        for (tail, want) in [(vec![0; 8], allowed), (vec![0, 0, 1, 0], Some(Errno::E2BIG))] {
            let longer = [arg.clone(), tail].concat();
            // UNREGISTER would have nothing to do the second time.
            let want = if listed { Some(Errno::EINVAL) } else { want };
            let answer = call(on, nr, &longer);
            if let Ok(out) = &answer {
                assert!(out[arg.len()..].iter().all(|b| *b == 0), "the rest of the answer is zeros");
            }
            assert_eq!(errno(answer), want, "call {nr} of {}", longer.len());
        }
        if nr != nr::UNREGISTER {
            assert_eq!(errno(call(on, nr, &arg)), allowed, "call {nr}");
        }
    }
    let most = [Query { abi: 1, ..Query::default() }.as_bytes(), &vec![0; abi::MAX_SIZE - 128]].concat();
    assert_eq!(errno(call(&f.file, nr::QUERY, &most)), None, "a QUERY of 8191 bytes");
    drop(buf);
    f.end();
}

#[test]
fn the_command_word_is_looked_at_whole() {
    let f = field();
    let arg = Query { abi: 1, ..Query::default() };
    for on in [&f.file, &f.dir] {
        let word = abi::command(nr::QUERY, 128);
        assert_eq!(errno(ioctl(on, word, arg.as_bytes())), None);
        // Both directions, or the answer or the question is lost.
        for direction in [0u32, 1, 2] {
            let other = word & !(3 << 30) | direction << 30;
            assert_eq!(errno(ioctl(on, other, arg.as_bytes())), Some(Errno::EINVAL), "direction {direction}");
        }
        for unknown in 8..=255u8 {
            assert_eq!(errno(call(on, unknown, arg.as_bytes())), Some(Errno::ENOTTY), "number {unknown}");
        }
        for magic in [0u32, b'f'.into(), 0xBA, 0xBC, 0xff] {
            let other = word & !0xff00 | magic << 8;
            let answer = errno(ioctl(on, other, arg.as_bytes()));
            // The kernel knows some of 'f' itself.
            assert!(matches!(answer, Some(Errno::ENOTTY | Errno::EINVAL)), "magic {magic:x}: {answer:?}");
        }
        assert_eq!(errno(ioctl(on, 0x5401, &[])), Some(Errno::ENOTTY), "TCGETS");
    }
    f.end();
}

/// Sets each byte that has to be zero, one after the other.
fn spoil(on: &OwnedFd, nr: u8, good: &[u8], zero: impl IntoIterator<Item = usize>) {
    for at in zero {
        for bit in [0, 7] {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << bit;
            assert_eq!(errno(call(on, nr, &bad)), Some(Errno::EINVAL), "call {nr}: byte {at}, bit {bit}");
        }
    }
}

#[test]
fn what_is_reserved_is_zero() {
    use std::mem::offset_of;
    let f = field();
    let buf = Buf::new(&f.file, 4096);
    let all = good(&f, &buf);
    let arg = |nr: u8| all.iter().find(|(n, _)| *n == nr).unwrap().1.clone();
    spoil(&f.file, nr::QUERY, &arg(nr::QUERY), (4..8).chain(96..128));
    let reg = offset_of!(RegBuf, parent_id)..offset_of!(RegBuf, buf_id);
    let handle = offset_of!(RegBuf, gpu_uuid)..offset_of!(RegBuf, parent_id);
    let alloc = offset_of!(RegBuf, alloc_size)..offset_of!(RegBuf, fd);
    let token = offset_of!(RegBuf, fd_token)..offset_of!(RegBuf, gpu_uuid);
    spoil(
        &f.file,
        nr::REGISTER,
        &arg(nr::REGISTER),
        reg.chain(handle).chain(alloc).chain(token).chain(160..192).chain(5..8),
    );
    spoil(&f.file, nr::UNREGISTER, &arg(nr::UNREGISTER), 9..32);
    spoil(&f.file, nr::READ, &arg(nr::READ), 1..8);
    spoil(&f.file, nr::WRITE, &arg(nr::WRITE), 1..8);
    spoil(&f.file, nr::SUBMIT, &arg(nr::SUBMIT), (0..8).chain(16..32));
    spoil(&f.file, nr::LOCATE, &arg(nr::LOCATE), (0..4).chain(44..80));
    spoil(&f.dir, nr::LOOKUP_PREFIX, &arg(nr::LOOKUP_PREFIX), (0..4).chain(5..12).chain(20..40));
    // An opcode that isn't the call's.
    for (nr, opcode) in [(nr::READ, 2), (nr::WRITE, 1), (nr::READ, 0), (nr::READ, 3)] {
        let op = Op { opcode, ..raw::read_op(buf.id, 0, 0, 1) };
        assert_eq!(errno(call(&f.file, nr, op.as_bytes())), Some(Errno::EINVAL));
    }
    assert_eq!(errno(call(&f.file, nr::QUERY, Query::default().as_bytes())), Some(Errno::EINVAL), "abi 0");
    let later = Query { abi: 99, ..Query::default() };
    let out = Query::read_from_bytes(&call(&f.file, nr::QUERY, later.as_bytes()).unwrap()).unwrap();
    assert_eq!(out.abi, 1, "a later client is told the version that is spoken");
    assert_eq!(f.mount.op("panics"), 0);
    drop(buf);
    f.end();
}

#[test]
fn batches_of_every_size() {
    let f = field();
    let buf = Buf::new(&f.file, 4096);
    let submit = |claimed: u32, ops: usize| {
        let head = Batch { nr_ops: claimed, ..Batch::default() };
        let ops = vec![raw::read_op(buf.id, 0, 0, 8); ops];
        errno(call(&f.file, nr::SUBMIT, &[head.as_bytes(), ops.as_bytes()].concat()))
    };
    for n in [1, 2, 64, 126, 127] {
        assert_eq!(submit(n, n as usize), None, "{n} ops");
        for claimed in [0, n - 1, n + 1, u32::MAX, 1 << 26] {
            assert_eq!(submit(claimed, n as usize), Some(Errno::EINVAL), "{claimed} claimed of {n}");
        }
    }
    assert_eq!(submit(0, 0), Some(Errno::EINVAL));
    assert_eq!(submit(128, 128), Some(Errno::EINVAL), "more than KVFS_BATCH_MAX");
    // More bytes than a call may move.
    let huge = Op { length: 1 << 29, ..raw::read_op(buf.id, 0, 0, 0) };
    assert_eq!(raw::submit(&f.file, &[huge, huge]).unwrap().0.completed, 0);
    assert_eq!(raw::submit(&f.file, &[huge, huge, huge]).map(drop), Err(Errno::EINVAL));
    let most = Op { length: u64::MAX, ..huge };
    assert_eq!(raw::submit(&f.file, &[most, most]).map(drop), Err(Errno::EINVAL), "a sum that overflows");
    drop(buf);
    f.end();
}

/// What QUERY tells of files, directories, and the mount.
#[test]
fn query_tells() {
    let lab = Lab::new();
    let backings = [lab.volume(crate::common::FsKind::Xfs, 512).join("kv"), lab.dir("plain")];
    let mount = lab.mount(&backings).arg("--direct-buffers").arg("5").arg("--direct-buffer-bytes").arg("1M");
    let mount = mount.arg("--direct").arg("host").start();
    let file = sys::create(mount.path(ranked(1, 1))).unwrap();
    let dir = sys::open(mount.point(), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    let (of_file, of_dir) = (query(&file).unwrap(), query(&dir).unwrap());
    for q in [of_file, of_dir] {
        assert_eq!((q.abi, q.max_batch_ops, q.max_buffers, q.max_buffer_bytes), (1, 127, 5, 1 << 20));
        assert_eq!(q.seen_tgid, std::process::id());
        assert_eq!(q.session, of_file.session);
        let wanted = feature::MEMFD | feature::BATCH | feature::LOOKUP_PREFIX;
        assert_eq!(q.features & !feature::FD_SOCKET, wanted);
        assert_eq!(q.path_gpu, abi::Path::None as u32);
    }
    assert_eq!((of_file.backing_id, of_dir.backing_id), (1, abi::NO_BACKING));
    assert_eq!(of_dir.file_token, 0);
    assert_ne!(of_file.file_token, 0);
    assert_eq!(query(&file).unwrap().file_token, of_file.file_token, "the same open file, the same token");
    let again = sys::open(mount.path(ranked(1, 1)), libc::O_RDONLY, 0).unwrap();
    assert_ne!(raw::token(&again), of_file.file_token, "another open file");
    assert!(of_file.max_io_bytes >= 64 << 20);
    // From a thread, the process is seen.
    let tgid = std::thread::scope(|s| s.spawn(|| query(&file).unwrap().seen_tgid).join().unwrap());
    assert_eq!(tgid, std::process::id());
    drop((file, again, dir));
    let mount = mount.restart();
    let dir = sys::open(mount.point(), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    assert_ne!(query(&dir).unwrap().session, of_file.session, "another mount");
}

#[test]
fn off_is_off() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).passthrough(Passthrough::Auto).arg("--direct").arg("off").start();
    let file = sys::create(mount.path("f")).unwrap();
    let dir = sys::open(mount.point(), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    for on in [&file, &dir] {
        for nr in 0..=8 {
            assert_eq!(errno(call(on, nr, &[0; 128])), Some(Errno::ENOTTY), "call {nr}");
        }
    }
    assert_eq!(mount.status()["direct"]["on"].as_bool(), Some(false));
    assert_eq!(sys::lstat(mount.path(".kvfs-socket")).map(drop), Err(Errno::ENOENT));
}

/// Kinds of buffers: what isn't there is refused, and leaves nothing.
#[test]
fn kinds_of_buffers() {
    let f = field();
    let buf = Buf::new(&f.file, 4096);
    let reg = raw::reg(&buf.memfd, 4096);
    let refused = |reg: RegBuf| raw::register(&f.file, &reg).unwrap_err();
    for kind in [0, 7, 8, u32::MAX] {
        assert_eq!(refused(RegBuf { kind, ..reg }), Errno::EINVAL, "kind {kind}");
    }
    assert_eq!(refused(RegBuf { kind: kind::CUDA_FABRIC, ..reg }), Errno::EOPNOTSUPP);
    assert_eq!(refused(RegBuf { flags: 0, ..reg }), Errno::EINVAL);
    assert_eq!(refused(RegBuf { flags: 4 | abi::BUF_RD, ..reg }), Errno::EINVAL);
    assert_eq!(refused(RegBuf { length: 0, ..reg }), Errno::EINVAL);
    assert_eq!(refused(RegBuf { length: u64::MAX, offset: 4096, ..reg }), Errno::EINVAL);
    for offset in [1, 512, 4095] {
        assert_eq!(refused(RegBuf { offset, length: 1, ..reg }), Errno::EINVAL, "offset {offset}");
    }
    for (fd, fd_method, fd_token) in [
        (-1, abi::FD_OF_CALLER, 0),
        (reg.fd, abi::FD_NONE, 0),
        (reg.fd, 3, 0),
        (reg.fd, abi::FD_SENT, 5),
        (-1, abi::FD_SENT, 0),
    ] {
        assert_eq!(refused(RegBuf { fd, fd_method, fd_token, ..reg }), Errno::EINVAL);
    }
    let status = f.mount.status();
    assert_eq!(super::process::direct(&status, "buffers"), 1);
    assert!(status["direct"]["counts"]["refused"].as_u64().unwrap() >= 14);
    drop(buf);
    f.end();
}
