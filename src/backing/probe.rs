//! Asking a drive whether it's well.
//!
//! What always holds: nothing is taken from a cache: a read goes to the device where the file system can do that.
//! Without a suspicion nothing is written, but what would block or refuse a write is met. A full drive is well.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, fstatvfs, open, openat, unlinkat};
use rustix::io::Errno;

use super::{Backing, Health};

/// A file that is written to see whether that's possible, and removed.
const NAME: &str = ".kvfs-probe";
/// What direct I/O reads, and is aligned to: enough for any drive.
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Page([u8; PAGE]);

impl Backing {
    /// How the drive is, at a glance: a moment's work for a drive that answers, however busy it is.
    pub fn glance(&self) -> Health {
        health_by(self.try_out())
    }

    /// How the drive is, by writing something and having it synced: a busy drive may take long.
    pub fn examine(&self) -> Health {
        match self.glance() {
            Health::Well if self.state().takes_changes() => health_by(self.write_something()),
            health => health,
        }
    }

    fn try_out(&self) -> Result<(), Errno> {
        let is_read_only = fstatvfs(self.root())?.f_flag.contains(StatVfsMountFlags::RDONLY);
        let marker = self.open_marker()?;
        let mut page = Box::new(Page([0; PAGE]));
        match rustix::io::pread(&marker, &mut page.0[..], 0) {
            // The file system wants another alignment.
            Err(Errno::INVAL) => drop(rustix::io::pread(self.probe_file(), &mut [0u8; 1], 0)?),
            read => drop(read?),
        }
        if is_read_only {
            return Err(Errno::ROFS);
        }
        // Of no bytes: it's refused, or waits, where a write would be.
        match rustix::io::pwrite(&marker, &[], 0) {
            Ok(_) | Err(Errno::BADF | Errno::INVAL) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The marker, for direct I/O and for writing where that's possible.
    fn open_marker(&self) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/self/fd/{}", self.probe_file().as_raw_fd());
        let again = |flags| open(&path, flags | OFlags::CLOEXEC, Mode::empty());
        [OFlags::RDWR | OFlags::DIRECT, OFlags::RDONLY | OFlags::DIRECT, OFlags::RDONLY]
            .into_iter()
            .map(again)
            .find(|opened| !matches!(opened, Err(Errno::INVAL | Errno::ROFS | Errno::ACCESS | Errno::PERM)))
            .unwrap_or(Err(Errno::ROFS))
    }

    fn write_something(&self) -> Result<(), Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let written = openat(self.root(), NAME, flags, Mode::from_raw_mode(0o600)).and_then(|file| {
            rustix::io::pwrite(&file, b"?", 0)?;
            rustix::fs::fdatasync(file.as_fd())
        });
        let removed = unlinkat(self.root(), NAME, AtFlags::empty());
        match written.and(removed) {
            // No room is no fault, and neither is a root that only its owner may write.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::ACCESS | Errno::PERM | Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    /// Whether the drive answers: a read of the marker, which a file system that was shut down refuses even
    /// where `statfs` and `stat` still work.
    pub fn probe(&self) -> io::Result<()> {
        if self.health.is_out() {
            return Err(Errno::IO.into());
        }
        rustix::io::pread(self.probe_file(), &mut [0u8; 1], 0)?;
        Ok(())
    }
}

fn health_by(answer: Result<(), Errno>) -> Health {
    match answer {
        Ok(()) => Health::Well,
        Err(Errno::ROFS) => Health::ReadOnly,
        Err(e) => Health::Failed(e),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Defaults, Spec, prepare};
    use super::*;

    #[test]
    fn a_drive_that_is_well_is_left_as_it_was() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("mnt")).unwrap();
        let spec = Spec::from(tmp.path().join("a"));
        let (backings, _made) = prepare(&[spec], &tmp.path().join("mnt"), Defaults::default()).unwrap();
        let marker = std::fs::read(tmp.path().join("a/.kvfs-backing")).unwrap();
        assert_eq!((backings[0].glance(), backings[0].examine()), (Health::Well, Health::Well));
        assert_eq!(std::fs::read(tmp.path().join("a/.kvfs-backing")).unwrap(), marker);
        assert!(!tmp.path().join("a/.kvfs-probe").exists());
    }
}
