//! Hard links.
//!
//! What always holds: a new link is on the backing of its file, whatever the placement policy says of the
//! name: a file is on exactly one backing.

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::{Entry, Error, Fs, NodeId, Result, check_new_name};
use crate::index::{FileRef, Node, What};
use crate::placement::Reason;

impl Fs {
    /// Gives a file one more name.
    pub fn link(&self, node: NodeId, newparent: NodeId, newname: &[u8]) -> Result<Entry> {
        let newdir = self.dir_of(newparent)?;
        check_new_name(newname)?;
        let Some(Node::File(slot, ino)) = node.node() else { return Err(Errno::PERM.into()) };
        let (dir, name, file) = self.place_of(slot, ino).map_err(|_| Errno::NOENT)?;
        let to = self.ensure_dir(slot, newdir)?;
        let _lock = self.locks.lock_two((dir, &name), (newdir, newname));
        {
            let index = self.index.read();
            if index.find(newdir, newname).is_some() {
                return Err(Errno::EXIST.into());
            }
            if !matches!(index.find(dir, &name), Some((_, What::File(there))) if there == file) {
                return Err(Errno::NOENT.into());
            }
        }
        let from = self.dir_fd(slot, dir)?;
        rustix::fs::linkat(&from, &name[..], &to, newname, AtFlags::empty()).map_err(Error::on(slot))?;
        let mut index = self.index.write();
        let file = FileRef { reason: Reason::SameAsSource.code(), ..file };
        let entry = index.add_file(newdir, newname, file)?.map_err(|_| Errno::EXIST)?;
        index.remember(entry);
        drop(index);
        Ok(self.stat_entry(newdir, newname, file)?.0)
    }
}
