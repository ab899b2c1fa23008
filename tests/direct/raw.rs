//! The calls as bytes: nothing here keeps a test from a wrong one.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvfs::direct::abi::{self, Batch, Locate, Op, Prefix, Query, RegBuf, UnregBuf, nr};
use libc::{MAP_SHARED, PROT_READ, PROT_WRITE, c_int};
use zerocopy::{FromBytes, IntoBytes};

use crate::common::{Errno, R, sys};

/// What a buffer holds before anything was put in it.
pub(crate) const BLANK: u8 = 0xEE;

/// Any ioctl, with an argument that any size in `cmd` fits.
pub(crate) fn ioctl(fd: &impl AsRawFd, cmd: u32, arg: &[u8]) -> R<Vec<u8>> {
    let mut room = vec![0u8; 1 << 14];
    room[..arg.len()].copy_from_slice(arg);
    // SAFETY: the kernel moves as many bytes as `cmd` has bits for, 16 KiB at most.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), cmd.into(), room.as_mut_ptr()) })?;
    room.truncate(arg.len());
    Ok(room)
}

/// A call of this number, with the size of its argument.
pub(crate) fn call(fd: &impl AsRawFd, nr: u8, arg: &[u8]) -> R<Vec<u8>> {
    ioctl(fd, abi::command(nr, arg.len()), arg)
}

fn fixed<T: FromBytes + IntoBytes + zerocopy::Immutable>(fd: &impl AsRawFd, nr: u8, arg: &T) -> R<T> {
    call(fd, nr, arg.as_bytes()).map(|out| T::read_from_bytes(&out).unwrap())
}

pub(crate) fn query(fd: &impl AsRawFd) -> R<Query> {
    fixed(fd, nr::QUERY, &Query { abi: abi::VERSION, ..Query::default() })
}

/// The name of an open file for ops on others.
pub(crate) fn token(fd: &impl AsRawFd) -> u64 {
    query(fd).unwrap().file_token
}

pub(crate) fn register(fd: &impl AsRawFd, reg: &RegBuf) -> R<RegBuf> {
    fixed(fd, nr::REGISTER, reg)
}

pub(crate) fn unregister(fd: &impl AsRawFd, buf_id: u64, flags: u32) -> R<()> {
    fixed(fd, nr::UNREGISTER, &UnregBuf { buf_id, flags, ..UnregBuf::default() }).map(drop)
}

pub(crate) fn locate(fd: &impl AsRawFd) -> R<Locate> {
    fixed(fd, nr::LOCATE, &Locate::default())
}

/// One op, by READ or WRITE as its opcode says; the errno of the call or of the op.
pub(crate) fn transfer(fd: &impl AsRawFd, op: Op) -> R<usize> {
    let nr = if op.opcode == abi::OP_WRITE { nr::WRITE } else { nr::READ };
    outcome(fixed(fd, nr, &op)?.result)
}

pub(crate) fn outcome(result: i64) -> R<usize> {
    usize::try_from(result).map_err(|_| Errno::from_raw(-result as i32))
}

/// The header and the ops as they are after SUBMIT.
pub(crate) fn submit(fd: &impl AsRawFd, ops: &[Op]) -> R<(Batch, Vec<Op>)> {
    let head = Batch { nr_ops: ops.len() as u32, ..Batch::default() };
    let out = call(fd, nr::SUBMIT, &[head.as_bytes(), ops.as_bytes()].concat())?;
    let (head, rest) = Batch::read_from_prefix(&out).unwrap();
    let ops = rest.chunks_exact(size_of::<Op>()).map(|op| Op::read_from_bytes(op).unwrap());
    Ok((head, ops.collect()))
}

/// LOOKUP_PREFIX: how many were found, and how many are read ahead.
pub(crate) fn prefix(fd: &impl AsRawFd, names: &[&str], flags: u32) -> R<(u32, u32)> {
    let bytes: Vec<u8> = names.iter().flat_map(|n| [n.as_bytes(), b"\0"].concat()).collect();
    let (nr_names, names_len) = (names.len() as u32, bytes.len() as u32);
    let head = Prefix { nr_names, names_len, flags, ..Prefix::default() };
    let out = call(fd, nr::LOOKUP_PREFIX, &[head.as_bytes(), &bytes].concat())?;
    let (head, rest) = Prefix::read_from_prefix(&out).unwrap();
    assert_eq!(rest, bytes, "the names come back as they were");
    Ok((head.found, head.queued))
}

