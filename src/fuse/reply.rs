//! Replies: from what an operation returned to what fuser sends.
//!
//! What always holds: a result is replied to once, and an error is an errno.

use std::io;
use std::time::SystemTime;

use fuser::{Errno, INodeNo, ReplyAttr, ReplyEmpty, ReplyIoctl, ReplyXattr};

use super::convert::file_attr;
use crate::direct::Reply;
use crate::fs::{Attr, Fs, Op};
use crate::index::NodeId;

/// What a cached miss looks like: node 0.
pub(super) const ABSENT: fuser::FileAttr = fuser::FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: fuser::FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

pub(super) fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

pub(super) fn attr(reply: ReplyAttr, fs: &Fs, result: Result<Attr, Errno>) {
    match result {
        Ok(attr) => reply.attr(&fs.ttl(attr.node), &file_attr(&attr)),
        Err(e) => reply.error(e),
    }
}

pub(super) fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(e),
    }
}

/// An ioctl's answer may be an error and data all the same.
pub(super) fn ioctl(reply: ReplyIoctl, answer: &Reply) {
    match (answer.errno, answer.data.is_empty()) {
        (0, _) => reply.ioctl(0, &answer.data),
        (errno, true) => reply.error(Errno::from_i32(errno)),
        (errno, false) => reply.ioctl(-errno, &answer.data),
    }
}

/// The errno of a read or a write; a fault of the drive is looked into.
pub(super) fn io_errno(op: Op, fs: &Fs, node: NodeId, e: &io::Error) -> Errno {
    if let Some(errno) = rustix::io::Errno::from_io_error(e) {
        fs.noticed_at(node, errno);
    }
    tracing::debug!("{}: {e}", op.name());
    Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO))
}
