//! What the kernel and the daemon say to each other about requests that come by io_uring.
//!
//! What always holds: names, numbers and layouts are those of include/uapi/linux/fuse.h (7.42, Linux 6.14), and of
//! include/uapi/linux/io_uring.h where it's said; the kernel's documentation is Documentation/filesystems/fuse/fuse-io-uring.rst.

use io_uring::squeue::Entry128;
use io_uring::{opcode, types};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `FUSE_IO_URING_CMD_REGISTER`: buffers for a request, which the first completion brings.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: an answer, and a question for the next request.
const COMMIT_AND_FETCH: u32 = 2;
/// `FUSE_OVER_IO_URING` (1 << 41), in the upper half of INIT's flags.
pub(super) const OVER_IO_URING: u32 = 1 << 9;

/// `struct fuse_uring_cmd_req`: what a command is about, in the last 80 bytes of a submission.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Command {
    flags: u64,
    /// Of the request that is answered: its number.
    commit_id: u64,
    queue: u16,
    padding: [u8; 6],
}

/// `struct fuse_uring_req_header`: the first of an entry's two buffers.
#[repr(C)]
pub(super) struct Headers {
    /// `fuse_in_header`; in an answer `fuse_out_header`.
    pub(super) in_out: [u8; 128],
    /// The operation's own header.
    pub(super) op_in: [u8; 128],
    pub(super) entry: EntryInOut,
}

/// `struct fuse_uring_ent_in_out`
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct EntryInOut {
    pub(super) flags: u64,
    pub(super) commit_id: u64,
    /// How much of the second buffer is used.
    pub(super) payload_size: u32,
    pub(super) padding: u32,
    pub(super) reserved: u64,
}

/// `struct fuse_in_header`
#[repr(C)]
#[derive(FromBytes, Immutable)]
pub(super) struct InHeader {
    pub(super) len: u32,
    opcode: u32,
    pub(super) unique: u64,
    node: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    extensions: u16,
    padding: u16,
}

/// Whether a request moves a file's data (`FUSE_READ`, `FUSE_WRITE`).
pub(super) fn is_data(request: &[u8]) -> bool {
    InHeader::read_from_prefix(request).is_ok_and(|(header, _)| matches!(header.opcode, 15 | 16))
}

/// `struct fuse_out_header`
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(super) struct OutHeader {
    pub(super) len: u32,
    pub(super) error: i32,
    pub(super) unique: u64,
}

impl OutHeader {
    /// An answer that is an error, and nothing else.
    pub(super) fn error(unique: u64, errno: i32) -> OutHeader {
        OutHeader { len: size_of::<OutHeader>() as u32, error: -errno, unique }
    }
}

const _: () = assert!(size_of::<Headers>() == 288 && size_of::<InHeader>() == 40);

/// What has the kernel put a request to the queue of the processor that this is written on: to be answered with
/// whatever, it's for nobody. `number` tells it from others. The kernel refuses it unless it has `node`, and that is a
/// regular file.
///
/// It's a `FUSE_NOTIFY_RETRIEVE` of no bytes: `struct fuse_out_header`, which is a notification by having no
/// request's number, and `struct fuse_notify_retrieve_out`.
pub(super) fn nudge(number: u32, node: u64) -> [u8; 48] {
    const NOTIFY_RETRIEVE: i32 = 5;
    let header = OutHeader { len: 48, error: NOTIFY_RETRIEVE, unique: 0 };
    let (unique, offset, size_and_padding) = (NUDGE | u64::from(number) << 1, 0u64, 0u64);
    let words = [unique, node, offset, size_and_padding];
    let mut message = [0; 48];
    message[..16].copy_from_slice(header.as_bytes());
    message[16..].copy_from_slice(words.as_bytes());
    message
}

/// Whether a request is one that `nudge` has brought.
pub(super) fn is_nudge(unique: u64) -> bool {
    unique & NUDGE != 0
}

/// The kernel counts its own requests from 0, by twos, and marks those that it sends again with the highest bit.
const NUDGE: u64 = 1 << 62;

/// An entry's two buffers, as a submission names them.
pub(super) type Buffers = [libc::iovec; 2];

/// A submission that gives the kernel an entry's buffers. It reads `buffers` before the call of io_uring_enter(2)
/// returns that submits this, and writes to what they name until the entry's queue is gone. The device is the ring's
/// first registered file.
pub(super) fn register(queue: u16, buffers: &Buffers) -> Entry128 {
    let mut entry = command(REGISTER, queue, 0, Some(buffers.as_ptr() as u64));
    // The crate has no way to say how many there are: `len` of struct io_uring_sqe.
    const LEN: usize = 24;
    // SAFETY: an Entry128 is the kernel's struct (`repr(C)`) with 64 bytes after it, and `len` is a u32 in it.
    unsafe { std::ptr::from_mut(&mut entry).cast::<u8>().add(LEN).cast::<u32>().write(buffers.len() as u32) };
    entry
}

/// A submission that has the answer to a request taken from its entry's buffers, and asks for the next one.
pub(super) fn commit(queue: u16, unique: u64) -> Entry128 {
    command(COMMIT_AND_FETCH, queue, unique, None)
}

fn command(operation: u32, queue: u16, commit_id: u64, addr: Option<u64>) -> Entry128 {
    let command = Command { flags: 0, commit_id, queue, padding: [0; 6] };
    let mut bytes = [0; 80];
    bytes[..size_of::<Command>()].copy_from_slice(command.as_bytes());
    opcode::UringCmd80::new(types::Fixed(0), operation).cmd(bytes).addr(addr).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nudges_are_told_from_requests() {
        let message = nudge(3, 77);
        let unique = u64::from_ne_bytes(message[16..24].try_into().unwrap());
        assert_eq!((message[..4].as_ref(), message[4], unique), (&48u32.to_ne_bytes()[..], 5, NUDGE + 6));
        assert_eq!(message[24], 77);
        assert!(is_nudge(unique) && !is_nudge(2) && !is_nudge(1 << 63 | 2));
    }

    #[test]
    fn submissions_are_laid_out_as_the_kernel_reads_them() {
        let buffers = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2];
        let entry = register(5, &buffers);
        // SAFETY: 128 bytes, all of them set.
        let bytes = unsafe { *std::ptr::from_ref(&entry).cast::<[u8; 128]>() };
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        // struct io_uring_sqe: opcode, flags (IOSQE_FIXED_FILE), fd, cmd_op, addr, len; the command at 48.
        assert_eq!((bytes[0], bytes[1], word(4), word(8)), (46, 1, 0, REGISTER));
        assert_eq!((long(16), word(24)), (buffers.as_ptr() as u64, 2));
        assert_eq!((long(48), long(56), long(64)), (0, 0, 5));
        let entry = commit(2, 0x1234_5678_9abc);
        // SAFETY: as above.
        let bytes = unsafe { *std::ptr::from_ref(&entry).cast::<[u8; 128]>() };
        assert_eq!(bytes[8], 2);
        assert_eq!(bytes[56..64], 0x1234_5678_9abc_u64.to_ne_bytes());
        assert_eq!(bytes[64..66], 2u16.to_ne_bytes());
    }
}
