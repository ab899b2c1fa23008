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
use super::timing;
use super::traced::{begin, start};
use crate::fs::{Fs, Op};

type Later = Box<dyn FnOnce(&Fs) + Send>;

/// A watched [`Adapter`].
pub(super) struct Watched {
    adapter: Adapter,
    later: Mutex<Sender<Later>>,
}

impl Watched {
    pub(super) fn new(adapter: Adapter) -> io::Result<Watched> {
        start();
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

    /// The request was answered, or handed on as a whole.
    fn answered(&self, about: INodeNo) {
        self.adapter.fs.work.answered();
        timing::answered(&self.adapter.fs, node(about));
    }

    /// It's answered later, by whoever moves its data.
    fn under_way(&self, about: INodeNo) {
        // Unless it couldn't even be begun.
        timing::answered(&self.adapter.fs, node(about));
    }
}

/// What a request is about, beside a node, as the names of its arguments.
macro_rules! names {
    () => {
        (None, None)
    };
    ($name:ident) => {
        (Some($name), None)
    };
    ($name:ident to $dir:ident / $new:ident) => {
        (Some($name), Some(($dir, $new)))
    };
    (to $dir:ident / $new:ident) => {
        (None, Some(($dir, $new)))
    };
}

/// The same operations, each as `name[of what in it](what it's about: its type, more arguments)`; `then` is what is so
/// when they return.
macro_rules! watched {
    ($then:ident: $($name:ident $([$($names:tt)*])? ($about:ident: INodeNo $(, $arg:ident: $kind:ty)*);)*) => {
        $(fn $name(&self, req: &Request, $about: INodeNo $(, $arg: $kind)*) {
            begin(&self.adapter, req, stringify!($name), $about, names!($($($names)*)?));
            let _watched = self.adapter.watch.begin(req.unique().0, node($about));
            self.adapter.$name(req, $about $(, $arg)*);
            self.$then($about);
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
            self.answered(ino);
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
            begin(&self.adapter, req, "release", ino, (None, None));
            let _watched = self.adapter.watch.begin(req.unique().0, node(ino));
            self.adapter.release(req, ino, fh, flags, lock_owner, flush, reply);
            self.answered(ino);
        }
    }

    watched! { answered:
        lookup[name](parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        getattr(ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr);
        setattr(
            ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
            atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, ctime: Option<SystemTime>, fh: Option<FileHandle>,
            crtime: Option<SystemTime>, chgtime: Option<SystemTime>, bkuptime: Option<SystemTime>,
            flags: Option<BsdFileFlags>, reply: ReplyAttr
        );
        readlink(ino: INodeNo, reply: ReplyData);
        mknod[name](parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry);
        mkdir[name](parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
        unlink[name](parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        rmdir[name](parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        symlink[name](parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
        rename[name to newparent/newname](
            parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr, flags: RenameFlags, reply: ReplyEmpty
        );
        link[to newparent/newname](ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry);
        open(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        create[name](parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate);
        flush(ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty);
        fsync(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        opendir(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        releasedir(ino: INodeNo, fh: FileHandle, flags: OpenFlags, reply: ReplyEmpty);
        readdir(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory);
        readdirplus(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
        fsyncdir(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        statfs(ino: INodeNo, reply: ReplyStatfs);
        setxattr(ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty);
        getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
        listxattr(ino: INodeNo, size: u32, reply: ReplyXattr);
        removexattr(ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
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
    watched! { under_way:
        read(
            ino: INodeNo, fh: FileHandle, offset: u64, size: u32, flags: OpenFlags, lock_owner: Option<LockOwner>,
            reply: ReplyData
        );
        write(
            ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8], write_flags: WriteFlags, flags: OpenFlags,
            lock_owner: Option<LockOwner>, reply: ReplyWrite
        );
        ioctl(
            ino: INodeNo, fh: FileHandle, flags: IoctlFlags, cmd: u32, in_data: &[u8], out_size: u32,
            reply: ReplyIoctl
        );
    }
}
