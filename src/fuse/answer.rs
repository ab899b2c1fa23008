//! Running a handler, and answering what it came to.
//!
//! What always holds: a request is counted once and answered once; a panic is one EIO. What finds no room
//! waits for it on a thread of its own, of which there are only so many.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fuser::{Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyCreate, ReplyEntry, Request};

use super::adapter::Adapter;
use super::convert::{errno, file_attr, generation, node};
use super::reply::ABSENT;
use super::timing;
use super::watch::is_too_late;
use crate::config::Xattrs;
use crate::fs::{self, Attr, Data, Fs, Op};
use crate::index::NodeId;
use crate::processors::anywhere;
use crate::shares::Share;
use crate::supervise::{asked_by, hand_over};

/// What the kernel is to do with an open file.
pub(super) fn flags_of(opened: &fs::Opened) -> FopenFlags {
    let flush = if opened.flush { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
    match opened.data {
        Data::Uncached | Data::Around => flush | FopenFlags::FOPEN_DIRECT_IO,
        Data::Kept => flush | FopenFlags::FOPEN_KEEP_CACHE,
        Data::Passthrough(_) | Data::Daemon => flush,
    }
}

/// Requests that may wait at a time, each on a thread.
pub(super) fn waiting() -> usize {
    #[cfg(feature = "fault-points")]
    if let Some(number) = std::env::var("KVFS_TEST_WAITING").ok().and_then(|n| n.parse().ok()) {
        return number;
    }
    512
}

/// Does something that may take long on a thread of its own. Where there can be none, what it was to answer is
/// answered with EIO, as it's dropped.
pub(super) fn later(name: &str, wait: Share, work: impl FnOnce() + Send + 'static) {
    let work = move || {
        anywhere();
        work();
        drop(wait);
    };
    if let Err(e) = std::thread::Builder::new().name(name.into()).spawn(work) {
        tracing::warn!("a request can't wait for its turn: {e}");
    }
}

impl Adapter {
    /// A request asks for this.
    fn count(&self, op: Op) {
        self.fs.counters.count(op);
        timing::asks_for(op);
    }

    /// A request has come. An error where it's one that daemons die over.
    pub(super) fn begin(&self, req: &Request, op: Op) -> Result<(), Errno> {
        self.count(op);
        self.fs.work.begin(req.unique().0, op as u32).map_err(|e| {
            tracing::error!("{}: {e}", op.name());
            Errno::EIO
        })?;
        asked_by(req.pid());
        Ok(())
    }

    /// Runs a request's handler.
    pub(super) fn run<T>(
        &self,
        req: &Request,
        op: Op,
        handler: impl FnOnce(&Fs) -> fs::Result<T>,
    ) -> Result<T, Errno> {
        self.begin(req, op)?;
        self.go_on(op, handler)
    }

    /// ENOSYS where there are no extended attributes: the kernel answers EOPNOTSUPP by itself from then on
    /// (fs/fuse/xattr.c).
    pub(super) fn has_xattrs(&self, op: Op) -> Result<(), Errno> {
        if self.xattrs == Xattrs::On {
            return Ok(());
        }
        self.count(op);
        Err(Errno::ENOSYS)
    }

    /// ESTALE where the file is a ghost to who asks: the kernel then looks the name up again.
    pub(super) fn not_a_ghost(&self, req: &Request, ino: INodeNo, op: Op) -> Result<(), Errno> {
        if !self.fs.is_ghost(node(ino), req.pid()) {
            return Ok(());
        }
        self.count(op);
        Err(Errno::ESTALE)
    }

    /// Runs the handler of a request about a file, unless that's a ghost.
    pub(super) fn run_on<T>(
        &self,
        req: &Request,
        ino: INodeNo,
        op: Op,
        handler: impl FnOnce(&Fs) -> fs::Result<T>,
    ) -> Result<T, Errno> {
        self.not_a_ghost(req, ino, op)?;
        self.run(req, op, handler)
    }

    /// Runs a handler for the request at work.
    pub(super) fn go_on<T>(&self, op: Op, handler: impl FnOnce(&Fs) -> fs::Result<T>) -> Result<T, Errno> {
        let _inside = self.fs.work.door.work();
        let result = catch_unwind(AssertUnwindSafe(|| handler(&self.fs)));
        self.fs.work.served();
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => {
                if let Some(slot) = e.slot() {
                    self.fs.noticed(slot, e.errno());
                }
                match e.level() {
                    tracing::Level::WARN => tracing::warn!("{}: {e}", op.name()),
                    tracing::Level::INFO => tracing::info!("{}: {e}", op.name()),
                    _ => tracing::debug!("{}: {e}", op.name()),
                }
                Err(errno(e))
            }
            // The panic hook has written its line.
            Err(_) => {
                self.fs.counters.count_panic();
                Err(Errno::EIO)
            }
        }
    }

    /// Runs a handler that can't fail, or answers by itself.
    pub(super) fn run_infallible(
        &self,
        req: &Request,
        op: Op,
        handler: impl FnOnce(&Fs),
    ) -> Result<(), Errno> {
        self.run(req, op, |fs| {
            handler(fs);
            Ok(())
        })
    }

    /// Looks for something and answers: at once, or when it's clear whether these files are closed. An error comes
    /// with whether it's final.
    pub(super) fn once_closed<T, R: Send + 'static>(
        &self,
        req: &Request,
        (op, node): (Op, NodeId),
        closing: Vec<NodeId>,
        reply: R,
        look: impl FnOnce(&Fs) -> Result<T, (fs::Error, bool)> + Send + 'static,
        answer: impl FnOnce(&Adapter, R, Result<T, (Errno, bool)>) + Send + 'static,
    ) {
        let looked = move |adapter: &Adapter| {
            let mut is_final = true;
            let found = adapter.go_on(op, |fs| look(fs).map_err(|(e, last)| (is_final = last, e).1));
            found.map_err(|e| (e, is_final))
        };
        if let Err(e) = self.begin(req, op) {
            return answer(self, reply, Err((e, false)));
        }
        // Not on a thread that answers the kernel. Who has too many that wait is answered as it is now.
        let wait = if closing.is_empty() { None } else { self.waiting.take(req.uid()) };
        let Some(wait) = wait else {
            let found = looked(self);
            return answer(self, reply, found);
        };
        let (adapter, request, timed) = (self.clone(), hand_over(), timing::hand_on(op));
        let handed = self.watch.hand_over(req.unique().0, node);
        let when_closed = move || {
            request.resume();
            adapter.fs.wait_until_closed(&closing);
            let found = looked(&adapter);
            handed.answer(|| answer(&adapter, reply, found));
            timed.answered(&adapter.fs, node);
        };
        later("kvfs-closing", wait, when_closed);
    }

    /// Answers a lookup.
    pub(super) fn found(&self, reply: ReplyEntry, found: Result<Attr, (Errno, bool)>) {
        match found {
            Ok(attr) if attr.is_ghost() => {
                reply.entry(&Duration::ZERO, &file_attr(&attr), generation(&attr));
            }
            Err((e, false)) => reply.error(e),
            found => self.entry(reply, found.map_err(|(e, _)| e)),
        }
    }

    /// Makes something new and answers: at once, or when there is room for it.
    pub(super) fn make<T, R: Send + 'static>(
        &self,
        req: &Request,
        (op, dir, user): (Op, NodeId, u32),
        reply: R,
        make: impl Fn(&Fs) -> fs::Result<T> + Send + 'static,
        answer: impl FnOnce(&Adapter, R, Result<T, Errno>) + Send + 'static,
    ) {
        let made = self.run(req, op, |fs| match make(fs) {
            // Room may be made: not on a thread that answers the kernel.
            Err(e) if e.is_full() && fs.room_may_come() => match self.waiting.take(user) {
                Some(wait) => Ok(Err(wait)),
                None => Err(e),
            },
            made => made.map(Ok),
        });
        match made {
            Ok(Ok(made)) => answer(self, reply, Ok(made)),
            Err(e) => answer(self, reply, Err(e)),
            Ok(Err(wait)) => {
                let (adapter, request, timed) = (self.clone(), hand_over(), timing::hand_on(op));
                later("kvfs-room", wait, move || {
                    request.resume();
                    let made = adapter.go_on(op, |fs| fs.when_there_is_room(dir, || make(fs)));
                    answer(&adapter, reply, made);
                    timed.answered(&adapter.fs, dir);
                });
            }
        }
    }

    /// Answers a create.
    pub(super) fn created(&self, reply: ReplyCreate, created: Result<(Attr, fs::Opened), Errno>) {
        match created {
            // Nobody would close it.
            Ok((_, opened)) if is_too_late() => self.fs.release(opened.fh),
            Ok((attr, opened)) => {
                let (fh, file, generation) = (FileHandle(opened.fh), file_attr(&attr), generation(&attr));
                let (ttl, name_ttl) = (self.fs.ttl(attr.node), self.fs.name_ttl(attr.node));
                match opened.data {
                    Data::Passthrough(id) => {
                        self.fs.counters.count_passthrough();
                        // SAFETY: registered with this session, and open until the inode's last release.
                        let id = unsafe { reply.wrap_backing(id) };
                        reply.created_passthrough(
                            &ttl,
                            &name_ttl,
                            &file,
                            generation,
                            fh,
                            flags_of(&opened),
                            &id,
                        );
                        let _ = id.into_raw();
                    }
                    _ => {
                        self.fs.counters.count_by_daemon();
                        reply.created(&ttl, &name_ttl, &file, generation, fh, flags_of(&opened));
                    }
                }
            }
            Err(e) => reply.error(e),
        }
    }

    /// Answers with a name.
    pub(super) fn entry(&self, reply: ReplyEntry, entry: Result<Attr, Errno>) {
        match entry {
            Ok(attr) => {
                let (ttl, name_ttl) = (self.fs.ttl(attr.node), self.fs.name_ttl(attr.node));
                reply.entry_with_ttls(&ttl, &name_ttl, &file_attr(&attr), generation(&attr));
            }
            // A node of 0 with a time to live is a miss that the kernel may remember.
            Err(e) if e.code() == libc::ENOENT && self.fs.keeps_misses() => {
                reply.entry(&self.fs.ttl(NodeId(0)), &ABSENT, Generation(0));
            }
            Err(e) => reply.error(e),
        }
    }
}
