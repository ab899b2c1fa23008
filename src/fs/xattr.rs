//! Extended attributes: the clients' own are the backing file's; `user.kvfs.*` are kvfs's answers.
//!
//! What always holds: `user.kvfs.*` can be read, not written, and is not listed (a copy of a file would
//! otherwise fail on them). The rules of directories (`rules`) are the exception: they are stored, set and
//! listed like clients' own. ACLs are refused: the mount's permission checks don't know them, and an ACL that is
//! stored and not obeyed would be worse than none.

use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::fault::crash_point;
use super::rules::is_rule;
use super::{Caller, Error, Fs, NodeId, Result, proc_path};
use crate::index::{DirId, Node, Slot};
use crate::supervise::{Intent, was_intended};

/// kvfs's own attributes.
const OURS: &[u8] = b"user.kvfs.";
/// Largest value and list (include/uapi/linux/limits.h: XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX: usize = 65536;

impl Fs {
    /// An attribute's value.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        if self.socket_attr(node).is_some() {
            return Err(Errno::NODATA.into());
        }
        if rule_of(node, name).is_none() {
            if let Some(name) = name.strip_prefix(OURS) {
                return self.our_xattr(node, name);
            }
            check(name)?;
        }
        // The kernel's question before the first write to a new file: its creator's descriptor needs no path.
        if let Some(Node::File(slot, _)) = node.node()
            && let Some(open) = self.open.find(node)
            && let Some(fd) = open.real()
        {
            self.reach(slot)?;
            let _using = self.still.using(node);
            return get(|buffer| rustix::fs::fgetxattr(fd, name, buffer)).map_err(Error::on(slot));
        }
        self.with_path(node, false, |path| get_path(path, name))
    }

    /// The names of all attributes, each ended by a zero byte.
    pub fn listxattr(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>> {
        if self.socket_attr(node).is_some() {
            return Ok(Vec::new());
        }
        let names = self.with_path(node, false, list_path)?;
        let ours = |name: &[u8]| name.starts_with(OURS) && rule_of(node, name).is_none();
        // Those of administrators a file system shows to them alone; we are one, the caller may not be.
        let hidden = |name: &[u8]| caller.uid != 0 && name.starts_with(b"trusted.");
        let shown = names.iter().filter(|name| !ours(name) && !hidden(name) && check(name).is_ok());
        Ok(shown.flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    /// Sets an attribute; `flags` as of setxattr(2).
    pub fn setxattr(
        &self,
        caller: &Caller,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        if let Some(dir) = rule_of(node, name) {
            return self.set_rule(caller, dir, name, Some(value), flags);
        }
        check_ours(name)?;
        let mut flags = XattrFlags::from_bits_retain(flags as u32);
        if was_intended() {
            // It may have been set, by a daemon that died after it had looked whether it was there.
            flags = XattrFlags::empty();
        } else if !flags.is_empty() && self.work.is_kept() {
            match (self.with_path(node, false, |path| get_path(path, name)), flags) {
                (Ok(_), XattrFlags::CREATE) => return Err(Errno::EXIST.into()),
                (Err(e), XattrFlags::REPLACE) => return Err(e),
                _ => self.work.intend(|| Intent::Attribute),
            }
        }
        crash_point("setxattr before", name);
        self.on_each(node, |path| rustix::fs::setxattr(path, name, value, flags))
    }

    /// Removes an attribute.
    pub fn removexattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<()> {
        if let Some(dir) = rule_of(node, name) {
            return self.set_rule(caller, dir, name, None, 0);
        }
        check_ours(name)?;
        let again = was_intended();
        if self.work.is_kept() && !again {
            self.with_path(node, false, |path| get_path(path, name))?;
            self.work.intend(|| Intent::Attribute);
        }
        self.on_each(node, |path| match rustix::fs::removexattr(path, name) {
            Err(Errno::NODATA) if again => Ok(()),
            result => result,
        })
    }

    /// Where a file is and why: `user.kvfs.backing`, `.path`, `.placement`, and a directory's `.backings`.
    fn our_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        match node.node() {
            Some(Node::File(slot, ino)) => {
                let (dir, file_name, file) = self.place_of(slot, ino)?;
                let backing = self.backing(slot)?;
                let path = self.index.read().path_of(dir, &file_name);
                match name {
                    b"backing" => Ok(backing.path.as_os_str().as_bytes().to_vec()),
                    b"slot" => Ok(slot.0.to_string().into_bytes()),
                    b"path" => Ok(join(backing.path.as_os_str().as_bytes(), &path)),
                    b"placement" => Ok(self.placement_of(node, file.reason, dir, &path).into_bytes()),
                    _ => Err(Errno::NODATA.into()),
                }
            }
            Some(Node::Dir(dir)) if name == b"backings" => {
                let slots = self.index.read().slots(dir).ok_or(Errno::STALE)?;
                let path = |slot| Some(self.backing(slot).ok()?.path.as_os_str().as_bytes().to_vec());
                Ok(slots.iter().filter_map(path).collect::<Vec<_>>().join(&b'\n'))
            }
            _ => Err(Errno::NODATA.into()),
        }
    }

    /// Does something with the node by a path; for a directory on its first backing.
    fn with_path<T>(
        &self,
        node: NodeId,
        changes: bool,
        act: impl Fn(&str) -> std::result::Result<T, Errno>,
    ) -> Result<T> {
        let (slot, fd) = match node.node() {
            Some(Node::File(slot, ino)) => {
                self.reach(slot)?;
                let _using = self.still.using(node);
                if changes {
                    self.changeable(slot)?;
                    self.moving.touch(node);
                }
                let fd = self.node_fd(slot, ino)?;
                return act(&proc_path(fd.fd())).map_err(Error::on(slot));
            }
            Some(Node::Dir(dir)) => self.first_dir(dir)?,
            None => return Err(Errno::STALE.into()),
        };
        act(&proc_path(&fd)).map_err(Error::on(slot))
    }

    /// The same; for a directory on each of its backings.
    pub(super) fn on_each(
        &self,
        node: NodeId,
        act: impl Fn(&str) -> std::result::Result<(), Errno>,
    ) -> Result<()> {
        let Some(Node::Dir(dir)) = node.node() else { return self.with_path(node, true, act) };
        self.complete(dir);
        let slots = self.index.read().slots(dir).ok_or(Errno::STALE)?;
        self.all_changeable(slots)?;
        for slot in slots.iter() {
            act(&proc_path(&*self.dir_fd(slot, dir)?)).map_err(Error::on(slot))?;
        }
        Ok(())
    }

    fn first_dir(&self, dir: DirId) -> Result<(Slot, super::DirFd)> {
        let slots = self.index.read().slots(dir).ok_or(Errno::STALE)?;
        let mut failed = Error::from(Errno::STALE);
        for slot in slots.iter() {
            match self.dir_fd(slot, dir) {
                Ok(fd) => return Ok((slot, fd)),
                Err(e) => failed = e,
            }
        }
        Err(failed)
    }
}

/// The directory, if the attribute is a rule of one.
fn rule_of(node: NodeId, name: &[u8]) -> Option<DirId> {
    match node.node() {
        Some(Node::Dir(dir)) if is_rule(name) => Some(dir),
        _ => None,
    }
}

fn join(base: &[u8], path: &[u8]) -> Vec<u8> {
    [base, path].join(&b'/')
}

/// Refuses what the mount doesn't carry: ACLs, and a file system's own attributes (`system.`, `btrfs.`, `ceph.`), on
/// which it checks who sets them by itself, and would find the daemon.
fn check(name: &[u8]) -> Result<()> {
    const CARRIED: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    if CARRIED.iter().any(|space| name.starts_with(space)) { Ok(()) } else { Err(Errno::OPNOTSUPP.into()) }
}

fn check_ours(name: &[u8]) -> Result<()> {
    if name.starts_with(OURS) { Err(Errno::PERM.into()) } else { check(name) }
}

/// A value, by the path of a descriptor.
pub(super) fn get_path(path: &str, name: &[u8]) -> std::result::Result<Vec<u8>, Errno> {
    get(|buffer| rustix::fs::getxattr(path, name, buffer))
}

/// A value, however it's read: most are short.
fn get(
    read: impl Fn(rustix::buffer::SpareCapacity<'_, u8>) -> std::result::Result<usize, Errno>,
) -> std::result::Result<Vec<u8>, Errno> {
    let mut value = Vec::with_capacity(256);
    match read(rustix::buffer::spare_capacity(&mut value)) {
        Err(Errno::RANGE) => {
            value.reserve(MAX);
            read(rustix::buffer::spare_capacity(&mut value))?;
        }
        result => drop(result?),
    }
    Ok(value)
}

/// All names, by the path of a descriptor.
pub(super) fn list_path(path: &str) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::with_capacity(1024);
    match rustix::fs::listxattr(path, rustix::buffer::spare_capacity(&mut names)) {
        Err(Errno::RANGE) => {
            names.reserve(MAX);
            rustix::fs::listxattr(path, rustix::buffer::spare_capacity(&mut names))?;
        }
        result => drop(result?),
    }
    Ok(names.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}
