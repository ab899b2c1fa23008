//! File data and what goes with it: read, write, sync, allocation, holes, copying.
//!
//! What always holds: reads and writes come here only for files that the kernel doesn't pass through; the
//! rest comes here for all.

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::{Error, Fs, NodeId, Result};
use crate::index::Node;
use crate::io::{Payload, ReadDone, WriteDone};
use crate::supervise::is_sent_again;

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

impl Fs {
    /// Reads; `done` is told, perhaps on another thread. All of `size` bytes up to the end of the file.
    pub fn read(&self, fh: u64, offset: u64, size: u32, done: ReadDone) {
        match self.io_file(fh) {
            Ok(file) => self.engine.read(file, offset, size as usize, done),
            Err(e) => done(Err(e.errno().into())),
        }
    }

    /// Writes; `done` is told, perhaps on another thread.
    pub fn write(&self, fh: u64, offset: u64, data: Payload, done: WriteDone) {
        match self.io_file(fh) {
            // What a daemon before had begun of it mustn't land on what is written next.
            Ok(file) if is_sent_again() && self.lifeline.is_awaited() => {
                let engine = self.engine.clone();
                self.lifeline.after(move |ended| match ended {
                    true => engine.write(file, offset, data, done),
                    false => done(Err(Errno::IO.into())),
                });
            }
            Ok(file) => self.engine.write(file, offset, data, done),
            Err(e) => done(Err(e.errno().into())),
        }
    }

    /// Something was written to a file that was given up before.
    pub fn written_late(&self, node: NodeId) {
        self.open.doubt(node);
    }

    /// Writes what was changed through a mapping: it belongs where it is, whatever way the file is open.
    pub fn write_back(&self, fh: u64, offset: u64, data: Payload, done: WriteDone) {
        let handle = match self.handle_of(fh) {
            Ok(handle) if handle.appends => handle,
            _ => return self.write(fh, offset, data, done),
        };
        let written = handle.node.writable().map_err(|e| e.errno().into()).and_then(|fd| {
            let (data, mut done) = (data.bytes(), 0);
            while done < data.len() {
                match rustix::io::pwrite(fd, &data[done..], offset + done as u64)? {
                    0 => return Err(Errno::IO.into()),
                    n => done += n,
                }
            }
            Ok(done)
        });
        done(written);
    }

    fn io_file(&self, fh: u64) -> Result<std::sync::Arc<crate::io::IoFile>> {
        self.handle_of(fh)?.io.clone().ok_or_else(|| Errno::IO.into())
    }

    /// Puts the file on the device.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        let handle = self.handle_of(fh)?;
        if self.acknowledged_by_sync(&handle.node)? {
            return Ok(());
        }
        let fd = handle.node.writable()?;
        let synced = if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) };
        synced.map_err(Error::on(handle.node.slot))?;
        self.publish.with(handle.node.node, |hidden| hidden.synced = true);
        Ok(())
    }

    /// Puts a directory on the device, on every backing that has it.
    pub fn fsyncdir(&self, node: NodeId) -> Result<()> {
        use rustix::fs::{Mode, OFlags, openat};
        let Some(Node::Dir(dir)) = node.node() else { return Err(Errno::NOTDIR.into()) };
        let slots = self.index.read().slots(dir).unwrap_or_default();
        // A drive that's out takes only its own files with it.
        for slot in slots.iter().filter(|slot| self.reach(*slot).is_ok()) {
            let fd = self.dir_fd(slot, dir)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(&fd, c".", flags, Mode::empty()).map_err(Error::on(slot))?;
            rustix::fs::fsync(&dir).map_err(Error::on(slot))?;
        }
        Ok(())
    }

    /// fallocate(2), with its mode bits.
    pub fn fallocate(&self, fh: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        let handle = self.handle_of(fh)?;
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        rustix::fs::fallocate(handle.node.writable()?, flags, offset, length)
            .map_err(Error::on(handle.node.slot))?;
        self.count_size(&handle.node);
        Ok(())
    }

    /// The next data or hole at or after `offset`.
    pub fn lseek(&self, fh: u64, offset: u64, whence: Whence) -> Result<u64> {
        let handle = self.handle_of(fh)?;
        let from = match whence {
            Whence::Data => SeekFrom::Data(offset),
            Whence::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(handle.node.writable()?, from).map_err(Error::on(handle.node.slot))
    }

    /// Copies between two open files; how much may be less than asked for. EXDEV where the backings can't:
    /// the kernel then copies by reading and writing.
    pub fn copy_file_range(&self, from: (u64, u64), to: (u64, u64), length: u64) -> Result<usize> {
        let (source, target) = (self.handle_of(from.0)?, self.handle_of(to.0)?);
        let (mut read_at, mut write_at) = (from.1, to.1);
        // fuse_write_out counts in 32 bits.
        let length = length.min(1 << 30) as usize;
        let copied = rustix::fs::copy_file_range(
            source.node.writable()?,
            Some(&mut read_at),
            target.node.writable()?,
            Some(&mut write_at),
            length,
        )
        .map_err(Error::on(target.node.slot))?;
        self.count_size(&target.node);
        Ok(copied)
    }
}
