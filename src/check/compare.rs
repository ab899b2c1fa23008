//! Whether two copies have the same bytes, and whether a file can be read at all.
//!
//! What always holds: what is read for this alone doesn't push clients' files out of the page cache.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Advice, OFlags, fadvise, fstat};
use rustix::io::{Errno, pread};

use super::open_beneath;

/// What is read at a time.
const PIECE: usize = 1 << 20;

/// Opens a file to read it, without changing when it was read last where that's possible.
pub(super) fn open_quietly(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    match open_beneath(root, path, flags | OFlags::NOATIME) {
        // Of somebody else's file.
        Err(Errno::PERM) => open_beneath(root, path, flags),
        opened => opened,
    }
}

/// Whether two files have the same bytes.
pub(super) fn same(one: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    if fstat(one)?.st_size != fstat(other)?.st_size {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    let mut offset = 0;
    loop {
        let n = fill(one, &mut a, offset)?;
        if n != fill(other, &mut b, offset)? || a[..n] != b[..n] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
        offset += n as u64;
    }
}

/// Reads all of a file. An error with the offset that it's at.
pub(super) fn read_all(file: &OwnedFd, buffer: &mut Vec<u8>) -> Result<u64, (u64, Errno)> {
    buffer.resize(PIECE, 0);
    let mut offset = 0;
    loop {
        match fill(file, buffer, offset) {
            Ok(0) => return Ok(offset),
            Ok(n) => offset += n as u64,
            Err(e) => return Err((offset, e)),
        }
    }
}

/// As much as there is.
fn fill(file: impl AsFd, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match pread(&file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    let len = std::num::NonZeroU64::new(filled as u64);
    let _ = fadvise(&file, offset, len, Advice::DontNeed);
    Ok(filled)
}
