//! Ops cut into parts, and the parts that wait for a submitter.
//!
//! What always holds: an op is answered once, by the part that ends last, with the bytes moved up to the end
//! of the file or with the first error in it; a part that's dropped has failed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};

use parking_lot::{Condvar, Mutex};

use super::files::File;
use super::memory::Buffer;
use crate::direct::abi::Path;
use crate::direct::engine::Direction;
use crate::direct::gpu::cufile;
use crate::direct::gpu::device::Address;
use crate::direct::gpu::proto;

/// Told what became of an op: its number, the result, the path.
pub(super) type Answer = dyn Fn(u64, i64, Path) + Send + Sync;

struct Whole {
    id: u64,
    lengths: Vec<usize>,
    results: Mutex<Vec<i64>>,
    remaining: AtomicUsize,
    /// The lowest of all parts'.
    path: AtomicU32,
    answer: Arc<Answer>,
}

/// A part of an op: no larger than a slot.
pub(super) struct Part {
    whole: Arc<Whole>,
    index: usize,
    pub(super) file: Arc<File>,
    pub(super) buffer: Arc<Buffer>,
    pub(super) direction: Direction,
    /// Where in GPU memory.
    pub(super) at: Address,
    pub(super) file_off: u64,
    pub(super) len: usize,
    /// Whether it's whole blocks of the file.
    pub(super) aligned: bool,
    ended: bool,
}

impl Part {
    /// Whether it's all of its op.
    pub(super) fn is_alone(&self) -> bool {
        self.whole.lengths.len() == 1
    }

    /// Ends it: bytes, or an errno or cuFile's code; and how they went.
    pub(super) fn end(mut self, result: Result<usize, i32>, path: Path) {
        self.ended = true;
        let whole = &self.whole;
        if result.is_ok() && path != Path::None {
            whole.path.fetch_min(path as u32, Relaxed);
        }
        self.note(result.map_or_else(|code| -i64::from(code), |n| n as i64));
    }

    fn note(&self, result: i64) {
        let whole = &self.whole;
        whole.results.lock()[self.index] = result;
        if whole.remaining.fetch_sub(1, AcqRel) == 1 {
            whole.end();
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.ended {
            self.note(-i64::from(libc::EIO));
        }
    }
}

impl Whole {
    fn end(&self) {
        let path = [Path::Bounce, Path::CufileStaged, Path::CufileDirect, Path::Hipfile]
            .into_iter()
            .find(|p| *p as u32 == self.path.load(Relaxed))
            .unwrap_or(Path::None);
        (self.answer)(self.id, contiguous(&self.results.lock(), &self.lengths), path);
    }
}

/// The bytes from the start of an op to its first short part, unless there's an error before that.
fn contiguous(results: &[i64], lengths: &[usize]) -> i64 {
    let mut sum = 0;
    for (result, len) in results.iter().zip(lengths) {
        match *result {
            code @ ..0 => return code,
            n => sum += n,
        }
        if *result < *len as i64 {
            break;
        }
    }
    sum
}

/// Cuts `len` bytes at `off` of a file: whole blocks of `align` in pieces of at most `slot`, and what is left
/// of a block at either end. Each piece is its offset, its length, and whether it's whole blocks.
fn cut(off: u64, len: u64, align: u64, slot: usize) -> Vec<(u64, usize, bool)> {
    let end = off + len;
    let (first, last) = (off.next_multiple_of(align), end / align * align);
    if first >= last {
        return vec![(off, len as usize, false)];
    }
    let slot = (slot as u64 / align).max(1) * align;
    let mut pieces = Vec::new();
    if off < first {
        pieces.push((off, (first - off) as usize, false));
    }
    let mut at = first;
    while at < last {
        let n = slot.min(last - at);
        pieces.push((at, n as usize, true));
        at += n;
    }
    if last < end {
        pieces.push((last, (end - last) as usize, false));
    }
    pieces
}

/// What waits.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Part>>,
    more: Condvar,
}

impl Queue {
    /// Takes an op.
    pub(super) fn add(
        &self,
        op: &proto::Op,
        file: Arc<File>,
        buffer: Arc<Buffer>,
        slot: usize,
        answer: Arc<Answer>,
    ) {
        // The daemon has checked it; a mistake there must not become a copy to a wild address here.
        let within = op.buf_off.checked_add(op.len).is_some_and(|end| end <= buffer.length);
        let in_file = op.file_off.checked_add(op.len).is_some_and(|end| i64::try_from(end).is_ok());
        if op.len == 0 || !within || !in_file {
            return answer(op.id, -i64::from(libc::EINVAL), Path::None);
        }
        let align = if op.align.is_power_of_two() { op.align.max(cufile::ALIGN) } else { cufile::ALIGN };
        let pieces = cut(op.file_off, op.len, align, slot);
        let whole = Arc::new(Whole {
            id: op.id,
            lengths: pieces.iter().map(|(_, len, _)| *len).collect(),
            results: Mutex::new(vec![0; pieces.len()]),
            remaining: AtomicUsize::new(pieces.len()),
            path: AtomicU32::new(u32::MAX),
            answer,
        });
        let parts = pieces.into_iter().enumerate().map(|(index, (file_off, len, aligned))| Part {
            whole: whole.clone(),
            index,
            file: file.clone(),
            buffer: buffer.clone(),
            direction: op.direction,
            at: buffer.at + op.buf_off + (file_off - op.file_off),
            file_off,
            len,
            aligned,
            ended: false,
        });
        self.waiting.lock().extend(parts);
        self.more.notify_all();
    }

    /// The next part, when there is one.
    pub(super) fn next(&self) -> Part {
        let mut waiting = self.waiting.lock();
        loop {
            match waiting.pop_front() {
                Some(part) => return part,
                None => self.more.wait(&mut waiting),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_are_cut_at_blocks_and_slots() {
        const K: u64 = 1024;
        assert_eq!(cut(0, 8 * K, 4 * K, 4096), [(0, 4096, true), (4096, 4096, true)]);
        assert_eq!(cut(5, 10, 4 * K, 4096), [(5, 10, false)]);
        // Not a whole block between two others.
        assert_eq!(cut(4095, 2, 4 * K, 4096), [(4095, 2, false)]);
        assert_eq!(
            cut(4000, 9000, 4 * K, 1 << 20),
            [(4000, 96, false), (4096, 8192, true), (12288, 712, false)]
        );
        for (off, len, slot) in [(0, 1, 4096), (1, 100_000, 10_000), (4096, 1 << 20, 16384), (77, 4096, 5000)]
        {
            let pieces = cut(off, len, 4096, slot);
            let mut at = off;
            for (start, len, aligned) in pieces {
                assert_eq!(start, at);
                assert!(!aligned || (start | len as u64).is_multiple_of(4096));
                at += len as u64;
            }
            assert_eq!(at, off + len);
        }
    }

    #[test]
    fn the_result_ends_at_the_end_of_the_file_or_with_the_first_error() {
        assert_eq!(contiguous(&[10, 20, 5], &[10, 20, 30]), 35);
        assert_eq!(contiguous(&[10, 7, 0], &[10, 20, 30]), 17);
        assert_eq!(contiguous(&[10, -5, 30], &[10, 20, 30]), -5);
        // Beyond the end of the file nothing matters.
        assert_eq!(contiguous(&[3, -5], &[10, 20]), 3);
    }
}
