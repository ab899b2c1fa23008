//! The work that is under way on a backing, kept in its root: it goes on at the next mount.
//!
//! What always holds: the file is whole or not there. One that can't be understood is left alone, and reported.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};

use super::Backing;

const NAME: &str = ".kvfs-job";
const NEW: &str = ".kvfs-job.new";
/// A longer file is none of ours.
const LONGEST: usize = 4096;

/// Work that outlives a mount.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum SavedJob {
    /// All files leave this backing.
    Drain {
        /// Bytes a second at most.
        bandwidth: Option<u64>,
    },
    /// Files move until the mount's backings are equally full. Kept on the first backing.
    Rebalance {
        /// Bytes a second at most.
        bandwidth: Option<u64>,
        /// How much the backings may differ, in percent of their size.
        tolerance: f64,
    },
}

impl Backing {
    /// The work that was under way here.
    pub fn saved_job(&self) -> io::Result<Option<SavedJob>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(self.root(), NAME, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            file => file?,
        };
        let mut text = vec![0; LONGEST];
        let len = rustix::io::pread(&file, &mut text, 0)?;
        Ok(Some(serde_json::from_slice(&text[..len])?))
    }

    /// Work begins: if the mount ends before it, it goes on at the next.
    pub fn save_job(&self, job: &SavedJob) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self.root(), NEW, flags, Mode::from_raw_mode(0o644))?;
        let mut text = serde_json::to_string(job)?;
        text.push('\n');
        rustix::io::write(&file, text.as_bytes())?;
        rustix::fs::fsync(&file)?;
        renameat(self.root(), NEW, self.root(), NAME)?;
        self.sync_root()
    }

    /// It has ended, or was called off.
    pub fn forget_job(&self) -> io::Result<()> {
        match unlinkat(self.root(), NAME, AtFlags::empty()) {
            Ok(()) => self.sync_root(),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn sync_root(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd = openat(self.root(), c".", flags, Mode::empty())?;
        Ok(rustix::fs::fsync(&root)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Defaults, Spec, prepare};
    use super::*;

    #[test]
    fn a_job_is_kept_until_it_is_forgotten() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("mnt")).unwrap();
        let spec = Spec::from(tmp.path().join("a"));
        let (backings, _made) = prepare(&[spec], &tmp.path().join("mnt"), Defaults::default()).unwrap();
        let backing = &backings[0];
        assert_eq!(backing.saved_job().unwrap(), None);
        for job in [
            SavedJob::Drain { bandwidth: Some(500 << 20) },
            SavedJob::Rebalance { bandwidth: None, tolerance: 2.0 },
        ] {
            backing.save_job(&job).unwrap();
            assert_eq!(backing.saved_job().unwrap(), Some(job));
        }
        let text = std::fs::read_to_string(tmp.path().join("a/.kvfs-job")).unwrap();
        assert!(text.contains("\"job\":\"rebalance\""), "{text}");
        backing.forget_job().unwrap();
        backing.forget_job().unwrap();
        assert_eq!(backing.saved_job().unwrap(), None);
        std::fs::write(tmp.path().join("a/.kvfs-job"), "what?").unwrap();
        assert!(backing.saved_job().is_err());
    }
}
