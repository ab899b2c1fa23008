//! Plain syscalls that answer with their errno: what a test compares is exactly what a client sees.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use libc::c_int;
use nix::errno::Errno;

pub(crate) type R<T> = Result<T, Errno>;

/// One libc call, its -1 turned into the errno.
macro_rules! call {
    ($call:expr) => {{
        // SAFETY: every pointer handed over comes from a buffer, string or struct that is borrowed
        // for the whole call, with its own length.
        Errno::result(unsafe { $call })
    }};
}

fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).expect("a path without NUL")
}

fn owned(fd: c_int) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor to this call, nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn open(path: impl AsRef<Path>, flags: c_int, mode: u32) -> R<OwnedFd> {
    let path = c(path);
    call!(libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode)).map(owned)
}

/// A file open for reading and writing, made if need be.
pub(crate) fn create(path: impl AsRef<Path>) -> R<OwnedFd> {
    open(path, libc::O_RDWR | libc::O_CREAT, 0o644)
}

pub(crate) fn read(fd: &OwnedFd, len: usize) -> R<Vec<u8>> {
    let mut buf = vec![0; len];
    let n = call!(libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), len))?;
    buf.truncate(n as usize);
    Ok(buf)
}

pub(crate) fn pread(fd: &OwnedFd, len: usize, at: i64) -> R<Vec<u8>> {
    let mut buf = vec![0; len];
    let n = call!(libc::pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), len, at))?;
    buf.truncate(n as usize);
    Ok(buf)
}

pub(crate) fn write(fd: &OwnedFd, data: &[u8]) -> R<usize> {
    call!(libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len())).map(|n| n as usize)
}

pub(crate) fn pwrite(fd: &OwnedFd, data: &[u8], at: i64) -> R<usize> {
    call!(libc::pwrite(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), at)).map(|n| n as usize)
}

/// Reads into, or writes from, a buffer whose address is `skew` bytes off a page, as direct I/O cares.
pub(crate) fn pread_at_skew(fd: &OwnedFd, len: usize, at: i64, skew: usize) -> R<Vec<u8>> {
    let mut page = Aligned::new(len + skew);
    let buf = &mut page.bytes()[skew..skew + len];
    let n = call!(libc::pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), len, at))?;
    Ok(buf[..n as usize].to_vec())
}

pub(crate) fn pwrite_at_skew(fd: &OwnedFd, data: &[u8], at: i64, skew: usize) -> R<usize> {
    let mut page = Aligned::new(data.len() + skew);
    let buf = &mut page.bytes()[skew..skew + data.len()];
    buf.copy_from_slice(data);
    call!(libc::pwrite(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len(), at)).map(|n| n as usize)
}

struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new(len: usize) -> Aligned {
        let raw = vec![0; len + 4096];
        let start = raw.as_ptr().align_offset(4096);
        Aligned(raw, start)
    }
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0[self.1..]
    }
}

pub(crate) fn writev(fd: &OwnedFd, parts: &[&[u8]]) -> R<usize> {
    let iov: Vec<libc::iovec> =
        parts.iter().map(|p| libc::iovec { iov_base: p.as_ptr() as *mut _, iov_len: p.len() }).collect();
    call!(libc::writev(fd.as_raw_fd(), iov.as_ptr(), iov.len() as c_int)).map(|n| n as usize)
}

pub(crate) fn readv(fd: &OwnedFd, lens: &[usize]) -> R<Vec<u8>> {
    let mut bufs: Vec<Vec<u8>> = lens.iter().map(|l| vec![0; *l]).collect();
    let iov: Vec<libc::iovec> =
        bufs.iter_mut().map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() }).collect();
    let n = call!(libc::readv(fd.as_raw_fd(), iov.as_ptr(), iov.len() as c_int))?;
    let mut all = bufs.concat();
    all.truncate(n as usize);
    Ok(all)
}

pub(crate) fn lseek(fd: &OwnedFd, at: i64, whence: c_int) -> R<i64> {
    call!(libc::lseek(fd.as_raw_fd(), at, whence))
}

pub(crate) fn ftruncate(fd: &OwnedFd, len: i64) -> R<()> {
    call!(libc::ftruncate(fd.as_raw_fd(), len)).map(drop)
}

