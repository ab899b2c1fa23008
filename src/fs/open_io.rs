//! The descriptors by which the daemon moves data of files that are open.
//!
//! What always holds: one moves data as its client has asked for it, past the page cache or to the device at once.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::open::OpenNode;
use super::{Error, Fs, Result, proc_path};
use crate::index::Slot;
use crate::io::IoFile;

impl Fs {
    /// The descriptor of one open whose data comes to the daemon.
    pub(super) fn open_io(&self, open: &OpenNode, flags: i32) -> Result<IoFile> {
        // Not O_APPEND: the kernel sends the offset. Where others write too it doesn't know the end. Writers may be asked to read too: a page that is
        // mapped and written in part is read first.
        let access = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => OFlags::RDONLY,
            _ => OFlags::RDWR,
        };
        let appends = flags & libc::O_APPEND != 0 && self.is_shared(open.slot);
        let kept = libc::O_SYNC
            | libc::O_DSYNC
            | libc::O_NOATIME
            | if appends { libc::O_APPEND } else { libc::O_DIRECT };
        if open.fd_is_writable && flags & kept == 0 {
            // The creator's own, which its mode (0444, say) doesn't keep from writing.
            return Ok(IoFile::new(open.fd.try_clone()?, None).reading_past_cache(self.dio_align(open.slot)));
        }
        let wanted = access | OFlags::from_bits_retain((flags & kept) as u32) | OFlags::CLOEXEC;
        let path = proc_path(&open.fd);
        let opened = rustix::fs::open(&path, wanted, Mode::empty()).or_else(|e| match e {
            // As an ordinary user: of another's file, or of one that may only be written.
            Errno::PERM => rustix::fs::open(&path, wanted.difference(OFlags::NOATIME), Mode::empty()),
            Errno::ACCESS if access == OFlags::RDWR => {
                rustix::fs::open(&path, wanted.difference(OFlags::RDWR) | OFlags::WRONLY, Mode::empty())
            }
            e => Err(e),
        });
        let fd = opened.map_err(Error::on(open.slot))?;
        let direct = flags & kept & libc::O_DIRECT != 0;
        let align = self.dio_align(open.slot);
        let file = IoFile::new(fd, direct.then_some(align)).syncing(flags & libc::O_DSYNC != 0);
        // What others write is read by the way they write it.
        Ok(if self.is_shared(open.slot) { file } else { file.reading_past_cache(align) })
    }

    /// What direct I/O on a backing needs, in bytes; 0 where it can't be known.
    fn dio_align(&self, slot: Slot) -> u32 {
        self.backing(slot).map_or(0, |backing| backing.dio_align)
    }
}
