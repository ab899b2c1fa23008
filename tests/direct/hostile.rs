//! Descriptors that are made to do harm: of a file system, the client's own, that never answers a flush.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyOpen, Request, SessionACL,
};

use super::raw::{Buf, read_op, reg, register, transfer};
use super::sending;
use crate::common::{Errno, Lab, ns, sys};

/// Answers everything but flushes, which it keeps.
#[derive(Default)]
struct Stubborn {
    kept: Arc<Mutex<Option<Vec<ReplyEmpty>>>>,
}

fn attr(ino: INodeNo) -> FileAttr {
    let kind = if ino == INodeNo::ROOT { FileType::Directory } else { FileType::RegularFile };
    let (time, none) = (SystemTime::UNIX_EPOCH, 0);
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: 0o777,
        nlink: 1,
        uid: none,
        gid: none,
        rdev: none,
        blksize: 4096,
        flags: none,
    }
}

impl Filesystem for Stubborn {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&Duration::MAX, &attr(INodeNo(2)), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::MAX, &attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        match &mut *self.kept.lock().unwrap() {
            Some(kept) => kept.push(reply),
            None => reply.ok(),
        }
    }
}

fn mount(point: &Path) -> Arc<Mutex<Option<Vec<ReplyEmpty>>>> {
    let device = sys::open("/dev/fuse", libc::O_RDWR, 0).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("stubborn"), point, Some("fuse"), flags, Some(options.as_str())).unwrap();
    let stubborn = Stubborn { kept: Arc::new(Mutex::new(Some(Vec::new()))) };
    let kept = stubborn.kept.clone();
    let mut config = Config::default();
    config.acl = SessionACL::All;
    std::thread::spawn(move || {
        fuser::Session::from_fd(stubborn, device, SessionACL::All, config).unwrap().run()
    });
    kept
}

/// Answers the flushes at the end, however the test ends: else closing its own descriptor would hang it for good.
struct Relent(Arc<Mutex<Option<Vec<ReplyEmpty>>>>);

impl Drop for Relent {
    fn drop(&mut self) {
        let kept = self.0.lock().map_or_else(|poisoned| poisoned.into_inner().take(), |mut kept| kept.take());
        for reply in kept.into_iter().flatten() {
            reply.ok();
        }
    }
}

/// What has to come to an end while the flushes don't.
fn ends<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (told, ended) = channel();
    std::thread::spawn(move || told.send(work()));
    ended.recv_timeout(ns::HANG / 4).unwrap_or_else(|_| panic!("hung: {what}"))
}

#[test]
fn flushes_that_never_end() {
    let lab = Lab::new();
    let theirs: PathBuf = lab.dir("stubborn");
    let kept = mount(&theirs);
    let mount = lab.mount(&lab.dirs(1)).arg("--threads").arg("2").start();
    std::fs::write(mount.path("f"), "content").unwrap();
    let bad: Arc<OwnedFd> = Arc::new(sys::open(theirs.join("x"), libc::O_RDONLY, 0).unwrap());
    let file = Arc::new(sys::open(mount.path("f"), libc::O_RDONLY, 0).unwrap());
    let relent = Relent(kept);
    // More than there are threads, and than may hang.
    let mut refused = Vec::new();
    for _ in 0..70 {
        let (bad, file) = (bad.clone(), file.clone());
        refused.push(ends("REGISTER", move || register(&*file, &reg(&bad, 4096)).err()));
    }
    assert!(refused.iter().all(|e| matches!(e, Some(Errno::EBADF | Errno::EBUSY))), "{refused:?}");
    assert_eq!(refused[..60], [Some(Errno::EBADF); 60]);
    let path = mount.path("f");
    assert_eq!(ends("read(2)", move || std::fs::read(path).unwrap()), b"content");
    // What can be closed now is, and the rest is as before.
    drop(relent);
    super::process::until(&mount, "they are closed", |_| {
        !super::process::descriptors(&mount).iter().any(|d| d.contains("stubborn"))
    });
    let buf = Buf::new(&*file, 4096);
    assert_eq!(transfer(&*file, read_op(buf.id, 0, 0, 10)), Ok(7));
    drop(file);
}

#[test]
fn flushes_that_never_end_by_the_socket() {
    let lab = Lab::new();
    let theirs: PathBuf = lab.dir("stubborn");
    let kept = mount(&theirs);
    let mount = lab.mount(&lab.dirs(1)).start();
    std::fs::write(mount.path("f"), "content").unwrap();
    super::process::until(&mount, "the socket", |s| s["direct"]["fd_socket"].as_bool() == Some(true));
    let bad = sys::open(theirs.join("x"), libc::O_RDONLY, 0).unwrap();
    let _relent = Relent(kept);
    for _ in 0..5 {
        let to = sending::connected(&mount.path(sending::NAME)).unwrap();
        // Refused, and to be closed.
        sending::send(&to, b"garbage", &[bad.as_raw_fd(), bad.as_raw_fd()]).unwrap();
        assert_eq!(ends("an answer", move || sending::answer(&to).unwrap().error), libc::EINVAL);
    }
    let point = mount.point().to_owned();
    ends("the socket", move || sending::whole_way(&point)).unwrap();
}
