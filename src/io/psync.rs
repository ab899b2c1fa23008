//! The engine for machines without io_uring: a pool of threads that call `pread` and `pwrite`.
//!
//! What always holds: what `super` says of every engine.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;

use super::buffer::{Buffer, Pool};
use super::{Engine, IoFile, Payload, ReadDone, WriteDone, asked};

enum Job {
    Read { file: Arc<IoFile>, offset: u64, len: usize, done: ReadDone },
    Write { file: Arc<IoFile>, offset: u64, data: Payload, done: WriteDone },
}

/// A pool of threads. They end when the engine is dropped and its last job is done.
pub(super) struct Psync {
    jobs: Sender<Job>,
}

impl Psync {
    pub(super) fn new(threads: usize) -> io::Result<Psync> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let pool = Arc::new(Pool::default());
        for n in 0..threads {
            let (queue, pool) = (queue.clone(), pool.clone());
            std::thread::Builder::new().name(format!("kvfs-io-{n}")).spawn(move || work(&queue, &pool))?;
        }
        Ok(Psync { jobs })
    }

    fn send(&self, job: Job) {
        // The threads hold the other end for as long as the engine lives.
        let _ = self.jobs.send(job);
    }
}

impl Engine for Psync {
    fn name(&self) -> &'static str {
        "psync"
    }

    fn read(&self, file: Arc<IoFile>, offset: u64, len: usize, done: ReadDone) {
        self.send(Job::Read { file, offset, len, done });
    }

    fn write(&self, file: Arc<IoFile>, offset: u64, data: Payload, done: WriteDone) {
        self.send(Job::Write { file, offset, data, done });
    }
}

fn work(queue: &Mutex<Receiver<Job>>, pool: &Pool) {
    loop {
        let job = queue.lock().recv();
        match job {
            Ok(Job::Read { file, offset, len, done }) => {
                let (fd, start, size) = file.for_read(offset, len);
                let mut buffer = pool.take(size);
                done(
                    read(fd, start, size, &mut buffer)
                        .map(|got| asked(buffer.filled(), start, got, offset, len)),
                );
                pool.give_back(buffer);
            }
            Ok(Job::Write { file, offset, data, done }) => {
                let len = data.bytes().len();
                let copy = file.wants_copy(offset, &data).then(|| pool.copy(data.bytes()));
                let bytes = copy.as_ref().map_or(data.bytes(), Buffer::filled);
                done(file.for_write(offset, len).and_then(|fd| write(fd, offset, bytes)));
                copy.into_iter().for_each(|copy| pool.give_back(copy));
            }
            Err(_) => return,
        }
    }
}

fn read(fd: BorrowedFd<'_>, start: u64, size: usize, buffer: &mut Buffer) -> io::Result<usize> {
    let mut got = 0;
    while got < size {
        // SAFETY: the buffer holds `size` bytes and is used by nobody else.
        let room = unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr().add(got).cast(), size - got) };
        match rustix::io::pread::<_, &mut [std::mem::MaybeUninit<u8>]>(fd, room, start + got as u64) {
            Ok(([], _)) => break,
            Ok((init, _)) => got += init.len(),
            Err(rustix::io::Errno::INTR) => {}
            // A direct read goes on after its last whole block only at the end of the file.
            Err(rustix::io::Errno::INVAL) if got > 0 => break,
            Err(e) => return Err(e.into()),
        }
    }
    buffer.set_filled(got);
    Ok(got)
}

/// Writes all of it, or as much as the disk takes.
pub(super) fn write(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> io::Result<usize> {
    let mut put = 0;
    while put < data.len() {
        match rustix::io::pwrite(fd, &data[put..], offset + put as u64) {
            Ok(0) => break,
            Ok(n) => put += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) if put == 0 => return Err(e.into()),
            Err(_) => break,
        }
    }
    Ok(put)
}
