//! File data: who moves it when the kernel doesn't, and the registry of what the kernel moves by itself.
//!
//! What always holds: an engine answers every request exactly once, with all that was asked for up to the
//! end of the file or with an error, never with less; and it keeps nothing: what it has answered is with the
//! kernel.

mod at_once;
mod buffer;
mod cached;
mod passthrough;
mod payload;
mod psync;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, OnceLock};

use crate::supervise::Lifeline;
use at_once::AtOnce;

pub use passthrough::{BackingRegistry, Registered};
pub use payload::{Memory, Payload};

/// Told the bytes read.
pub type ReadDone = Box<dyn FnOnce(io::Result<&[u8]>) + Send>;
/// Told how many bytes were written: all of them, or fewer only when the disk refused the rest.
pub type WriteDone = Box<dyn FnOnce(io::Result<usize>) + Send>;

/// Moves data between the daemon and backing files, without making the caller wait for the disk.
pub trait Engine: Send + Sync {
    /// `io_uring` or `psync`.
    fn name(&self) -> &'static str;
    /// Reads `len` bytes from `offset`; `done` may run on another thread.
    fn read(&self, file: Arc<IoFile>, offset: u64, len: usize, done: ReadDone);
    /// Writes `data` at `offset`; `done` may run on another thread.
    fn write(&self, file: Arc<IoFile>, offset: u64, data: Payload, done: WriteDone);
}

/// The best engine this machine allows: io_uring, else (it's switched off, or a container's seccomp filter
/// refuses it) a pool of threads that read and write. The second value says why it isn't io_uring. It's called by
/// `threads` threads.
/// `lifeline` tells a daemon after this one when the last request has ended.
pub fn engine(threads: usize, lifeline: &Lifeline) -> io::Result<(Arc<dyn Engine>, Option<String>)> {
    match uring::Uring::new(threads, lifeline) {
        Ok(uring) => Ok((Arc::new(AtOnce::new(uring, threads)), None)),
        Err(e) => {
            let psync = psync::Psync::new(threads.max(4))?;
            Ok((Arc::new(AtOnce::new(psync, threads)), Some(format!("io_uring can't be used: {e}"))))
        }
    }
}

/// A backing file as an open handle uses it.
#[derive(Debug)]
pub struct IoFile {
    fd: OwnedFd,
    /// The alignment that this descriptor needs, in bytes: 1 unless it was opened with `O_DIRECT`.
    align: u64,
    /// The same file without `O_DIRECT`, for what isn't aligned; opened when first needed.
    buffered: OnceLock<OwnedFd>,
    /// Whether a write ends only when it's on the device (`O_SYNC`, `O_DSYNC`).
    syncs: bool,
    /// The alignment that reads past the page cache need; 0 where there are none.
    past_cache: u64,
    /// The same file with `O_DIRECT`, for those; `None` in it where that's refused.
    direct: OnceLock<Option<OwnedFd>>,
}

/// Reads this long go past the page cache of the backing if it has nothing of them: the kernel keeps what is read in
/// that of the mount.
const WORTH_IT: usize = 128 << 10;

impl IoFile {
    /// A descriptor; `dio_align` is what the backing needs if it was opened with `O_DIRECT`.
    pub fn new(fd: OwnedFd, dio_align: Option<u32>) -> IoFile {
        // Where the kernel doesn't tell, 4096 fits every drive.
        let align = dio_align.map_or(1, |a| if a.is_power_of_two() { u64::from(a) } else { 4096 });
        IoFile { fd, align, buffered: OnceLock::new(), syncs: false, past_cache: 0, direct: OnceLock::new() }
    }

    /// A write ends only when it's on the device.
    pub fn syncing(self, syncs: bool) -> IoFile {
        IoFile { syncs, ..self }
    }

    /// Its bytes, where they aren't in the page cache, needn't go there to be read; with the alignment that the backing
    /// needs.
    pub fn reading_past_cache(self, dio_align: u32) -> IoFile {
        let past_cache =
            if self.align == 1 && dio_align.is_power_of_two() { u64::from(dio_align) } else { 0 };
        IoFile { past_cache, ..self }
    }

    /// What to read `len` bytes at `offset` by: the descriptor, and the aligned offset and length.
    fn for_read(&self, offset: u64, len: usize) -> (BorrowedFd<'_>, u64, usize) {
        let past_cache =
            self.past_cache != 0 && len >= WORTH_IT && cached::is_cold(self.fd.as_fd(), offset, len);
        let direct =
            if past_cache { self.direct.get_or_init(|| self.reopen_direct()).as_ref() } else { None };
        let (fd, align) = direct.map_or((&self.fd, self.align), |direct| (direct, self.past_cache));
        let start = offset / align * align;
        let end = (offset + len as u64).next_multiple_of(align);
        (fd.as_fd(), start, (end - start) as usize)
    }

