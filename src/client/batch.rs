//! Many transfers in few calls, over many files and buffers.
//!
//! What always holds: every transfer has one result, in the order they were added; one that is longer than a
//! call may be is moved in pieces, and its result is what was moved without a gap from its start.

use std::os::fd::AsFd;

use parking_lot::Mutex;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::call::raw;
use super::error::{Call, OpError};
use super::file::File;
use super::mount::Mount;
use super::registered::Registered;
use crate::direct::abi;

/// Pieces of longer transfers begin at multiples of this, so that direct I/O stays possible.
const PIECE_ALIGN: u64 = 1 << 20;
/// How often what a daemon doesn't know is told it again. One after a crash may know neither a buffer nor a file, tells
/// of one at a time, and may die as well.
pub(super) const TRIES: usize = 8;
/// Calls that are made at the same time.
const AT_ONCE: usize = 4;

/// Transfers that are to be submitted together. They run in any order, at the same time.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    ops: Vec<abi::Op>,
    /// By op. The files must be open and the buffers registered until it's submitted.
    uses: Vec<(&'a File, &'a Registered)>,
}

impl<'a> Batch<'a> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many transfers it has.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Adds a transfer from the file at `file_off` to the buffer at `buf_off`.
    pub fn read(&mut self, file: &'a File, file_off: u64, buffer: &'a Registered, buf_off: u64, len: u64) {
        self.add(abi::OP_READ, file, file_off, buffer, buf_off, len);
    }

    /// Adds a transfer from the buffer at `buf_off` to the file at `file_off`.
    pub fn write(&mut self, file: &'a File, file_off: u64, buffer: &'a Registered, buf_off: u64, len: u64) {
        self.add(abi::OP_WRITE, file, file_off, buffer, buf_off, len);
    }

    fn add(
        &mut self,
        opcode: u32,
        file: &'a File,
        file_off: u64,
        buffer: &'a Registered,
        buf_off: u64,
        length: u64,
    ) {
        self.uses.push((file, buffer));
        let (file, buf_id) = (file.token(), buffer.id());
        self.ops.push(abi::Op { opcode, file, buf_id, buf_off, file_off, length, ..Default::default() });
    }

    /// Makes the transfers and waits for them. For each: the bytes moved, fewer than asked only at the end of
    /// the file; or why it failed.
    pub fn submit(self, mount: &Mount) -> Vec<Result<u64, OpError>> {
        let facts = mount.facts();
        let limits = Limits {
            ops: (facts.max_batch_ops as usize).clamp(1, abi::BATCH_MAX),
            bytes: facts.max_io_bytes.max(1),
        };
        let mut results = transfer(mount, &self.ops, limits);
        for _ in 0..TRIES {
            let renewed = |at: usize| Some((at, renew(&self.ops[at], self.uses[at], results[at])?));
            let (again, ops): (Vec<usize>, Vec<abi::Op>) = (0..results.len()).filter_map(renewed).unzip();
            if again.is_empty() {
                break;
            }
            for (at, result) in again.into_iter().zip(transfer(mount, &ops, limits)) {
                results[at] = result;
            }
        }
        results
    }
}

/// The transfer anew, if it failed because the mount doesn't know what it names, and does so now.
fn renew(
    op: &abi::Op,
    (file, buffer): (&File, &Registered),
    result: Result<u64, OpError>,
) -> Option<abi::Op> {
    let renewed = match result {
        Err(OpError::Os(Errno::NOENT)) => buffer.renew(op.buf_id),
        Err(OpError::Os(Errno::BADF)) => file.token() != op.file || file.renew(op.file),
        _ => false,
    };
    renewed.then(|| abi::Op { file: file.token(), buf_id: buffer.id(), ..*op })
}

/// Makes transfers, in as many calls as it takes.
fn transfer(mount: &Mount, ops: &[abi::Op], limits: Limits) -> Vec<Result<u64, OpError>> {
    let mut sums = vec![Sum::default(); ops.len()];
    let mut calls = calls(ops, limits);
    let failed = submit_all(mount, &mut calls);
    for ((ops, of), failed) in calls.into_iter().zip(failed) {
        for (op, index) in ops.iter().zip(of) {
            let result = failed.map_or_else(|| OpError::of(op.result), |errno| Err(OpError::Os(errno)));
            sums[index].add(op.length, result);
        }
    }
    sums.into_iter().map(|sum| sum.result).collect()
}

#[derive(Clone, Copy)]
struct Limits {
    ops: usize,
    bytes: u64,
}

/// What has become of a transfer, piece by piece.
#[derive(Clone)]
struct Sum {
    result: Result<u64, OpError>,
    short: bool,
}

impl Default for Sum {
    fn default() -> Self {
        Sum { result: Ok(0), short: false }
    }
}

impl Sum {
    fn add(&mut self, asked: u64, moved: Result<u64, OpError>) {
        match (self.result, moved) {
            // Behind a gap: the file grew meanwhile.
            (Ok(_), Ok(_)) if self.short => {}
            (Ok(before), Ok(bytes)) => {
                self.result = Ok(before + bytes);
                self.short = bytes < asked;
            }
            (Ok(_), Err(error)) => self.result = Err(error),
            (Err(_), _) => {}
        }
    }
}

