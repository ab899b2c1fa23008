//! Copying what is behind a name to another backing, under a temporary name there.
//!
//! What always holds: holes stay holes; mode, owner, times and extended attributes are those of the original;
//! what was copied is on the device when it returns; the page cache is left as it was, as far as the drives
//! allow direct I/O, else nearly so. Nothing here looks at the index.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    Advice, AtFlags, CWD, Gid, Mode, OFlags, SeekFrom, Statx, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::attr::stat_fd;
use super::creds::keeping_setgid;
use super::hiding::{SYNCED, UNSYNCED};
use super::xattr::{get_path, list_path};
use super::{DirFd, proc_path};
use crate::index::Kind;

type Result<T> = std::result::Result<T, CopyError>;

/// Bytes of one transfer.
const CHUNK: usize = 4 << 20;
/// Smaller files go through the page cache: one transfer and no second descriptor.
const SMALL: u64 = 128 << 10;
/// What memory is aligned to; drives that want more are read and written through the page cache.
const ALIGN: usize = 4096;

/// Why a copy could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyError {
    /// The original can't be read.
    Source(Errno),
    /// The copy can't be written.
    Target(Errno),
    /// The original has changed meanwhile.
    Changed,
    /// The work was called off.
    Cancelled,
}

/// Waits until so many bytes may be moved; false when the work is called off.
pub(crate) type Pace<'a> = &'a dyn Fn(u64) -> bool;

/// Memory to copy through, aligned.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(crate) fn new() -> Buffer {
        let memory = vec![0; CHUNK + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Buffer { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + CHUNK]
    }
}

/// The original.
pub(super) struct Original {
    /// With `O_PATH` where it's no regular file.
    pub(super) fd: OwnedFd,
    pub(super) stat: Statx,
    pub(super) kind: Kind,
    /// The alignment of direct I/O on its backing; 0 where there is none.
    pub(super) align: u32,
}

/// Where the copy goes.
pub(super) struct Target<'a> {
    pub(super) dir: &'a DirFd,
    pub(super) name: &'a [u8],
    pub(super) align: u32,
}