    fn reopen_direct(&self) -> Option<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        File::options().read(true).custom_flags(libc::O_DIRECT).open(path).ok().map(OwnedFd::from)
    }

    /// The descriptor, if a write through it ends in the page cache.
    fn cached(&self) -> Option<BorrowedFd<'_>> {
        (self.align == 1 && !self.syncs).then(|| self.fd.as_fd())
    }

    /// Whether memory of one write needs to lie as it does in a [`Buffer`](buffer::Buffer).
    fn wants_copy(&self, offset: u64, data: &Payload) -> bool {
        let len = data.bytes().len() as u64;
        offset.is_multiple_of(self.align) && len.is_multiple_of(self.align) && !data.is_aligned(self.align)
    }

    /// The descriptor to write `len` bytes at `offset` through.
    fn for_write(&self, offset: u64, len: usize) -> io::Result<BorrowedFd<'_>> {
        if offset.is_multiple_of(self.align) && (len as u64).is_multiple_of(self.align) {
            return Ok(self.fd.as_fd());
        }
        if let Some(fd) = self.buffered.get() {
            return Ok(fd.as_fd());
        }
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let fd: OwnedFd = File::options().write(true).open(path)?.into();
        Ok(self.buffered.get_or_init(|| fd).as_fd())
    }
}

/// The part of an aligned window that was asked for: `got` bytes were read from `start` on.
fn asked(window: &[u8], start: u64, got: usize, offset: u64, len: usize) -> &[u8] {
    let skip = (offset - start) as usize;
    window.get(skip..got.min(skip + len)).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn engines() -> Vec<Arc<dyn Engine>> {
        vec![
            Arc::new(uring::Uring::new(2, &Lifeline::default()).unwrap()),
            Arc::new(psync::Psync::new(2).unwrap()),
            Arc::new(AtOnce::new(psync::Psync::new(2).unwrap(), 2)),
        ]
    }

    fn file(dir: &std::path::Path, direct: bool) -> Arc<IoFile> {
        let mut options = File::options();
        options.read(true).write(true).create(true);
        if direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let fd: OwnedFd = options.open(dir.join("file")).unwrap().into();
        Arc::new(IoFile::new(fd, direct.then_some(4096)))
    }

    fn read(engine: &dyn Engine, file: &Arc<IoFile>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (send, receive) = mpsc::channel();
        engine.read(file.clone(), offset, len, Box::new(move |r| send.send(r.map(<[u8]>::to_vec)).unwrap()));
        receive.recv().unwrap()
    }

    fn write(engine: &dyn Engine, file: &Arc<IoFile>, offset: u64, data: &[u8]) -> io::Result<usize> {
        let (send, receive) = mpsc::channel();
        engine.write(file.clone(), offset, Payload::copied(data), Box::new(move |r| send.send(r).unwrap()));
        receive.recv().unwrap()
    }

    #[test]
    fn whole_answers_at_any_alignment() {
        for engine in engines() {
            for direct in [false, true] {
                let dir = tempfile::tempdir_in("/var/tmp").unwrap();
                let file = file(dir.path(), direct);
                let data: Vec<u8> = (0..3_000_001u32).map(|i| (i * 7 / 3) as u8).collect();
                for (at, part) in data.chunks(1 << 20).enumerate() {
                    assert_eq!(write(&*engine, &file, (at as u64) << 20, part).unwrap(), part.len());
                }
                let cases = [
                    (0, 1 << 20),
                    (1, 10),
                    (4095, 2),
                    (4096, 4096),
                    (2_999_999, 100),
                    (3_000_001, 5),
                    (9_000_000, 5),
                ];
                for (offset, len) in cases {
                    let want = data.get(offset..).map_or(&[][..], |rest| &rest[..len.min(rest.len())]);
                    let got = read(&*engine, &file, offset as u64, len).unwrap();
                    assert!(got == want, "{} direct={direct} {offset}+{len}", engine.name());
                }
                write(&*engine, &file, 5000, b"patched").unwrap();
                assert_eq!(read(&*engine, &file, 5000, 7).unwrap(), b"patched");
                assert_eq!(read(&*engine, &file, 0, 0).unwrap(), b"");
            }
        }
    }

    #[test]
    fn errors_come_back() {
        for engine in engines() {
            let dir: OwnedFd = File::open("/").unwrap().into();
            let file = Arc::new(IoFile::new(dir, None));
            assert_eq!(read(&*engine, &file, 0, 10).unwrap_err().raw_os_error(), Some(libc::EISDIR));
            assert!(write(&*engine, &file, 0, b"x").is_err());
        }
    }

    #[test]
    fn many_requests_at_once() {
        for engine in engines() {
            let dir = tempfile::tempdir().unwrap();
            let file = file(dir.path(), false);
            let (send, receive) = mpsc::channel();
            for i in 0..2000u64 {
                let send = send.clone();
                let done = Box::new(move |r: io::Result<usize>| send.send(r.unwrap()).unwrap());
                engine.write(file.clone(), i * 100, Payload::copied(&[i as u8; 100]), done);
            }
            assert_eq!((0..2000).map(|_| receive.recv().unwrap()).sum::<usize>(), 200_000);
            for i in (0..2000u64).step_by(97) {
                assert_eq!(read(&*engine, &file, i * 100, 100).unwrap(), [i as u8; 100]);
            }
        }
    }
}
