//! Hard links.
//!
//! What always holds: a new link is on the backing of its file, whatever the placement policy says of the
//! name: a file is on exactly one backing.

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::fault::crash_point;
use super::{Entry, Error, Fs, NodeId, Result, check_new_name};
use crate::index::{DirId, FileRef, Node, What};
use crate::placement::Reason;
use crate::supervise::{Intent, is_done};

impl Fs {
    /// Gives a file one more name.
    pub fn link(&self, node: NodeId, newparent: NodeId, newname: &[u8]) -> Result<Entry> {
        let newdir = self.dir_of(newparent)?;
        check_new_name(newname)?;
        if is_done() {
            return self.lookup(newparent, newname);
        }
        let Some(Node::File(slot, ino)) = node.node() else { return Err(Errno::PERM.into()) };
        self.settle(newdir);
        self.changeable(slot)?;
        let linked =
            self.by_name(slot, ino, |dir, name, file| self.link_from((dir, name), file, (newdir, newname)));
        // One that was moved, by a daemon before this one perhaps, is looked up again and found; one without a name
        // can't be linked.
        let moved = || self.open.was_moved(node) || (self.is_recovered() && !self.open.is_open(node));
        let is_gone = |e: &super::Error| e.errno() == Errno::STALE && !moved();
        linked.map_err(|e| if is_gone(&e) { Errno::NOENT.into() } else { e })
    }

    /// Links one name of the file to a new one. ENOENT when the name isn't the file's any more.
    fn link_from(&self, from: (DirId, &[u8]), file: FileRef, to: (DirId, &[u8])) -> Result<Entry> {
        let slot = file.slot;
        self.settle(from.0);
        self.may_link(from.0, to.0)?;
        let target = self.ensure_dir(slot, to.0)?;
        let _lock = self.locks.lock_two(from, to);
        {
            let index = self.index.read();
            if index.find(to.0, to.1).is_some() {
                return Err(Errno::EXIST.into());
            }
            if !matches!(index.find(from.0, from.1), Some((_, What::File(there))) if there.node() == file.node())
            {
                return Err(Errno::NOENT.into());
            }
        }
        let source = self.dir_fd(slot, from.0)?;
        if self.is_shared(slot) {
            // Somebody else may have put another file there.
            let (stat, _) = self.statx_entry(from.0, from.1, file)?;
            self.is_as_told(file.node(), &stat, &source, from.1)?;
        }
        self.work.intend(|| Intent::Link(self.index.read().path_of(to.0, to.1)));
        crash_point("link before", to.1);
        rustix::fs::linkat(&source, from.1, &target, to.1, AtFlags::empty()).map_err(Error::on(slot))?;
        crash_point("link after", to.1);
        let mut index = self.index.write();
        let file = FileRef { reason: Reason::SameAsSource.code(), ..file };
        let entry = index.add_file(to.0, to.1, file)?.map_err(|_| Errno::EXIST)?;
        index.remember(entry);
        drop(index);
        self.ghosts.take(to.0, to.1);
        let (attr, fd) = self.stat_entry(to.0, to.1, file)?;
        Ok(self.identified(attr, &fd, to.1))
    }
}
