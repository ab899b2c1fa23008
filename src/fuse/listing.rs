//! Answers to who lists a directory.
//!
//! What always holds: a listing that the kernel mustn't take for whole ends in a way that it doesn't keep
//! (`fs::listings` says which).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{Errno, FileHandle, FopenFlags, ReplyDirectory, ReplyDirectoryPlus, ReplyOpen, Request};

use super::adapter::Adapter;
use super::convert::{file_attr, file_type, generation, ino};
use super::watch::is_too_late;
use crate::fs::{Fs, Op, OpenDir};
use crate::index::NodeId;

/// What the kernel is to do with an open directory.
fn flags_of(opened: OpenDir) -> FopenFlags {
    match opened {
        OpenDir::Uncached => FopenFlags::empty(),
        OpenDir::Beside => FopenFlags::FOPEN_KEEP_CACHE,
        OpenDir::Kept => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        OpenDir::Dropped => FopenFlags::FOPEN_CACHE_DIR,
    }
}

impl Adapter {
    /// Opens a directory, once it's clear which files are closed.
    pub(super) fn open_dir(&self, req: &Request, dir: NodeId, reply: ReplyOpen) {
        let open = move |fs: &Fs| fs.opendir(dir).map_err(|e| (e, true));
        let answer =
            move |adapter: &Adapter, reply: ReplyOpen, opened: Result<Option<OpenDir>, (Errno, bool)>| {
                match opened {
                    // Nobody would close it.
                    Ok(Some(opened)) if is_too_late() => adapter.fs.releasedir(dir, opened.code()),
                    Ok(Some(opened)) => reply.opened(FileHandle(opened.code()), flags_of(opened)),
                    // Listing needs no handle: the kernel needn't ask again.
                    Ok(None) => reply.error(Errno::ENOSYS),
                    Err((e, _)) => reply.error(e),
                }
            };
        self.once_closed(req, (Op::Opendir, dir), self.fs.closing(), reply, open, answer);
    }

    /// Lists a directory by a handle with this code.
    pub(super) fn list(&self, req: &Request, dir: (NodeId, u64), offset: u64, mut reply: ReplyDirectory) {
        let mut any = false;
        let listed = self.run(req, Op::Readdir, |fs| {
            fs.readdir_for(req.pid(), dir, offset, |e| {
                let full = reply.add(ino(e.node), e.next, file_type(e.kind), OsStr::from_bytes(e.name));
                any |= !full;
                full
            })
        });
        match listed {
            Ok(whole) if any || whole => reply.ok(),
            Ok(_) => reply.end_unkept(),
            Err(e) => reply.error(e),
        }
    }

    /// The same with attributes.
    pub(super) fn list_plus(
        &self,
        req: &Request,
        dir: (NodeId, u64),
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut any = false;
        let listed = self.run(req, Op::Readdirplus, |fs| {
            fs.readdirplus_for(req.pid(), dir, offset, |e| {
                // What isn't known is asked for when it's needed.
                let ttl = if e.known { fs.name_ttl(e.attr.node) } else { Duration::ZERO };
                let (name, attr) = (OsStr::from_bytes(&e.name), file_attr(&e.attr));
                let full = reply.add(ino(e.attr.node), e.next, name, &ttl, &attr, generation(&e.attr));
                any |= !full;
                full
            })
        });
        match listed {
            Ok(whole) if any || whole => reply.ok(),
            Ok(_) => reply.end_unkept(),
            Err(e) => reply.error(e),
        }
    }
}