/// A READ of this file, to be filled in further.
pub(crate) fn read_op(buf_id: u64, buf_off: usize, file_off: u64, length: usize) -> Op {
    let (buf_off, length) = (buf_off as u64, length as u64);
    Op { opcode: abi::OP_READ, buf_id, buf_off, file_off, length, ..Op::default() }
}

/// The same for WRITE.
pub(crate) fn write_op(buf_id: u64, buf_off: usize, file_off: u64, length: usize) -> Op {
    Op { opcode: abi::OP_WRITE, ..read_op(buf_id, buf_off, file_off, length) }
}

/// A memfd of this size that is all holes, and not sealed.
pub(crate) fn hollow(len: usize) -> OwnedFd {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a name, and flags; a new descriptor that is ours alone.
    let fd = Errno::result(unsafe { libc::memfd_create(c"kvfs-test".as_ptr(), flags) }).unwrap();
    // SAFETY: as above.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    sys::ftruncate(&fd, len as i64).unwrap();
    fd
}

pub(crate) fn seal(fd: &OwnedFd, seals: c_int) {
    sys::fcntl(fd, libc::F_ADD_SEALS, seals).unwrap();
}

/// A memfd as REGISTER wants it, every page there.
pub(crate) fn memfd(len: usize) -> OwnedFd {
    let fd = hollow(len);
    sys::fallocate(&fd, 0, 0, len as i64).unwrap();
    seal(&fd, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    fd
}

/// What registers all of a memfd, to be changed by the test.
pub(crate) fn reg(memfd: &OwnedFd, len: usize) -> RegBuf {
    RegBuf {
        kind: abi::kind::MEMFD,
        flags: abi::BUF_RD | abi::BUF_WR,
        length: len as u64,
        fd: memfd.as_raw_fd(),
        fd_method: abi::FD_OF_CALLER,
        ..RegBuf::default()
    }
}

/// A registered buffer, and the client's own view of it.
pub(crate) struct Buf {
    pub(crate) memfd: OwnedFd,
    pub(crate) map: sys::Map,
    pub(crate) id: u64,
    pub(crate) len: usize,
}

impl Buf {
    /// Registered on this open file or directory, for both directions.
    pub(crate) fn new(on: &impl AsRawFd, len: usize) -> Buf {
        let memfd = memfd(len);
        let map = sys::Map::new(&memfd, len, PROT_READ | PROT_WRITE, MAP_SHARED).unwrap();
        let id = register(on, &reg(&memfd, len)).unwrap().buf_id;
        assert_ne!(id, 0);
        let mut buf = Buf { memfd, map, id, len };
        buf.blank();
        buf
    }

    pub(crate) fn blank(&mut self) {
        self.map.put(0, &vec![BLANK; self.len]);
    }

    pub(crate) fn all(&self) -> Vec<u8> {
        self.map.get(0, self.len)
    }

    /// Asserts that only these bytes of the buffer were touched, in a form that doesn't print them.
    #[track_caller]
    pub(crate) fn holds(&self, at: usize, data: &[u8], what: &str) {
        let all = self.all();
        let touched = |part: &[u8]| part.iter().position(|b| *b != BLANK);
        assert_eq!(touched(&all[..at]), None, "{what}: touched before the op's place");
        assert_eq!(differ(&all[at..at + data.len()], data), None, "{what}: the first wrong byte");
        assert_eq!(touched(&all[at + data.len()..]), None, "{what}: touched behind the op's place");
    }
}

/// Where two contents differ first; neither is printed.
pub(crate) fn differ(got: &[u8], want: &[u8]) -> Option<usize> {
    if got == want {
        return None;
    }
    let shorter = got.len().min(want.len());
    let first = (0..shorter).find(|i| got[*i] != want[*i]);
    first.or((got.len() != want.len()).then_some(shorter))
}

/// Does something when it goes, also while a panic unwinds.
pub(crate) struct Finally<F: Fn()>(pub(crate) F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