/// The calls it takes: the ops of each, and which transfer each op is of.
fn calls(ops: &[abi::Op], limits: Limits) -> Vec<(Vec<abi::Op>, Vec<usize>)> {
    let piece = match limits.bytes {
        small @ ..PIECE_ALIGN => small,
        bytes => bytes - bytes % PIECE_ALIGN,
    };
    let mut calls = Vec::new();
    let (mut call, mut of, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (index, op) in ops.iter().enumerate() {
        let mut at = 0;
        loop {
            let length = (op.length - at).min(piece);
            if call.len() == limits.ops || (!call.is_empty() && bytes + length > limits.bytes) {
                calls.push((std::mem::take(&mut call), std::mem::take(&mut of)));
                bytes = 0;
            }
            // Offsets that don't fit are for the daemon to refuse.
            let (buf_off, file_off) = (op.buf_off.saturating_add(at), op.file_off.saturating_add(at));
            call.push(abi::Op { buf_off, file_off, length, user_data: index as u64, ..*op });
            of.push(index);
            bytes += length;
            at += length;
            if at >= op.length {
                break;
            }
        }
    }
    if !call.is_empty() {
        calls.push((call, of));
    }
    calls
}

/// Makes the calls, several at the same time: one alone doesn't keep a drive busy while it begins and ends.
fn submit_all(mount: &Mount, calls: &mut [(Vec<abi::Op>, Vec<usize>)]) -> Vec<Option<Errno>> {
    let mut failed = vec![None; calls.len()];
    let others = calls.len().min(AT_ONCE).saturating_sub(1);
    let waiting = Mutex::new(calls.iter_mut().zip(&mut failed));
    let work = || {
        loop {
            // A statement of its own: the lock isn't held during the call.
            let next = waiting.lock().next();
            let Some(((ops, _), failed)) = next else { return };
            *failed = submit(mount, ops).err();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..others {
            // Where there can't be a thread the others do its work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    failed
}

/// One SUBMIT; the results are in the ops.
fn submit(on: impl AsFd, ops: &mut [abi::Op]) -> Result<(), Errno> {
    let header = abi::Batch { nr_ops: ops.len() as u32, ..Default::default() };
    let mut argument = [header.as_bytes(), ops.as_bytes()].concat();
    raw(on, Call::Submit, &mut argument)?;
    let answered = <[abi::Op]>::ref_from_bytes(&argument[header.as_bytes().len()..]);
    // An odd place in memory: can't be, the allocator gives out multiples of 16.
    match answered {
        Ok(answered) => ops.copy_from_slice(answered),
        Err(_) => return Err(Errno::PROTO),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(length: u64) -> abi::Op {
        abi::Op { opcode: abi::OP_READ, length, buf_off: 7, file_off: 1 << 30, ..Default::default() }
    }

    #[test]
    fn long_lists_are_split() {
        let limits = Limits { ops: 127, bytes: 64 << 20 };
        let ops = vec![op(4096); 300];
        let calls = calls(&ops, limits);
        assert_eq!(calls.iter().map(|(ops, _)| ops.len()).collect::<Vec<_>>(), [127, 127, 46]);
        assert_eq!(calls[1].1[0], 127);
        assert_eq!(calls[2].0[45].user_data, 299);
    }

    #[test]
    fn a_call_has_no_more_bytes_than_it_may() {
        let limits = Limits { ops: 127, bytes: 64 << 20 };
        let all = calls(&[op(40 << 20), op(40 << 20), op(24 << 20), op(0)], limits);
        assert_eq!(all.iter().map(|(_, of)| of.clone()).collect::<Vec<_>>(), [vec![0], vec![1, 2, 3]]);
        // One that is longer than a call is moved in pieces.
        let all = calls(&[op(150 << 20)], limits);
        let pieces: Vec<_> =
            all.iter().flat_map(|(ops, _)| ops).map(|op| (op.buf_off, op.length >> 20)).collect();
        assert_eq!(pieces, [(7, 64), (7 + (64 << 20), 64), (7 + (128 << 20), 22)]);
        assert!(all.iter().flat_map(|(_, of)| of).all(|of| *of == 0));
    }

    #[test]
    fn results_of_pieces() {
        let sum = |pieces: &[(u64, Result<u64, OpError>)]| {
            let mut sum = Sum::default();
            pieces.iter().for_each(|(asked, moved)| sum.add(*asked, *moved));
            sum.result
        };
        assert_eq!(sum(&[]), Ok(0));
        assert_eq!(sum(&[(64, Ok(64)), (64, Ok(10)), (64, Ok(0))]), Ok(74));
        assert_eq!(sum(&[(64, Ok(10)), (64, Ok(64))]), Ok(10));
        let error = Err(OpError::Os(Errno::IO));
        assert_eq!(sum(&[(64, Ok(64)), (64, error), (64, Ok(64))]), error);
    }
}
