//! The adapter as the session sees it: each request is watched from its first moment to its last.
//!
//! What always holds: no decision is made here. What may wait for a drive that's out, and nobody waits for (a file
//! that's forgotten or closed), is done by a thread that does nothing else.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::adapter::Adapter;
use super::convert::node;
use crate::fs::{Fs, Op};

type Later = Box<dyn FnOnce(&Fs) + Send>;

/// A watched [`Adapter`].
pub(super) struct Watched {
    adapter: Adapter,
    later: Mutex<Sender<Later>>,
}

impl Watched {
    pub(super) fn new(adapter: Adapter) -> io::Result<Watched> {
        let (later, work) = channel::<Later>();
        let fs = adapter.fs.clone();
        let run = move || work.into_iter().for_each(|act| act(&fs));
        std::thread::Builder::new().name("kvfs-later".into()).spawn(run)?;
        Ok(Watched { adapter, later: Mutex::new(later) })
    }

    /// Does something when there's time for it.
    fn later(&self, act: impl FnOnce(&Fs) + Send + 'static) {
        // The thread ends with this.
        let _ = self.later.lock().send(Box::new(act));
    }
}

/// The same operations, each as `name(what it's about: its type, more arguments)`.
macro_rules! watched {
    ($($name:ident($about:ident: INodeNo $(, $arg:ident: $kind:ty)*);)*) => {
        $(fn $name(&self, req: &Request, $about: INodeNo $(, $arg: $kind)*) {
            let _watched = self.adapter.watch.begin(req.unique().0, node($about));
            self.adapter.$name(req, $about $(, $arg)*);
        })*
    };
}

impl Filesystem for Watched {
    fn init(&mut self, req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.adapter.init(req, config)
    }

    fn forget(&self, req: &Request, ino: INodeNo, lookups: u64) {
        if self.adapter.fs.is_out(node(ino)) {
            self.adapter.fs.counters.count(Op::Forget);
            self.later(move |fs| fs.forget(node(ino), lookups));
        } else {
            self.adapter.forget(req, ino, lookups);
        }
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.adapter.fs.is_out(node(ino)) {
            self.adapter.fs.counters.count(Op::Release);
            reply.ok();
            let direct = self.adapter.direct.clone();
            self.later(move |fs| {
                direct.released(fh.0);
                fs.release(fh.0);
            });
        } else {
            let _watched = self.adapter.watch.begin(req.unique().0, node(ino));
            self.adapter.release(req, ino, fh, flags, lock_owner, flush, reply);
        }
    }

    watched! {
        lookup(parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        getattr(ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr);
        setattr(
            ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
            atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, ctime: Option<SystemTime>, fh: Option<FileHandle>,
            crtime: Option<SystemTime>, chgtime: Option<SystemTime>, bkuptime: Option<SystemTime>,
            flags: Option<BsdFileFlags>, reply: ReplyAttr
        );
        readlink(ino: INodeNo, reply: ReplyData);
        mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry);
        mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
        unlink(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        rmdir(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        symlink(parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
        rename(
            parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr, flags: RenameFlags, reply: ReplyEmpty
        );
        link(ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry);
        open(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        create(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate);
        read(
            ino: INodeNo, fh: FileHandle, offset: u64, size: u32, flags: OpenFlags, lock_owner: Option<LockOwner>,
            reply: ReplyData
        );
        write(
            ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8], write_flags: WriteFlags, flags: OpenFlags,
            lock_owner: Option<LockOwner>, reply: ReplyWrite
        );
        flush(ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty);
        fsync(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        opendir(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        readdir(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory);
        readdirplus(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
        fsyncdir(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        statfs(ino: INodeNo, reply: ReplyStatfs);
        setxattr(ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty);
        getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
        listxattr(ino: INodeNo, size: u32, reply: ReplyXattr);
        removexattr(ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
        ioctl(
            ino: INodeNo, fh: FileHandle, flags: IoctlFlags, cmd: u32, in_data: &[u8], out_size: u32,
            reply: ReplyIoctl
        );
        poll(
            ino: INodeNo, fh: FileHandle, notifier: PollNotifier, events: PollEvents, flags: PollFlags,
            reply: ReplyPoll
        );
        fallocate(ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty);
        lseek(ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek);
        copy_file_range(
            ino: INodeNo, fh_in: FileHandle, offset_in: u64, ino_out: INodeNo, fh_out: FileHandle, offset_out: u64,
            len: u64, flags: CopyFileRangeFlags, reply: ReplyWrite
        );
    }
}