pub(crate) fn truncate(path: impl AsRef<Path>, len: i64) -> R<()> {
    let path = c(path);
    call!(libc::truncate(path.as_ptr(), len)).map(drop)
}

pub(crate) fn fallocate(fd: &OwnedFd, mode: c_int, at: i64, len: i64) -> R<()> {
    call!(libc::fallocate(fd.as_raw_fd(), mode, at, len)).map(drop)
}

pub(crate) fn fsync(fd: &OwnedFd) -> R<()> {
    call!(libc::fsync(fd.as_raw_fd())).map(drop)
}

pub(crate) fn fdatasync(fd: &OwnedFd) -> R<()> {
    call!(libc::fdatasync(fd.as_raw_fd())).map(drop)
}

fn empty_stat() -> libc::stat {
    // SAFETY: stat is plain integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

pub(crate) fn lstat(path: impl AsRef<Path>) -> R<libc::stat> {
    let (path, mut st) = (c(path), empty_stat());
    call!(libc::lstat(path.as_ptr(), &mut st)).map(|_| st)
}

pub(crate) fn stat(path: impl AsRef<Path>) -> R<libc::stat> {
    let (path, mut st) = (c(path), empty_stat());
    call!(libc::stat(path.as_ptr(), &mut st)).map(|_| st)
}

pub(crate) fn fstat(fd: &OwnedFd) -> R<libc::stat> {
    let mut st = empty_stat();
    call!(libc::fstat(fd.as_raw_fd(), &mut st)).map(|_| st)
}

pub(crate) fn statvfs(path: impl AsRef<Path>) -> R<libc::statvfs> {
    let path = c(path);
    // SAFETY: statvfs is plain integers, for which zero is a value.
    let mut st: libc::statvfs = unsafe { std::mem::zeroed() };
    call!(libc::statvfs(path.as_ptr(), &mut st)).map(|_| st)
}

/// The magic number of the file system a path is on.
pub(crate) fn fs_magic(path: impl AsRef<Path>) -> R<i64> {
    let path = c(path);
    // SAFETY: statfs is plain integers, for which zero is a value.
    let mut st: libc::statfs = unsafe { std::mem::zeroed() };
    call!(libc::statfs(path.as_ptr(), &mut st)).map(|_| st.f_type)
}

pub(crate) fn unlink(path: impl AsRef<Path>) -> R<()> {
    let path = c(path);
    call!(libc::unlink(path.as_ptr())).map(drop)
}

pub(crate) fn mkdir(path: impl AsRef<Path>, mode: u32) -> R<()> {
    let path = c(path);
    call!(libc::mkdir(path.as_ptr(), mode)).map(drop)
}

pub(crate) fn rmdir(path: impl AsRef<Path>) -> R<()> {
    let path = c(path);
    call!(libc::rmdir(path.as_ptr())).map(drop)
}

pub(crate) fn link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> R<()> {
    let (from, to) = (c(from), c(to));
    call!(libc::link(from.as_ptr(), to.as_ptr())).map(drop)
}

pub(crate) fn symlink(target: impl AsRef<Path>, at: impl AsRef<Path>) -> R<()> {
    let (target, at) = (c(target), c(at));
    call!(libc::symlink(target.as_ptr(), at.as_ptr())).map(drop)
}

pub(crate) fn readlink(path: impl AsRef<Path>) -> R<PathBuf> {
    let path = c(path);
    let mut buf = vec![0u8; 4096];
    let n = call!(libc::readlink(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()))?;
    Ok(PathBuf::from(OsStr::from_bytes(&buf[..n as usize])))
}

pub(crate) fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> R<()> {
    renameat2(from, to, 0)
}

pub(crate) fn renameat2(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> R<()> {
    let (from, to) = (c(from), c(to));
    call!(libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)).map(drop)
}

pub(crate) fn mknod(path: impl AsRef<Path>, mode: u32, dev: u64) -> R<()> {
    let path = c(path);
    call!(libc::mknod(path.as_ptr(), mode, dev)).map(drop)
}

pub(crate) fn chmod(path: impl AsRef<Path>, mode: u32) -> R<()> {
    let path = c(path);
    call!(libc::chmod(path.as_ptr(), mode)).map(drop)
}

pub(crate) fn fchmod(fd: &OwnedFd, mode: u32) -> R<()> {
    call!(libc::fchmod(fd.as_raw_fd(), mode)).map(drop)
}

pub(crate) fn lchown(path: impl AsRef<Path>, uid: u32, gid: u32) -> R<()> {
    let path = c(path);
    call!(libc::lchown(path.as_ptr(), uid, gid)).map(drop)
}

pub(crate) fn chown(path: impl AsRef<Path>, uid: u32, gid: u32) -> R<()> {
    let path = c(path);
    call!(libc::chown(path.as_ptr(), uid, gid)).map(drop)
}

pub(crate) fn fchown(fd: &OwnedFd, uid: u32, gid: u32) -> R<()> {
    call!(libc::fchown(fd.as_raw_fd(), uid, gid)).map(drop)
}

pub(crate) fn access(path: impl AsRef<Path>, mode: c_int) -> R<()> {
    let path = c(path);
    // AT_EACCESS would be emulated from stat by the library; plain access(2) asks the kernel.
    call!(libc::access(path.as_ptr(), mode)).map(drop)
}

/// Times as (seconds, nanoseconds); nanoseconds may be UTIME_NOW or UTIME_OMIT.
pub(crate) fn utimens(path: impl AsRef<Path>, atime: (i64, i64), mtime: (i64, i64), flags: c_int) -> R<()> {
    let path = c(path);
    let times = [atime, mtime].map(|(s, n)| libc::timespec { tv_sec: s, tv_nsec: n });
    call!(libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags)).map(drop)
}

