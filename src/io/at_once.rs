//! Writes to the page cache, done by who brings them: that is a copy of memory, and handing it to another thread
//! costs about as much.
//!
//! What always holds: what `super` says of every engine, but that a write may make its caller wait, for memory or
//! for a drive that hangs. So only some callers write at a time; whoever comes then hands over.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Engine, IoFile, Payload, ReadDone, WriteDone, psync};

/// An engine, and writes at once.
pub(super) struct AtOnce<E> {
    engine: E,
    /// How many more callers may write.
    free: AtomicUsize,
}

/// Leave to write, until it's dropped.
struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl<E> AtOnce<E> {
    /// Where so many threads call.
    pub(super) fn new(engine: E, threads: usize) -> AtOnce<E> {
        AtOnce { engine, free: AtomicUsize::new(threads / 2) }
    }

    fn turn(&self) -> Option<Turn<'_>> {
        let taken = self.free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(1));
        taken.is_ok().then_some(Turn(&self.free))
    }
}

impl<E: Engine> Engine for AtOnce<E> {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn read(&self, file: Arc<IoFile>, offset: u64, len: usize, done: ReadDone) {
        self.engine.read(file, offset, len, done);
    }

    fn write(&self, file: Arc<IoFile>, offset: u64, data: Payload, done: WriteDone) {
        match file.cached().zip(self.turn()) {
            Some((fd, turn)) => {
                let written: io::Result<usize> = psync::write(fd, offset, data.bytes());
                drop(turn);
                done(written);
            }
            None => self.engine.write(file, offset, data, done),
        }
    }
}
