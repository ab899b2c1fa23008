//! READ, WRITE and SUBMIT: from the ops of a call to an engine.
//!
//! What always holds: an op reaches an engine only when its buffer is the caller's and allows it, its file is
//! one that the caller has open for it, and no truncation of the file is under way. What is wrong with an op
//! is that op's result, and no other's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{self, Batch, Path};
use super::buffer::Memory;
use super::call::{Call, Outcome};
use super::decode::direction;
use super::engine::{Direction, Engine, Op};
use super::owner::Owner;
use super::query::MAX_IO;
use super::{Asked, Direct, Target};
use crate::fs::{Fs, Pinned};
use crate::index::Slot;
use crate::metrics::Mover;
use crate::supervise::{HandedOver, hand_over};

/// The files of a call, each pinned once.
type Files = Vec<(u64, Arc<Pinned>)>;

impl Direct {
    pub(super) fn transfer(self: &Arc<Direct>, mut op: abi::Op, asked: Asked, tgid: u32) {
        let answer = move |target: Asked, outcome: Outcome| {
            op.result = outcome.results[0];
            target.done(op.as_bytes());
        };
        self.run(&[op], asked, tgid, answer);
    }

    pub(super) fn submit(
        self: &Arc<Direct>,
        mut batch: Batch,
        mut ops: Vec<abi::Op>,
        asked: Asked,
        tgid: u32,
    ) {
        let asked_for = ops.clone();
        let answer = move |target: Asked, outcome: Outcome| {
            batch.completed = outcome.results.iter().filter(|r| **r >= 0).count() as u32;
            batch.path = outcome.path;
            for (op, result) in ops.iter_mut().zip(outcome.results) {
                op.result = result;
            }
            target.done(&[batch.as_bytes(), ops.as_bytes()].concat());
        };
        self.run(&asked_for, asked, tgid, answer);
    }

    fn run(
        self: &Arc<Direct>,
        ops: &[abi::Op],
        asked: Asked,
        tgid: u32,
        answer: impl FnOnce(Asked, Outcome) + Send + 'static,
    ) {
        if !asked.again {
            return self.run_now(ops, asked, tgid, answer);
        }
        // It's known to be at work until it's answered: daemons may die over it.
        let at_work = AtWork { request: Some(hand_over()), fs: self.fs.clone() };
        let answer = move |asked: Asked, outcome| {
            answer(asked, outcome);
            drop(at_work);
        };
        // What a daemon before had begun of it mustn't overtake what the client does next.
        let (direct, ops) = (self.clone(), ops.to_vec());
        self.fs.lifeline.after(move |ended| match ended {
            true => direct.run_now(&ops, asked, tgid, answer),
            false => asked.failed(Errno::TIMEDOUT),
        });
    }

    fn run_now(
        self: &Arc<Direct>,
        ops: &[abi::Op],
        asked: Asked,
        tgid: u32,
        answer: impl FnOnce(Asked, Outcome) + Send + 'static,
    ) {
        self.crash_point(&asked, "transfer before");
        let bytes = ops.iter().try_fold(0u64, |sum, op| sum.checked_add(op.length));
        if bytes.is_none_or(|bytes| bytes > MAX_IO) {
            return asked.failed(Errno::INVAL);
        }
        // Who has registered nothing, or with a daemon before alone, is told so for each op.
        let owner = self.owners.find(tgid);
        let target = asked.target;
        let counts = self.counts.clone();
        let directions: Vec<_> = ops.iter().map(direction).collect();
        let told = directions.clone();
        let slots: Arc<[AtomicU8]> = ops.iter().map(|_| AtomicU8::new(NOWHERE)).collect();
        let (direct, at_slots) = (self.clone(), slots.clone());
        let call = self.deadlines.call(
            ops.len(),
            Box::new(move |outcome| {
                for ((direction, result), slot) in told.iter().zip(&outcome.results).zip(&*at_slots) {
                    let direction = direction.unwrap_or(Direction::Read);
                    counts.op(direction, *result);
                    direct.count_moved(direction, slot.load(Relaxed), *result);
                }
                direct.crash_point(&asked, "transfer after");
                answer(asked, outcome);
            }),
        );
        let mut files = Files::new();
        let (mut host, mut gpu) = (Vec::new(), Vec::new());
        for (at, (op, direction)) in ops.iter().zip(directions).enumerate() {
            let prepared = direction
                .and_then(|direction| self.prepare(op, direction, owner.as_ref(), target, &mut files));
            match prepared {
                Err(errno) => call.ticket(at).end(-i64::from(errno.raw_os_error()), Path::None),
                // Nothing to move, and nothing wrong.
                Ok(_) if op.length == 0 => call.ticket(at).end(0, Path::None),
                Ok(ready) => {
                    slots[at].store(ready.file.slot().0, Relaxed);
                    self.start(ready, &call, at, &mut host, &mut gpu);
                }
            }
        }
        self.hand_over(host, gpu);
    }

