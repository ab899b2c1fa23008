//! Evicting a file: the disk's part of retention.
//!
//! What always holds: the file is the one that was chosen, nobody has it open, and nobody opens it meanwhile;
//! metadata that would promise the file goes first. A kernel that knows the file is told, and its inode is
//! held until the kernel has forgotten it: its number can't become another file's before.

use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::attr::stat_fd;
use super::counting::taken;
use super::{DirFd, Error, Fs, NodeId, Result, proc_path};
use crate::backing::List;
use crate::index::{DirId, FileRef, Index, Node, What};
use crate::retention::{CREATOR_XATTR, Outcome, Seen, Store, Victim, pair};

impl Store for Fs {
    fn index(&self) -> &parking_lot::RwLock<Index> {
        &self.index
    }

    fn backings(&self) -> List {
        self.backings()
    }

    fn look(&self, dir: DirId, name: &[u8], file: FileRef) -> Option<Seen> {
        let parent = self.dir_fd(file.slot, dir).ok()?;
        let (fd, stat) = open_the_file(&parent, name, |stat| self.is_file(stat, file)).ok()?;
        let record = super::xattr::get_path(&proc_path(&fd), CREATOR_XATTR.as_bytes()).ok();
        let changed = time(&stat.stx_mtime);
        Some(Seen {
            bytes: taken(&stat, self.is_shared(file.slot)),
            used: changed.max(time(&stat.stx_atime)),
            changed,
            record,
        })
    }

    fn evict(&self, victim: &Victim) -> Outcome {
        if let Some((data, metadata)) = pair(&victim.name)
            && data == victim.name
            && self.evict_metadata(victim.dir, &metadata).is_err()
        {
            return Outcome::Spared;
        }
        match self.evict_file(victim) {
            Ok(bytes) => Outcome::Gone(bytes),
            Err(e) if matches!(e.errno(), Errno::BUSY | Errno::STALE | Errno::NOENT | Errno::MLINK) => {
                Outcome::Spared
            }
            Err(e) => {
                tracing::warn!("a file could not be evicted: {e}");
                Outcome::Failed
            }
        }
    }

    fn creator_ended(&self, creator: crate::index::CreatorCode) {
        self.ghosts.forget(creator);
    }
}

impl Fs {
    /// Evicts a file if it's still the one that was chosen, and idle: what it took. EBUSY, EMLINK or ESTALE
    /// where it isn't.
    fn evict_file(&self, victim: &Victim) -> Result<u64> {
        let Victim { entry, file, dir, ref name, .. } = *victim;
        let parent = self.dir_fd(file.slot, dir)?;
        let _lock = self.locks.lock(dir, name);
        let _still = self.still.still(file.node());
        let shadows = {
            let index = self.index.read();
            let same = index.find(dir, name).is_some_and(|(there, what)| {
                there == entry && matches!(what, What::File(now) if now.node() == file.node())
            });
            if !same {
                return Err(Errno::STALE.into());
            }
            if index.use_of(entry).1 > victim.used {
                return Err(Errno::BUSY.into());
            }
            index.shadows(entry)
        };
        if self.open.is_open(file.node()) {
            return Err(Errno::BUSY.into());
        }
        let (fd, stat) =
            open_the_file(&parent, name, |stat| self.is_file(stat, file)).map_err(Error::on(file.slot))?;
        if stat.stx_nlink > 1 {
            // Its room would not come back.
            return Err(Errno::MLINK.into());
        }
        // A mapping of a file that the kernel passes through outlives its handle.
        let read = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(proc_path(&fd), read, Mode::empty())
            && super::lease::is_in_use(&file)
        {
            return Err(Errno::BUSY.into());
        }
        self.remove_copies(dir, name, shadows)?;
        rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(Error::on(file.slot))?;
        let is_known = {
            let mut index = self.index.write();
            let is_known = index.is_remembered(entry);
            index.remove(entry);
            is_known
        };
        self.open.forget_idle(file.node());
        self.decisions.lock().pop(&file.node());
        if is_known {
            // Until the kernel forgets it.
            self.open.hold_evicted(file.node(), file.slot, fd);
        }
        if victim.is_remembered() {
            self.ghosts.add(dir, name, victim.creator);
        }
        self.tell_gone(dir, name, file.node());
        Ok(taken(&stat, self.is_shared(file.slot)))
    }

    /// Removes the metadata of a file that is about to go, unless it's open.
    fn evict_metadata(&self, dir: DirId, name: &[u8]) -> Result<()> {
        let found = self.index.read().find(dir, name);
        let Some((entry, What::File(file))) = found else { return Ok(()) };
        let (creator, used) = self.index.read().use_of(entry);
        let class = crate::retention::Class::Found;
        self.evict_file(&Victim { entry, file, dir, name: name.to_vec(), class, creator, used }).map(drop)
    }

    /// Whether a new file would find room now.
    pub fn has_room(&self) -> bool {
        self.candidates().iter().any(|candidate| candidate.usable)
    }

    /// Whether a new file that finds no room may find it soon: some may be made, or is kept free for files
    /// that are being written.
    pub fn room_may_come(&self) -> bool {
        self.retention.has_patience()
            && (self.retention.evicts() || self.backings().iter().any(|b| b.space.promised() > 0))
    }

    /// Waits until a new file would find room; false if it won't, within some seconds.
    pub fn wait_for_room(&self, parent: NodeId) -> bool {
        let Some(Node::Dir(dir)) = parent.node() else { return false };
        let is_admitted = || self.admit(dir).is_ok();
        let is_kept_free = || self.backings().iter().any(|b| b.space.promised() > 0);
        self.retention.wait_for_room(
            Duration::from_secs(20),
            || self.has_room() && is_admitted(),
            is_kept_free,
        )
    }
}

/// Opens the file of this name with `O_PATH`, if it's the right one.
fn open_the_file(
    parent: &DirFd,
    name: &[u8],
    is_it: impl Fn(&Statx) -> bool,
) -> std::result::Result<(std::os::fd::OwnedFd, Statx), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = stat_fd(&fd)?;
    if is_it(&stat) { Ok((fd, stat)) } else { Err(Errno::STALE) }
}

fn time(t: &rustix::fs::StatxTimestamp) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or(0));
    SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(t.tv_nsec.into())
}