impl Original {
    /// Opens what is called so.
    pub(super) fn open(
        dir: &DirFd,
        name: &[u8],
        kind: Kind,
        align: u32,
    ) -> std::result::Result<Original, Errno> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |more| rustix::fs::openat(dir, name, flags | more, Mode::empty());
        let fd = match kind {
            Kind::File => {
                let read = OFlags::RDONLY | OFlags::NONBLOCK;
                // An ordinary user may not leave another's file's time of reading as it is.
                open(read | OFlags::NOATIME)
                    .or_else(|e| if e == Errno::PERM { open(read) } else { Err(e) })?
            }
            _ => open(OFlags::PATH)?,
        };
        let stat = stat_fd(&fd)?;
        Ok(Original { fd, stat, kind, align })
    }

    /// Copies it. The descriptor that's returned is the copy's. On an error nothing is left.
    pub(super) fn copy(&self, to: &Target<'_>, buffer: &mut Buffer, pace: Pace<'_>) -> Result<OwnedFd> {
        self.make(to, buffer, pace).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(to.dir, to.name, AtFlags::empty());
        })
    }

    /// Whether two regular files of one size have the same bytes.
    pub(super) fn has_content_of(&self, other: &Original) -> std::result::Result<bool, Errno> {
        let (mut a, mut b) = (Buffer::new(), Buffer::new());
        let mut at = 0;
        while at < self.stat.stx_size {
            let read = |from: &Original, to: &mut Buffer| read_all(from.fd.as_fd(), at, to.bytes());
            let (Ok(got), Ok(same)) = (read(self, &mut a), read(other, &mut b)) else {
                return Err(Errno::IO);
            };
            if got == 0 || got != same || a.bytes()[..got] != b.bytes()[..got] {
                return Ok(false);
            }
            at += got as u64;
        }
        Ok(true)
    }

    fn make(&self, to: &Target<'_>, buffer: &mut Buffer, pace: Pace<'_>) -> Result<OwnedFd> {
        let target = CopyError::Target;
        if self.kind == Kind::File {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o600);
            let fd = rustix::fs::openat(to.dir, to.name, flags, mode).map_err(target)?;
            self.copy_data(&fd, to.align, buffer, pace)?;
            self.copy_attributes(&fd)?;
            rustix::fs::fsync(&fd).map_err(target)?;
            // What went through the page cache is clean now.
            let _ = rustix::fs::fadvise(&fd, 0, None, Advice::DontNeed);
            return Ok(fd);
        }
        if !pace(0) {
            return Err(CopyError::Cancelled);
        }
        if self.kind == Kind::Symlink {
            let link = rustix::fs::readlinkat(&self.fd, c"", Vec::new()).map_err(CopyError::Source)?;
            rustix::fs::symlinkat(&*link, to.dir, to.name).map_err(target)?;
        } else {
            let kind = rustix::fs::FileType::from_raw_mode(self.stat.stx_mode.into());
            let device = rustix::fs::makedev(self.stat.stx_rdev_major, self.stat.stx_rdev_minor);
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(to.dir, to.name, kind, mode, device).map_err(target)?;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(to.dir, to.name, flags, Mode::empty()).map_err(target)?;
        // Whoever can change the backing may have put another's file there, which isn't to become the owner's.
        let made = stat_fd(&fd).map_err(target)?;
        if Kind::from_mode(u32::from(made.stx_mode)) != self.kind {
            return Err(CopyError::Target(Errno::STALE));
        }
        self.copy_attributes(&fd)?;
        Ok(fd)
    }

    fn copy_data(&self, to: &OwnedFd, align: u32, buffer: &mut Buffer, pace: Pace<'_>) -> Result<()> {
        let size = self.stat.stx_size;
        let direct = size > SMALL && [self.align, align].iter().all(|a| (1..=ALIGN as u32).contains(a));
        let again = |fd: &OwnedFd, access| {
            let flags = access | OFlags::DIRECT | OFlags::NOATIME | OFlags::CLOEXEC;
            let path = proc_path(fd);
            let open = |flags| rustix::fs::open(&path, flags, Mode::empty()).ok();
            open(flags).or_else(|| open(flags.difference(OFlags::NOATIME)))
        };
        let both = direct.then(|| Some((again(&self.fd, OFlags::RDONLY)?, again(to, OFlags::RDWR)?)));
        let mut way = Way { from: &self.fd, to, size, direct: both.flatten() };
        let mut at = 0;
        while at < size {
            let Some((start, end)) = next_data(&self.fd, at, size)? else { break };
            way.copy_range(start, end, buffer, pace)?;
            at = end;
        }
        if way.direct.is_none() {
            let _ = rustix::fs::fadvise(&self.fd, 0, None, Advice::DontNeed);
        }
        rustix::fs::ftruncate(to, size).map_err(CopyError::Target)
    }

    /// Owner first: a change of it takes setuid bits away. Times last: everything else changes them.
    fn copy_attributes(&self, to: &OwnedFd) -> Result<()> {
        let target = CopyError::Target;
        let made = stat_fd(to).map_err(target)?;
        let stat = &self.stat;
        if (made.stx_uid, made.stx_gid) != (stat.stx_uid, stat.stx_gid) {
            let owner = (Some(Uid::from_raw(stat.stx_uid)), Some(Gid::from_raw(stat.stx_gid)));
            rustix::fs::chownat(to, c"", owner.0, owner.1, AtFlags::EMPTY_PATH).map_err(target)?;
        }
        if self.kind != Kind::Symlink {
            self.copy_xattrs(to)?;
            let perm = u32::from(stat.stx_mode) & 0o7777;
            let chmod =
                || rustix::fs::chmodat(CWD, proc_path(to), Mode::from_raw_mode(perm), AtFlags::empty());
            keeping_setgid(perm, chmod).map_err(target)?;
        }
        let time = |t: rustix::fs::StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
        let times = Timestamps { last_access: time(stat.stx_atime), last_modification: time(stat.stx_mtime) };
        rustix::fs::utimensat(to, c"", &times, AtFlags::EMPTY_PATH).map_err(target)
    }

    /// All of them; those of the system's own as far as the other backing takes them.
    fn copy_xattrs(&self, to: &OwnedFd) -> Result<()> {
        let (from, to) = (proc_path(&self.fd), proc_path(to));
        let names = match list_path(&from) {
            Err(Errno::NOTSUP) => Vec::new(),
            names => names.map_err(CopyError::Source)?,
        };
        for name in names {
            let value = match get_path(&from, &name) {
                // Removed meanwhile; that's found out later.
                Err(Errno::NODATA) => continue,
                // A copy is on its device before it takes the name.
                Ok(_) if name == UNSYNCED.as_bytes() => SYNCED.to_vec(),
                value => value.map_err(CopyError::Source)?,
            };
            match rustix::fs::setxattr(&to, &*name, &value, XattrFlags::empty()) {
                Err(e) if name.starts_with(b"user.") || name == b"security.capability" => {
                    return Err(CopyError::Target(e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The next range of data at or after `at`, if there is one before the end.
fn next_data(fd: &OwnedFd, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
        Ok(start) => start,
        // Holes to the end.
        Err(Errno::NXIO) => return Ok(None),
        // The file system doesn't tell holes.
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok(Some((at, size))),
        Err(e) => return Err(CopyError::Source(e)),
    };
    let end = rustix::fs::seek(fd, SeekFrom::Hole(start)).map_err(CopyError::Source)?;
    Ok((start < size).then_some((start, end.min(size))))
}

/// How bytes get from one file to the other.
struct Way<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    size: u64,
    /// The same without the page cache.
    direct: Option<(OwnedFd, OwnedFd)>,
}

impl Way<'_> {
    fn copy_range(&mut self, start: u64, end: u64, buffer: &mut Buffer, pace: Pace<'_>) -> Result<()> {
        let mut at = if self.direct.is_some() { start - start % ALIGN as u64 } else { start };
        while at < end {
            let len = (end - at).min(CHUNK as u64) as usize;
            if !pace(len as u64) {
                return Err(CopyError::Cancelled);
            }
            let moved = match &self.direct {
                Some((from, to)) => {
                    let whole = len.next_multiple_of(ALIGN);
                    match direct_chunk(from.as_fd(), to.as_fd(), at, &mut buffer.bytes()[..whole]) {
                        // Another alignment than the drive says; or what's in the page cache alone can't be written
                        // back, and be read from the drive.
                        Err(CopyError::Source(_) | CopyError::Target(Errno::INVAL)) => {
                            self.direct = None;
                            continue;
                        }
                        moved => moved?,
                    }
                }
                None => self.cached_chunk(at, &mut buffer.bytes()[..len])?,
            };
            if moved == 0 {
                return if at < self.size { Err(CopyError::Changed) } else { Ok(()) };
            }
            at += moved as u64;
        }
        Ok(())
    }

    fn cached_chunk(&self, at: u64, bytes: &mut [u8]) -> Result<usize> {
        let got = read_all(self.from.as_fd(), at, bytes)?;
        write_all(self.to.as_fd(), at, &bytes[..got])?;
        let old = at.saturating_sub(2 * CHUNK as u64);
        if self.size > SMALL {
            // Written back as it comes, and dropped a little later when that has ended.
            start_writeback(self.to, at, got as u64);
            let _ = rustix::fs::fadvise(self.from, old, None, Advice::DontNeed);
            let _ =
                rustix::fs::fadvise(self.to, old, std::num::NonZeroU64::new(CHUNK as u64), Advice::DontNeed);
        }
        Ok(got)
    }
}

fn start_writeback(to: &OwnedFd, at: u64, len: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: a descriptor and integers. It's a hint: what it doesn't start, fsync does.
    unsafe {
        libc::sync_file_range(to.as_raw_fd(), at as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Moves a whole, aligned chunk; the last one of a file is filled up with zeros, to be cut off later.
fn direct_chunk(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: u64, bytes: &mut [u8]) -> Result<usize> {
    let got = read_all(from, at, bytes)?;
    let whole = got.next_multiple_of(ALIGN);
    bytes[got..whole].fill(0);
    write_all(to, at, &bytes[..whole])?;
    Ok(got)
}

fn read_all(from: BorrowedFd<'_>, at: u64, bytes: &mut [u8]) -> Result<usize> {
    let mut got = 0;
    while got < bytes.len() {
        match rustix::io::pread(from, &mut bytes[got..], at + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(Errno::INTR) => {}
            // A direct read that goes on behind the end, from where the file ended within a block.
            Err(Errno::INVAL) if got > 0 => break,
            Err(e) => return Err(CopyError::Source(e)),
        }
    }
    Ok(got)
}

fn write_all(to: BorrowedFd<'_>, at: u64, bytes: &[u8]) -> Result<()> {
    let mut put = 0;
    while put < bytes.len() {
        match rustix::io::pwrite(to, &bytes[put..], at + put as u64) {
            Ok(0) => return Err(CopyError::Target(Errno::NOSPC)),
            Ok(n) => put += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(CopyError::Target(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    #[test]
    fn a_copy_is_the_same_and_as_sparse() {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let dir: DirFd = Arc::new(std::fs::File::open(tmp.path()).unwrap().into());
        let file = std::fs::File::create(tmp.path().join("from")).unwrap();
        let data: Vec<u8> = (0..300_001u32).map(|i| (i * 7 / 3) as u8).collect();
        file.write_all_at(&data, 0).unwrap();
        file.write_all_at(&data, 64 << 20).unwrap();
        file.set_len(100 << 20).unwrap();
        for (n, align) in [(0, 0), (1, 4096)] {
            let from = Original::open(&dir, b"from", Kind::File, align).unwrap();
            let name = format!("to{n}");
            let target = Target { dir: &dir, name: name.as_bytes(), align };
            let paced = std::cell::Cell::new(0);
            let pace = |bytes| {
                paced.set(paced.get() + bytes);
                true
            };
            let made = from.copy(&target, &mut Buffer::new(), &pace).unwrap();
            let stat = stat_fd(&made).unwrap();
            assert_eq!((stat.stx_size, stat.stx_mtime.tv_nsec), (100 << 20, from.stat.stx_mtime.tv_nsec));
            assert!(stat.stx_blocks < 4 << 11, "{} blocks", stat.stx_blocks);
            assert!(paced.get() < 2 << 20, "{} bytes", paced.get());
            let copy = std::fs::read(tmp.path().join(&name)).unwrap();
            assert!(copy == std::fs::read(tmp.path().join("from")).unwrap(), "align {align}");
        }
        let from = Original::open(&dir, b"from", Kind::File, 0).unwrap();
        let target = Target { dir: &dir, name: b"none", align: 0 };
        let stopped = from.copy(&target, &mut Buffer::new(), &|_| false);
        assert_eq!(stopped.map(drop), Err(CopyError::Cancelled));
        assert!(!tmp.path().join("none").exists());
    }
}