pub(crate) fn futimens(fd: &OwnedFd, atime: (i64, i64), mtime: (i64, i64)) -> R<()> {
    let times = [atime, mtime].map(|(s, n)| libc::timespec { tv_sec: s, tv_nsec: n });
    call!(libc::futimens(fd.as_raw_fd(), times.as_ptr())).map(drop)
}

pub(crate) fn umask(mask: u32) -> u32 {
    // SAFETY: umask takes an integer and can't fail.
    unsafe { libc::umask(mask) }
}

pub(crate) fn setxattr(path: impl AsRef<Path>, name: &str, value: &[u8], flags: c_int) -> R<()> {
    let (path, name) = (c(path), c(name));
    call!(libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)).map(drop)
}

pub(crate) fn getxattr(path: impl AsRef<Path>, name: &str) -> R<Vec<u8>> {
    let (path, name) = (c(path), c(name));
    let mut buf = vec![0u8; 65536];
    let n = call!(libc::lgetxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()))?;
    buf.truncate(n as usize);
    Ok(buf)
}

/// The size a value has, or what a buffer of `room` bytes gets; size 0 asks for the size.
pub(crate) fn getxattr_into(path: impl AsRef<Path>, name: &str, room: usize) -> R<usize> {
    let (path, name) = (c(path), c(name));
    let mut buf = vec![0u8; room];
    call!(libc::lgetxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), room)).map(|n| n as usize)
}

/// The names of all attributes, sorted.
pub(crate) fn listxattr(path: impl AsRef<Path>) -> R<Vec<String>> {
    let path = c(path);
    let mut buf = vec![0u8; 65536];
    let n = call!(libc::llistxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()))?;
    let mut names: Vec<String> = buf[..n as usize]
        .split(|b| *b == 0)
        .filter(|s| !s.is_empty())
        .map(|s| String::from_utf8_lossy(s).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

pub(crate) fn removexattr(path: impl AsRef<Path>, name: &str) -> R<()> {
    let (path, name) = (c(path), c(name));
    call!(libc::lremovexattr(path.as_ptr(), name.as_ptr())).map(drop)
}

pub(crate) fn copy_file_range(
    from: &OwnedFd,
    mut at: i64,
    to: &OwnedFd,
    mut to_at: i64,
    len: usize,
) -> R<usize> {
    call!(libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, len, 0))
        .map(|n| n as usize)
}

pub(crate) fn sendfile(to: &OwnedFd, from: &OwnedFd, mut at: i64, len: usize) -> R<usize> {
    call!(libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &mut at, len)).map(|n| n as usize)
}

