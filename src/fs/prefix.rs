//! How many of a list of names exist, before the first that doesn't.
//!
//! An inference engine that looks for the cached beginning of a prompt has the names of its chunks in order,
//! and no use for one behind a gap. What always holds: a caller learns of no name in a directory that it
//! may not search; nothing is asked of the backings but for the first name that the index doesn't have.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Attr, Caller, Error, Fs, NodeId, Result};
use crate::index::{DirId, FileRef, Kind, What};

/// A file that was found, by its place.
pub(crate) struct Found {
    dir: DirId,
    name: Vec<u8>,
    file: FileRef,
}

/// Who asks, as far as permissions need it.
struct Asking<'a> {
    caller: &'a Caller,
    /// Supplementary groups, read when they matter.
    groups: Option<Vec<u32>>,
    /// Directories that may be searched.
    searched: Vec<DirId>,
}

impl Fs {
    /// How many of the names, paths relative to the directory `node`, exist before the first that doesn't; and
    /// the regular files among them. `EACCES` if the directory itself may not be searched.
    pub(crate) fn prefix(
        &self,
        caller: &Caller,
        node: NodeId,
        names: &[&[u8]],
    ) -> Result<(usize, Vec<Found>)> {
        let start = self.dir_of(node)?;
        let mut asking = Asking { caller, groups: None, searched: Vec::new() };
        self.may_search(&mut asking, start)?;
        let mut files = Vec::new();
        for (at, name) in names.iter().enumerate() {
            match self.find_path(&mut asking, start, name) {
                Ok(Some(found)) => files.push(found),
                Ok(None) => {}
                Err(e) => {
                    tracing::trace!("prefix ends before {}: {e}", String::from_utf8_lossy(name));
                    return Ok((at, files));
                }
            }
        }
        Ok((names.len(), files))
    }

    /// The file at the end of a path; `None` if it's something else.
    fn find_path(&self, asking: &mut Asking<'_>, start: DirId, path: &[u8]) -> Result<Option<Found>> {
        let mut dir = start;
        let mut parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty()).peekable();
        while let Some(name) = parts.next() {
            super::check_name(name)?;
            self.may_search(asking, dir)?;
            let what = self.find_or_probe(dir, name)?;
            match (what, parts.peek()) {
                (What::Dir(below), Some(_)) => dir = below,
                // No symbolic link is followed.
                (What::File(_), Some(_)) => return Err(Errno::NOTDIR.into()),
                (What::File(file), None) if self.is_hidden_from(file.node(), asking.caller.tid) => {
                    return Err(Errno::NOENT.into());
                }
                (What::File(file), None) if file.kind == Kind::File => {
                    return Ok(Some(Found { dir, name: name.to_vec(), file }));
                }
                (_, None) => return Ok(None),
            }
        }
        Ok(None)
    }

    fn may_search(&self, asking: &mut Asking<'_>, dir: DirId) -> Result<()> {
        if asking.caller.uid == 0 || asking.searched.contains(&dir) {
            return Ok(());
        }
        if !asking.may(&self.stat_dir(dir)?, 1) {
            return Err(Errno::ACCESS.into());
        }
        asking.searched.push(dir);
        Ok(())
    }

    /// Opens a file for its caller to be read ahead. `EACCES` if the caller may not read it.
    pub(crate) fn open_found(&self, caller: &Caller, found: &Found) -> Result<OwnedFd> {
        let (attr, dir) = self.stat_entry(found.dir, &found.name, found.file)?;
        let mut asking = Asking { caller, groups: None, searched: Vec::new() };
        if caller.uid != 0 && !asking.may(&attr, 4) {
            return Err(Errno::ACCESS.into());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        rustix::fs::openat(&dir, &*found.name, flags, Mode::empty()).map_err(Error::on(found.file.slot))
    }
}

impl Asking<'_> {
    /// Whether permission bits grant `wanted` (4 read, 1 search), as the kernel decides it with
    /// `default_permissions` (acl_permission_check in fs/namei.c).
    fn may(&mut self, attr: &Attr, wanted: u32) -> bool {
        let shift = if attr.uid == self.caller.uid {
            6
        } else if attr.gid == self.caller.gid || self.is_in(attr.gid) {
            3
        } else {
            0
        };
        u32::from(attr.perm) >> shift & wanted == wanted
    }

    fn is_in(&mut self, group: u32) -> bool {
        let tid = self.caller.tid;
        self.groups.get_or_insert_with(|| groups_of(tid)).contains(&group)
    }
}

/// A thread's supplementary groups; none if it can't be seen.
fn groups_of(tid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}
