//! LOCATE: where a file really is, for a client that does its own I/O there.
//!
//! What always holds: only on a mount that allows it, and only a caller that could open the file by that path
//! is told it.

use rustix::io::Errno;

use super::abi::Locate;
use super::{Asked, Direct, Target};
use crate::fs::may_open;

impl Direct {
    pub(super) fn locate(&self, asked: &Asked) -> Result<Locate, Errno> {
        if !self.options.locate {
            return Err(Errno::PERM);
        }
        let Target::File(fh) = asked.target else { return Err(Errno::ISDIR) };
        let file = self.fs.pin(fh).map_err(|e| e.errno())?;
        let backing = self.fs.backings().get(file.slot()).cloned().ok_or(Errno::NODEV)?;
        let stat = file.stat().map_err(|e| e.errno())?;
        if stat.stx_nlink == 0 {
            return Err(Errno::NOENT);
        }
        let path = file.backing_path().map_err(|e| e.errno())?;
        let mut answer = Locate {
            backing_id: u32::from(file.slot().0),
            dev_major: stat.stx_dev_major,
            dev_minor: stat.stx_dev_minor,
            ino: stat.stx_ino,
            size: stat.stx_size,
            dio_off_align: backing.dio_align,
            path_len: u32::try_from(path.len()).map_err(|_| Errno::NAMETOOLONG)?,
            fs_magic: rustix::fs::fstatfs(backing.root()).map(|s| s.f_type as u32)?,
            ..Locate::default()
        };
        answer.path.get_mut(..path.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(&path);
        may_open(&asked.caller, &path)?;
        Ok(answer)
    }
}
