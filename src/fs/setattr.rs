//! Changing attributes.
//!
//! What always holds: a file's attributes change on its backing; a directory's on every backing that has it.
//! Setuid and setgid bits go when the owner or the size changes (the daemon runs without CAP_FSETID, so the
//! backing sees to that).

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::creds::keeping_setgid;
use super::open::{NodeFd, truncate};
use super::{Attr, Error, Fs, NodeId, Result, Time, proc_path};
use crate::index::Node;

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// This one.
    To(Time),
    /// The time of the change.
    Now,
}

/// What is to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size, in bytes.
    pub size: Option<u64>,
    /// Whether the file was named by a descriptor of its own, and not by a path.
    pub is_open: bool,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
}

impl Fs {
    /// Whether [`Fs::setattr`] would have to wait for transfers to end.
    pub fn setattr_waits(&self, node: NodeId, set: &SetAttr) -> bool {
        set.size.is_some() && self.open.find(node).is_some_and(|open| open.gate.is_busy())
    }

    /// Changes attributes, and says what they are then.
    pub fn setattr(&self, node: NodeId, set: &SetAttr) -> Result<Attr> {
        match node.node() {
            Some(Node::File(slot, ino)) => {
                self.changeable(slot)?;
                if set.size.is_some() && !set.is_open {
                    self.is_meant(node)?;
                }
                let _using = self.still.using(node);
                self.moving.touch(node);
                if set.size == Some(0) {
                    self.hide_again(slot, ino, node)?;
                }
                let fd = self.node_fd(slot, ino)?;
                match (&fd, set.size) {
                    (NodeFd::Open(open), Some(_)) => open.gate.truncating(|| apply(fd.fd(), set)),
                    _ => apply(fd.fd(), set),
                }
                .map_err(Error::on(slot))?;
                let stat = super::attr::stat_fd(fd.fd()).map_err(Error::on(slot))?;
                if set.size.is_some() {
                    self.count_truncated(slot, ino, &stat);
                }
                Ok(Attr::new(node, &stat))
            }
            Some(Node::Dir(dir)) => {
                if set.size.is_some() {
                    return Err(Errno::ISDIR.into());
                }
                self.complete(dir);
                let slots = self.index.read().slots(dir).ok_or(Errno::STALE)?;
                self.all_changeable(slots)?;
                for slot in slots.iter() {
                    apply(&*self.dir_fd(slot, dir)?, set).map_err(Error::on(slot))?;
                }
                self.stat_dir(dir)
            }
            None if self.socket_attr(node).is_some() => Err(Errno::PERM.into()),
            None => Err(Errno::STALE.into()),
        }
    }
}

fn apply(fd: &OwnedFd, set: &SetAttr) -> std::result::Result<(), Errno> {
    if let Some(size) = set.size {
        truncate(fd, size)?;
    }
    if set.uid.is_some() || set.gid.is_some() {
        let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
        rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if let Some(mode) = set.mode {
        keeping_setgid(mode, || {
            rustix::fs::chmodat(CWD, proc_path(fd), Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
        })?;
    }
    if set.atime.is_some() || set.mtime.is_some() {
        let times = Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
        rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        Some(SetTime::To(Time { secs, nanos })) => Timespec { tv_sec: secs, tv_nsec: nanos.into() },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    }
}
