//! The thin adapter: decodes a request, asks `fs`, replies.
//!
//! What always holds: no decision is made here; every request is counted and answered once; a panic of its
//! handler is one EIO, one line in the log and one count, and the session goes on.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, RequestBuffer, TimeOrNow, WriteFlags,
};

use super::answer::{flags_of, later};
use super::convert::{caller, node, set_time};
use super::handshake::NOBODY;
use super::reply::{attr, empty, io_errno, ioctl, xattr};
use super::start::Start;
use super::timing::{self, slot_of};
use super::wanted::Wanted;
use super::watch::{Watch, is_too_late};
use crate::config::Xattrs;
use crate::direct::{Direct, Reply, Target, looks_names_up};
use crate::fs::{Data, Fs, Op, RenameMode, SetAttr, Whence};
use crate::io::Payload;
use crate::metrics::Mover;
use crate::shares::Shares;
use crate::supervise::hand_over;

/// fuser's view of a [`Fs`] and of its fast path.
#[derive(Clone)]
pub(super) struct Adapter {
    pub(super) fs: Arc<Fs>,
    pub(super) direct: Arc<Direct>,
    pub(super) wanted: Wanted,
    pub(super) xattrs: Xattrs,
    pub(super) start: Arc<Start>,
    /// Requests that wait on threads of their own.
    pub(super) waiting: Arc<Shares>,
    pub(super) watch: Arc<Watch>,
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.wanted.negotiate(config) {
            self.fs.set_maps_around();
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == NOBODY {
            // To the socket that it came from: the next request comes from the device.
            reply.error(Errno::ENOENT);
            return self.start.arrive(name.as_bytes());
        }
        let (tid, parent, name) = (req.pid(), node(parent), name.as_bytes().to_vec());
        let closing = self.fs.closing_name(parent, &name);
        let look =
            move |fs: &Fs| fs.lookup_for(tid, parent, &name).map_err(|e| (e, fs.is_final(parent, &name)));
        self.once_closed(req, (Op::Lookup, parent), closing, reply, look, Adapter::found);
    }

