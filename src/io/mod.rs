//! File data: who moves it when the kernel doesn't, and the registry of what the kernel moves by itself.
//!
//! What always holds: an engine answers every request exactly once, with all that was asked for up to the
//! end of the file or with an error, never with less; and it keeps nothing: what it has answered is with the
//! kernel.

mod buffer;
mod passthrough;
mod psync;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use crate::supervise::Lifeline;

pub use passthrough::{BackingRegistry, Registered};

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
    /// Writes `data` at `offset`; `data` is not used after the call returns.
    fn write(&self, file: Arc<IoFile>, offset: u64, data: &[u8], done: WriteDone);
}

/// The best engine this machine allows: io_uring, else (it's switched off, or a container's seccomp filter
/// refuses it) a pool of threads that read and write. The second value says why it isn't io_uring.
/// `lifeline` tells a daemon after this one when the last request has ended.
pub fn engine(threads: usize, lifeline: &Lifeline) -> io::Result<(Arc<dyn Engine>, Option<String>)> {
    match uring::Uring::new(threads, lifeline) {
        Ok(uring) => Ok((Arc::new(uring), None)),
        Err(e) => {
            Ok((Arc::new(psync::Psync::new(threads.max(4))?), Some(format!("io_uring can't be used: {e}"))))
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
}

impl IoFile {
    /// A descriptor; `dio_align` is what the backing needs if it was opened with `O_DIRECT`.
    pub fn new(fd: OwnedFd, dio_align: Option<u32>) -> IoFile {
        // Where the kernel doesn't tell, 4096 fits every drive.
        let align = dio_align.map_or(1, |a| if a.is_power_of_two() { u64::from(a) } else { 4096 });
        IoFile { fd, align, buffered: OnceLock::new() }
    }

    /// Where a request of `len` bytes at `offset` goes: the descriptor, and the aligned offset and length.
    fn window(&self, offset: u64, len: usize) -> (u64, usize) {
        let start = offset / self.align * self.align;
        let end = (offset + len as u64).next_multiple_of(self.align);
        (start, (end - start) as usize)
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
        ]
    }

    fn file(dir: &std::path::Path, direct: bool) -> Arc<IoFile> {
        use std::os::unix::fs::OpenOptionsExt;
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
        engine.write(file.clone(), offset, data, Box::new(move |r| send.send(r).unwrap()));
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
                engine.write(file.clone(), i * 100, &[i as u8; 100], done);
            }
            assert_eq!((0..2000).map(|_| receive.recv().unwrap()).sum::<usize>(), 200_000);
            for i in (0..2000u64).step_by(97) {
                assert_eq!(read(&*engine, &file, i * 100, 100).unwrap(), [i as u8; 100]);
            }
        }
    }
}