    /// Bytes count for the file's backing.
    fn count_moved(&self, direction: Direction, slot: u8, result: i64) {
        let Ok(bytes) = u64::try_from(result) else { return };
        let (metrics, slot) = (&self.fs.metrics, Slot(slot));
        match direction {
            _ if slot.0 == NOWHERE => {}
            Direction::Read => metrics.read(Mover::Direct, slot, bytes),
            Direction::Write => metrics.written(Mover::Direct, slot, bytes),
        }
    }

    /// Everything that an op needs, if it may have it.
    fn prepare(
        &self,
        op: &abi::Op,
        direction: Direction,
        owner: Option<&Arc<Owner>>,
        target: Target,
        files: &mut Files,
    ) -> Result<Ready, Errno> {
        let fh = match (op.file, target) {
            (0, Target::Dir(_)) => return Err(Errno::ISDIR),
            (0, Target::File(fh)) => fh,
            (token, _) => owner.and_then(|owner| self.tokens.file(owner, token)).ok_or(Errno::BADF)?,
        };
        let file = match files.iter().find(|(known, _)| *known == fh) {
            Some((_, file)) => file.clone(),
            None => {
                let file = Arc::new(self.fs.pin(fh).map_err(|e| e.errno())?);
                files.push((fh, file.clone()));
                file
            }
        };
        // The kernel doesn't look at the open mode for an ioctl.
        let allowed = match direction {
            Direction::Read => file.readable(),
            Direction::Write => file.writable(),
        };
        if !allowed {
            return Err(Errno::BADF);
        }
        let buffer = self.buffers.find(op.buf_id).ok_or(Errno::NOENT)?;
        if owner.is_none_or(|owner| !Arc::ptr_eq(&buffer.owner, owner)) {
            return Err(Errno::PERM);
        }
        let buffer = buffer.take(direction, op.buf_off, op.length)?;
        Ok(Ready { file, buffer, direction, op: *op })
    }

    /// Sends an op on its way, or lets it wait for a truncation to end.
    fn start(
        self: &Arc<Direct>,
        ready: Ready,
        call: &Arc<Call>,
        at: usize,
        host: &mut Vec<Op>,
        gpu: &mut Vec<Op>,
    ) {
        let Ready { file, buffer, direction, op } = ready;
        let ticket = call.ticket(at);
        let on_host = matches!(buffer.memory(), Memory::Host(_));
        let abi::Op { buf_off, file_off, length: len, .. } = op;
        let enter = file.clone();
        let make = move |passage| Op { file, buffer, direction, buf_off, file_off, len, passage, ticket };
        match enter.try_enter() {
            Some(passage) if on_host => host.push(make(passage)),
            Some(passage) => gpu.push(make(passage)),
            None => {
                let direct = self.clone();
                enter.enter(move |passage| {
                    let op = vec![make(passage)];
                    if on_host { direct.hand_over(op, Vec::new()) } else { direct.hand_over(Vec::new(), op) }
                });
            }
        }
    }

    fn hand_over(&self, host: Vec<Op>, gpu: Vec<Op>) {
        match &self.host {
            Ok(engine) => engine.submit(host),
            Err(_) => host.into_iter().for_each(|op| op.fail(libc::EOPNOTSUPP)),
        }
        if !gpu.is_empty() {
            self.gpus.submit(gpu);
        }
    }
}

/// A request that others than its thread answer; served when this is dropped.
struct AtWork {
    request: Option<HandedOver>,
    fs: Arc<Fs>,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            request.resume();
            self.fs.work.served();
            drop(hand_over());
        }
    }
}

/// No slot.
const NOWHERE: u8 = u8::MAX;

/// An op that may run.
struct Ready {
    file: Arc<Pinned>,
    buffer: super::buffer::Use,
    direction: Direction,
    op: abi::Op,
}