    fn forget(&self, req: &Request, ino: INodeNo, times: u64) {
        let _ = self.run_infallible(req, Op::Forget, |fs| fs.forget(node(ino), times));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(reply, &self.fs, self.run_on(req, ino, Op::Getattr, |fs| fs.getattr(node(ino))));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Err(e) = self.not_a_ghost(req, ino, Op::Setattr) {
            return reply.error(e);
        }
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let set = SetAttr { mode, uid, gid, size, is_open: fh.is_some(), atime, mtime };
        if self.fs.setattr_waits(node(ino), &set) {
            if let Err(e) = self.begin(req, Op::Setattr) {
                return reply.error(e);
            }
            // A truncation, behind transfers that may take long: not on a thread that answers the kernel.
            let (adapter, request, timed) = (self.clone(), hand_over(), timing::hand_on(Op::Setattr));
            let Some(wait) = self.waiting.take(req.uid()) else { return reply.error(Errno::EAGAIN) };
            let handed = self.watch.hand_over(req.unique().0, node(ino));
            let truncate = move || {
                request.resume();
                let result = adapter.go_on(Op::Setattr, |fs| fs.setattr(node(ino), &set));
                handed.answer(|| attr(reply, &adapter.fs, result));
                timed.answered(&adapter.fs, node(ino));
            };
            return later("kvfs-truncate", wait, truncate);
        }
        attr(reply, &self.fs, self.run(req, Op::Setattr, |fs| fs.setattr(node(ino), &set)));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.run(req, Op::Readlink, |fs| fs.readlink(node(ino))) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made =
            self.run(req, Op::Mknod, |fs| fs.mknod(&caller(req), node(parent), name.as_bytes(), mode, rdev));
        self.entry(reply, made);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (caller, parent, name) = (caller(req), node(parent), name.as_bytes().to_vec());
        self.make(
            req,
            (Op::Mkdir, parent, caller.uid),
            reply,
            move |fs| fs.mkdir(&caller, parent, &name, mode),
            Adapter::entry,
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.run(req, Op::Unlink, |fs| fs.unlink(node(parent), name.as_bytes())));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.run(req, Op::Rmdir, |fs| fs.rmdir(node(parent), name.as_bytes())));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let made =
            self.run(req, Op::Symlink, |fs| fs.symlink(&caller(req), node(parent), name.as_bytes(), target));
        self.entry(reply, made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (from, to) = (name.as_bytes(), newname.as_bytes());
        empty(
            reply,
            self.run(req, Op::Rename, |fs| fs.rename(node(parent), from, node(newparent), to, mode)),
        );
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.entry(
            reply,
            self.run_on(req, ino, Op::Link, |fs| fs.link(node(ino), node(newparent), newname.as_bytes())),
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.run_on(req, ino, Op::Open, |fs| fs.open_for(&caller(req), node(ino), flags.0)) {
            // Nobody would close it.
            Ok(opened) if is_too_late() => self.fs.release(opened.fh),
            Ok(opened) => {
                self.fs.opened_to_write(req.pid(), node(ino), flags.0);
                let fh = FileHandle(opened.fh);
                match opened.data {
                    Data::Passthrough(id) => {
                        self.fs.counters.count_passthrough();
                        // SAFETY: registered with this session, and open until the inode's last release.
                        let id = unsafe { reply.wrap_backing(id) };
                        reply.opened_passthrough(fh, flags_of(&opened), &id);
                        let _ = id.into_raw();
                    }
                    _ => {
                        self.fs.counters.count_by_daemon();
                        reply.opened(fh, flags_of(&opened));
                    }
                }
            }
            Err(e) => reply.error(e),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, parent, name) = (caller(req), node(parent), name.as_bytes().to_vec());
        let create = move |fs: &Fs| fs.create(&caller, parent, &name, mode, flags);
        self.make(req, (Op::Create, parent, caller.uid), reply, create, Adapter::created);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fs, handed) = (self.fs.clone(), self.watch.hand_over(req.unique().0, node(ino)));
        let (timed, slot) = (timing::hand_on(Op::Read), slot_of(node(ino)));
        let done = Box::new(move |result: io::Result<&[u8]>| {
            if let (Ok(data), Some(slot)) = (&result, slot) {
                fs.metrics.read(Mover::Daemon, slot, data.len() as u64);
            }
            handed.answer(|| match result {
                Ok(data) => reply.data(data),
                Err(e) => reply.error(io_errno(Op::Read, &fs, node(ino), &e)),
            });
            timed.answered_at(&fs, slot);
        });
        let _ = self.run_infallible(req, Op::Read, |fs| fs.read(fh.0, offset, size, done));
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (fs, handed) = (self.fs.clone(), self.watch.hand_over(req.unique().0, node(ino)));
        let (timed, slot) = (timing::hand_on(Op::Write), slot_of(node(ino)));
        let done = Box::new(move |result: io::Result<usize>| {
            if let (Ok(written), Some(slot)) = (&result, slot) {
                fs.metrics.written(Mover::Daemon, slot, *written as u64);
            }
            handed.answer(|| match result {
                Ok(written) => {
                    // The client was told that it failed.
                    if is_too_late() {
                        fs.written_late(node(ino));
                    }
                    reply.written(written as u32);
                }
                Err(e) => reply.error(io_errno(Op::Write, &fs, node(ino), &e)),
            });
            timed.answered_at(&fs, slot);
        });
        let data = Payload::kept(data, || Some(RequestBuffer::current()?));
        let _ = self.run_infallible(req, Op::Write, |fs| {
            if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                fs.write_back(fh.0, offset, data, done);
            } else {
                fs.write(fh.0, offset, data, done);
            }
        });
    }

    fn flush(&self, req: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        if !self.fs.hides_until_closed() {
            // Nothing is held back: the kernel needn't ask again.
            return reply.error(Errno::ENOSYS);
        }
        empty(reply, self.run(req, Op::Flush, |fs| fs.flush(fh.0, req.pid())));
    }

    fn release(
        &self,
        req: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        empty(
            reply,
            self.run_infallible(req, Op::Release, |fs| {
                self.direct.released(fh.0);
                fs.release(fh.0);
            }),
        );
    }

    fn fsync(&self, req: &Request, _: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.run(req, Op::Fsync, |fs| fs.fsync(fh.0, datasync)));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.open_dir(req, node(ino), reply);
    }

    fn readdir(&self, req: &Request, dir: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.list(req, (node(dir), fh.0), offset, reply);
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        empty(reply, self.run_infallible(req, Op::Releasedir, |fs| fs.releasedir(node(ino), fh.0)));
    }

    fn readdirplus(
        &self,
        req: &Request,
        dir: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.list_plus(req, (node(dir), fh.0), offset, reply);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.run(req, Op::Fsyncdir, |fs| fs.fsyncdir(node(ino))));
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.run(req, Op::Statfs, |fs| Ok(fs.statfs(node(ino)))) {
            Ok(s) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, 255, s.bsize),
            Err(e) => reply.error(e),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        if let Err(e) = self.has_xattrs(Op::Setxattr) {
            return reply.error(e);
        }
        let name = name.as_bytes();
        let set = self
            .run_on(req, ino, Op::Setxattr, |fs| fs.setxattr(&caller(req), node(ino), name, value, flags));
        empty(reply, set);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if let Err(e) = self.has_xattrs(Op::Getxattr) {
            return reply.error(e);
        }
        xattr(reply, size, self.run_on(req, ino, Op::Getxattr, |fs| fs.getxattr(node(ino), name.as_bytes())));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if let Err(e) = self.has_xattrs(Op::Listxattr) {
            return reply.error(e);
        }
        xattr(reply, size, self.run_on(req, ino, Op::Listxattr, |fs| fs.listxattr(&caller(req), node(ino))));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if let Err(e) = self.has_xattrs(Op::Removexattr) {
            return reply.error(e);
        }
        let name = name.as_bytes();
        empty(
            reply,
            self.run_on(req, ino, Op::Removexattr, |fs| fs.removexattr(&caller(req), node(ino), name)),
        );
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        data: &[u8],
        out: u32,
        reply: ReplyIoctl,
    ) {
        // What handle a directory is open by, if any, says nothing of it.
        let is_dir = flags.contains(IoctlFlags::FUSE_IOCTL_DIR);
        let target = if is_dir { Target::Dir(node(ino)) } else { Target::File(fh.0) };
        let closing = if looks_names_up(cmd) { self.fs.closing() } else { Vec::new() };
        if !closing.is_empty()
            && let Some(wait) = self.waiting.take(req.uid())
        {
            // As a lookup does, not on a thread that answers the kernel.
            if let Err(e) = self.begin(req, Op::Ioctl) {
                return reply.error(e);
            }
            let (adapter, request, caller, data) = (self.clone(), hand_over(), caller(req), data.to_vec());
            let handed = self.watch.hand_over(req.unique().0, node(ino));
            let (fs, timed) = (self.fs.clone(), timing::hand_on(Op::Ioctl));
            let look = move || {
                request.resume();
                adapter.fs.wait_until_closed(&closing);
                let _ = adapter.go_on(Op::Ioctl, |_| {
                    let answer = Box::new(move |answer: Reply| {
                        handed.answer(|| ioctl(reply, &answer));
                        timed.answered_at(&fs, slot_of(node(ino)));
                    });
                    adapter.direct.ioctl(caller, target, cmd, &data, out, answer);
                    Ok(())
                });
            };
            return later("kvfs-closing", wait, look);
        }
        let (fs, timed) = (self.fs.clone(), timing::hand_on(Op::Ioctl));
        let answer = Box::new(move |answer: Reply| {
            ioctl(reply, &answer);
            timed.answered_at(&fs, slot_of(node(ino)));
        });
        let _ = self.run_infallible(req, Op::Ioctl, |_| {
            self.direct.ioctl(caller(req), target, cmd, data, out, answer)
        });
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // A file is always ready: the kernel needn't ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.run(req, Op::Fallocate, |fs| fs.fallocate(fh.0, offset, length, mode)));
    }

    fn lseek(&self, req: &Request, _: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.run(req, Op::Lseek, |fs| fs.lseek(fh.0, offset, whence)) {
            Ok(offset) => reply.offset(offset as i64),
            Err(e) => reply.error(e),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copy = |fs: &Fs| fs.copy_file_range((fh_in.0, offset_in), (fh_out.0, offset_out), len);
        match self.run(req, Op::CopyFileRange, copy) {
            Ok(copied) => reply.written(copied as u32),
            Err(e) => reply.error(e),
        }
    }
}
