//! Other ways to read and write: plain system calls, and io_uring without kvfs.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use io_uring::{IoUring, opcode, types};

use crate::client::HostBuffer;

/// The file that is measured, in whatever directory; removed at the end.
pub(super) struct Scratch {
    /// What the output calls it.
    pub(super) name: String,
    /// Where it is.
    pub(super) path: PathBuf,
    /// Open with `O_DIRECT` where that's possible.
    pub(super) file: File,
    /// Whether it is.
    pub(super) is_direct: bool,
    /// Whether there's a name to be removed.
    has_name: bool,
}

impl Scratch {
    /// A file of `size` bytes, a multiple of the buffer's, that has been written.
    pub(super) fn make(name: String, dir: &Path, size: u64, buffer: &HostBuffer) -> Result<Scratch, String> {
        let path = dir.join(format!("kvfs-bench-{}", std::process::id()));
        let open = |flags| {
            File::options().read(true).write(true).create(true).truncate(true).custom_flags(flags).open(&path)
        };
        let (file, is_direct) = direct_or_not(open).map_err(|e| format!("{}: {e}", path.display()))?;
        Scratch { name, path, file, is_direct, has_name: true }.filled(size, buffer)
    }

    /// The same without a name, so that nothing can be left of it.
    pub(super) fn unnamed(
        name: String,
        dir: &Path,
        size: u64,
        buffer: &HostBuffer,
    ) -> Result<Scratch, String> {
        let told = |e: std::io::Error| format!("{}: {e}", dir.display());
        let none =
            |flags| File::options().read(true).write(true).custom_flags(libc::O_TMPFILE | flags).open(dir);
        let made = direct_or_not(none).or_else(|_| {
            // FUSE has none.
            let path = dir.join(format!("kvfs-bench-{}", std::process::id()));
            direct_or_not(|flags| {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .custom_flags(flags)
                    .open(&path)?;
                std::fs::remove_file(&path).map(|()| file)
            })
        });
        let (file, is_direct) = made.map_err(told)?;
        Scratch { name, path: dir.to_owned(), file, is_direct, has_name: false }.filled(size, buffer)
    }

    fn filled(self, size: u64, buffer: &HostBuffer) -> Result<Scratch, String> {
        let scratch = self;
        for offset in (0..size).step_by(buffer.len()) {
            scratch.write(buffer, offset, buffer.len() as u64)?;
        }
        scratch.file.sync_all().map_err(|e| format!("{}: {e}", scratch.path.display()))?;
        Ok(scratch)
    }

    /// pread(2).
    pub(super) fn read(&self, buffer: &HostBuffer, offset: u64, len: u64) -> Result<(), String> {
        // SAFETY: the buffer is at least `len` bytes long, and the caller's alone.
        let n = unsafe {
            libc::pread(self.file.as_raw_fd(), buffer.as_ptr().cast(), len as usize, offset as libc::off_t)
        };
        self.moved(n, len)
    }

    /// pwrite(2).
    pub(super) fn write(&self, buffer: &HostBuffer, offset: u64, len: u64) -> Result<(), String> {
        // SAFETY: as in `read`.
        let n = unsafe {
            libc::pwrite(self.file.as_raw_fd(), buffer.as_ptr().cast(), len as usize, offset as libc::off_t)
        };
        self.moved(n, len)
    }

    fn moved(&self, n: isize, len: u64) -> Result<(), String> {
        match u64::try_from(n) {
            Ok(n) if n == len => Ok(()),
            Ok(n) => Err(format!("{}: {n} bytes instead of {len}", self.path.display())),
            Err(_) => Err(format!("{}: {}", self.path.display(), std::io::Error::last_os_error())),
        }
    }

    /// Reads many at once by a ring.
    pub(super) fn read_many(
        &self,
        ring: &mut IoUring,
        buffer: &HostBuffer,
        offsets: &[u64],
        len: u64,
    ) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", self.path.display());
        for (at, offset) in offsets.iter().enumerate() {
            let memory = buffer.as_ptr().wrapping_add(at * len as usize);
            let fd = types::Fd(self.file.as_raw_fd());
            let entry = opcode::Read::new(fd, memory, len as u32).offset(*offset).build();
            // SAFETY: the buffer has room for all, and all are waited for below.
            unsafe { ring.submission().push(&entry) }.map_err(|e| failed(&e))?;
        }
        let mut left = offsets.len();
        while left > 0 {
            ring.submit_and_wait(left).map_err(|e| failed(&e))?;
            for done in ring.completion() {
                left -= 1;
                if done.result() != len as i32 {
                    return Err(failed(&format!("io_uring answers {}", done.result())));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.has_name {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens with `O_DIRECT` where that's possible; says whether it was.
fn direct_or_not(open: impl Fn(i32) -> std::io::Result<File>) -> std::io::Result<(File, bool)> {
    open(libc::O_DIRECT).map(|file| (file, true)).or_else(|_| open(0).map(|file| (file, false)))
}