pub(crate) fn pipe() -> R<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    call!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC)).map(|_| (owned(fds[0]), owned(fds[1])))
}

/// Moves bytes between a pipe and a file; the offset belongs to whichever side is the file.
pub(crate) fn splice(
    from: &OwnedFd,
    from_at: Option<i64>,
    to: &OwnedFd,
    to_at: Option<i64>,
    len: usize,
) -> R<usize> {
    let (mut a, mut b) = (from_at.unwrap_or(0), to_at.unwrap_or(0));
    let pa = if from_at.is_some() { &raw mut a } else { ptr::null_mut() };
    let pb = if to_at.is_some() { &raw mut b } else { ptr::null_mut() };
    call!(libc::splice(from.as_raw_fd(), pa, to.as_raw_fd(), pb, len, 0)).map(|n| n as usize)
}

pub(crate) fn flock(fd: &OwnedFd, how: c_int) -> R<()> {
    call!(libc::flock(fd.as_raw_fd(), how)).map(drop)
}

/// fcntl with a record lock: `cmd` is F_SETLK, F_GETLK or their OFD forms. Returns the lock's type after it.
pub(crate) fn record_lock(fd: &OwnedFd, cmd: c_int, kind: c_int, at: i64, len: i64) -> R<i32> {
    // SAFETY: flock is plain integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = at;
    lock.l_len = len;
    call!(libc::fcntl(fd.as_raw_fd(), cmd, &mut lock)).map(|_| i32::from(lock.l_type))
}

pub(crate) fn fcntl(fd: &OwnedFd, cmd: c_int, arg: c_int) -> R<c_int> {
    call!(libc::fcntl(fd.as_raw_fd(), cmd, arg))
}

/// A mapping of a file.
pub(crate) struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    pub(crate) fn new(fd: &OwnedFd, len: usize, prot: c_int, flags: c_int) -> R<Map> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Map { at: at.cast(), len }) }
    }

    pub(crate) fn get(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        let mut out = vec![0; len];
        // SAFETY: in bounds of the mapping (asserted), which lives as long as self.
        unsafe { ptr::copy_nonoverlapping(self.at.add(at), out.as_mut_ptr(), len) };
        out
    }

    pub(crate) fn put(&mut self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.len);
        // SAFETY: in bounds of the mapping (asserted), which lives as long as self.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.at.add(at), data.len()) };
    }

    pub(crate) fn sync(&self) -> R<()> {
        call!(libc::msync(self.at.cast(), self.len, libc::MS_SYNC)).map(drop)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours alone and nothing borrows from it.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

pub(crate) fn unshare(what: c_int) -> R<()> {
    call!(libc::unshare(what)).map(drop)
}

pub(crate) fn pidfd(pid: u32) -> R<OwnedFd> {
    call!(libc::syscall(libc::SYS_pidfd_open, pid, 0)).map(|fd| owned(fd as c_int))
}

pub(crate) fn signal(pidfd: &OwnedFd, signal: c_int) -> R<()> {
    call!(libc::syscall(
        libc::SYS_pidfd_send_signal,
        pidfd.as_raw_fd(),
        signal,
        ptr::null::<libc::siginfo_t>(),
        0
    ))
    .map(drop)
}

/// Makes the command's process end with the thread that starts it: a test that is killed leaves nothing running.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches only the new process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Waits until the kernel's coarse clock, which stamps files, has moved on.
pub(crate) fn tick() {
    let now = || {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `t` outlives the call.
        unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut t) };
        (t.tv_sec, t.tv_nsec)
    };
    for _ in 0..2 {
        let start = now();
        while now() == start {
            std::thread::yield_now();
        }
    }
}

/// Shuts a file system down as a dead device would: every access to it fails from now on.
pub(crate) fn kill_device(path: impl AsRef<Path>) {
    let fd = open(path, libc::O_RDONLY, 0).unwrap();
    let mut how: u32 = 2;
    // SAFETY: XFS_IOC_GOINGDOWN (ext4 has the same) reads one u32, which outlives the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), 0x8004_587d, &mut how) };
    assert_eq!(done, 0, "shut the file system down: {}", Errno::last());
}
