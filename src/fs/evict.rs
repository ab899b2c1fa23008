//! Evicting a file: the disk's part of retention.
//!
//! What always holds: the file is the one that was chosen, nobody has it open, and nobody opens it meanwhile;
//! metadata that would promise the file goes first, and the kernel knows that before the file goes. A kernel
//! that knows the file is told, and its inode is held, without its content, until the kernel has forgotten it:
//! its number can't become another file's before.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, Statx, XattrFlags};
use rustix::io::Errno;

use super::attr::stat_fd;
use super::counting::taken;
use super::ghost::Evicted;
use super::lease::{self, Users};
use super::{Changed, DirFd, Error, Fs, NodeId, Result, proc_path};
use crate::backing::List;
use crate::index::{DirId, FileRef, Index, Node, Slot, What};
use crate::retention::{CREATOR_XATTR, Creators, Outcome, Record, Seen, Store, Victim, Writers, pair};

/// How long a create may wait for room.
const PATIENCE: Duration = Duration::from_secs(20);
/// Data without metadata is left alone that long: its writer may be about to make the metadata.
const UNPUBLISHED: Duration = Duration::from_secs(5);

impl Store for Fs {
    fn index(&self) -> &parking_lot::RwLock<Index> {
        &self.index
    }

    fn backings(&self) -> List {
        self.backings()
    }

    fn is_open(&self, node: NodeId) -> bool {
        self.open.is_open(node)
    }

    fn look(&self, dir: DirId, name: &[u8], file: FileRef) -> Option<Seen> {
        let parent = self.dir_fd(file.slot, dir).ok()?;
        let (fd, stat) = open_the_file(&parent, name, |stat| self.is_file(stat, file)).ok()?;
        let record = super::xattr::get_path(&proc_path(&fd), CREATOR_XATTR.as_bytes()).ok();
        let changed = time(&stat.stx_mtime);
        Some(Seen {
            bytes: taken(&stat, self.is_shared(file.slot)),
            links: stat.stx_nlink,
            used: changed.max(time(&stat.stx_atime)),
            changed,
            record,
        })
    }

    fn evict(&self, victim: &Victim) -> Outcome {
        let evicted = match pair(&victim.name) {
            Some((data, metadata)) if data == victim.name => self.evict_pair(victim, metadata),
            _ => {
                let _lock = self.locks.lock(victim.dir, &victim.name);
                self.evict_locked(victim, true).map(|bytes| (1, bytes))
            }
        };
        match evicted {
            Ok((files, bytes)) => Outcome::Gone { files, bytes },
            Err(e) if matches!(e.errno(), Errno::STALE | Errno::NOENT) => {
                // If that was done behind the mount's back, the index learns of it.
                self.drop_stale(victim.dir, &victim.name, victim.file);
                Outcome::Spared
            }
            Err(e) if matches!(e.errno(), Errno::BUSY | Errno::MLINK) => Outcome::Spared,
            Err(e) => Outcome::Failed(e.to_string()),
        }
    }

    fn is_behind(&self) -> bool {
        self.open.evicted.is_full()
    }

    fn let_go(&self, slot: Slot) {
        self.open.evicted.close(slot);
    }

    fn creator_ended(&self, creator: crate::index::CreatorCode) {
        self.ghosts.forget(creator);
    }
}

impl Fs {
    /// Evicts a file if it's still the one that was chosen, and idle: what it took. EBUSY, EMLINK or ESTALE
    /// where it isn't, or where that would make no room and is to. Its name is locked.
    fn evict_locked(&self, victim: &Victim, for_room: bool) -> Result<u64> {
        let Victim { entry, file, dir, ref name, .. } = *victim;
        let parent = self.dir_fd(file.slot, dir)?;
        let _still = self.still.still(file.node());
        self.is_idle(victim)?;
        let (fd, stat) =
            open_to_evict(&parent, name, |stat| self.is_file(stat, file)).map_err(Error::on(file.slot))?;
        let bytes = taken(&stat, self.is_shared(file.slot));
        if stat.stx_nlink > 1 || for_room && bytes == 0 {
            return Err(Errno::MLINK.into());
        }
        // What is kept for a next open counts as a use.
        self.open.forget_idle(file.node());
        let fd = Arc::new(fd);
        let lease = match lease::users(&fd) {
            Users::None(lease) => Some(lease),
            Users::Some => return Err(Errno::BUSY.into()),
            Users::Unknown => None,
        };
        let shadows = self.index.read().shadows(entry);
        self.remove_copies(dir, name, shadows)?;
        rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(Error::on(file.slot))?;
        let is_known = {
            let mut index = self.index.write();
            let is_known = index.is_remembered(entry);
            if is_known {
                self.open.evicted.hold(file.node(), fd.clone());
            }
            let creator = index.use_of(entry).0;
            if Creators::is_living(creator) {
                self.ghosts.add(dir, name, Evicted { creator, owner: (stat.stx_uid, stat.stx_gid) });
            }
            index.remove(entry);
            is_known
        };
        self.decisions.lock().pop(&file.node());
        if !is_known {
            return Ok(bytes);
        }
        if lease.is_some() && !self.retention.options.keeps_content && is_nameless(&fd) {
            // A create that waits for the room may keep an older kernel from forgetting the file.
            let _ = rustix::fs::ftruncate(&fd, 0);
        }
        // From now on the kernel asks for it, and hears that it isn't there; and it drops the name.
        if let Some(changed) = self.data_changed.get() {
            changed(Changed { node: file.node(), pages: None, end: None });
        }
        self.tell_gone(dir, name, file.node());
        Ok(bytes)
    }

    /// EBUSY if a file is in use, or was used since it was chosen; ESTALE if it's another one by now.
    fn is_idle(&self, victim: &Victim) -> Result<()> {
        let index = self.index.read();
        let same = index.find(victim.dir, &victim.name).is_some_and(|(there, what)| {
            there == victim.entry && matches!(what, What::File(now) if now.node() == victim.file.node())
        });
        if !same {
            return Err(Errno::STALE.into());
        }
        if index.use_of(victim.entry).1 > victim.used || self.open.is_open(victim.file.node()) {
            return Err(Errno::BUSY.into());
        }
        Ok(())
    }

    /// Evicts data with its metadata, which goes first: how many files, and what they took.
    fn evict_pair(&self, victim: &Victim, metadata: Vec<u8>) -> Result<(u64, u64)> {
        // Nobody publishes the one while the other goes.
        let _lock = self.locks.lock_two((victim.dir, &metadata), (victim.dir, &victim.name));
        self.is_idle(victim)?;
        let found = self.index.read().find(victim.dir, &metadata);
        let companion = match found {
            Some((entry, What::File(file))) => {
                let (creator, used) = self.index.read().use_of(entry);
                Some(Victim { entry, file, name: metadata, creator, used, ..victim.clone() })
            }
            _ => None,
        };
        let is_published = companion.as_ref().is_some_and(|metadata| {
            let changed = |v: &Victim| self.look(v.dir, &v.name, v.file).map(|seen| seen.changed);
            changed(metadata) >= changed(victim)
        });
        let since = self.retention.clock.moment(SystemTime::now() - UNPUBLISHED);
        if !is_published && victim.used > since {
            return Err(Errno::BUSY.into());
        }
        let (mut files, mut bytes) = (0, 0);
        if let Some(metadata) = companion {
            match self.evict_locked(&metadata, false) {
                Ok(taken) => (files, bytes) = (1, taken),
                // It's gone, behind the mount's back; the index learns of it when it's looked up.
                Err(e) if e.errno() == Errno::NOENT => {}
                Err(e) => return Err(e),
            }
            super::fault::point("evicted-metadata");
        }
        Ok((files + 1, bytes + self.evict_locked(victim, true)?))
    }

    /// A file was opened to be written: if only its creator could find it, there may now be two who can.
    pub fn opened_to_write(&self, tid: u32, node: NodeId, flags: i32) {
        if flags & libc::O_ACCMODE == libc::O_RDONLY || !self.retention.evicts() {
            return;
        }
        let Some(Node::File(slot, ino)) = node.node() else { return };
        let (entry, old) = {
            let index = self.index.read();
            let Some(entry) = index.known(slot, ino) else { return };
            let (dir, name) = index.place(entry);
            let old = index.use_of(entry).0;
            if !self.retention.may_be_remembered(old, || index.path_of(dir, name)) {
                return;
            }
            (entry, old)
        };
        let Some(open) = self.open.find(node) else { return };
        let path = proc_path(&open.fd);
        let known = || Record::decode(&super::xattr::get_path(&path, CREATOR_XATTR.as_bytes()).ok()?);
        let (code, record) = match self.retention.creators.writes(old, known, tid) {
            Writers::Same => return,
            Writers::Only(code, record) => (code, Some(record)),
            Writers::Several(code) => (code, None),
        };
        let _ = match &record {
            Some(record) => {
                let text = record.encode();
                rustix::fs::setxattr(&path, CREATOR_XATTR, text.as_bytes(), XattrFlags::empty())
            }
            None => rustix::fs::removexattr(&path, CREATOR_XATTR),
        };
        let index = self.index.read();
        if index.known(slot, ino) == Some(entry) {
            index.set_creator(entry, self.retention.creators.confirmed(code, record.as_ref()));
        }
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

    /// Makes what found no room in a directory, when there may be some: ENOSPC or EDQUOT if there won't be within
    /// some seconds.
    pub fn when_there_is_room<T>(&self, parent: NodeId, make: impl Fn() -> Result<T>) -> Result<T> {
        let is_admitted = || match parent.node() {
            Some(Node::Dir(dir)) => self.admit(dir).is_ok(),
            _ => true,
        };
        let has_room = || self.has_room() && is_admitted();
        let until = Instant::now() + PATIENCE;
        let is_kept_free = || self.backings().iter().any(|b| b.space.promised() > 0);
        loop {
            let found = self.retention.wait_for_room(until, has_room, is_kept_free);
            match make() {
                // Others who waited were faster.
                Err(e) if found && e.is_full() && Instant::now() < until => {}
                made => return made,
            }
        }
    }
}

/// Evicted files that the kernel still knows, by node.
pub(super) struct Held {
    files: Mutex<HashMap<NodeId, Arc<OwnedFd>>>,
    /// The usual case costs one load.
    count: AtomicUsize,
    /// Forgotten by the kernel, and not closed yet: closing a file that has no name may wait for its drive.
    forgotten: Mutex<Vec<(NodeId, Arc<OwnedFd>)>>,
    most: usize,
}

impl Held {
    /// For some more than so many: each is an open file.
    pub(super) fn new(some: NonZeroUsize) -> Held {
        let most = some.get().saturating_mul(2);
        Held { files: Mutex::default(), count: AtomicUsize::new(0), forgotten: Mutex::default(), most }
    }

    fn hold(&self, node: NodeId, fd: Arc<OwnedFd>) {
        let mut files = self.files.lock();
        files.insert(node, fd);
        self.count.store(files.len(), Relaxed);
    }

    /// Whether the node is an evicted file's.
    pub(super) fn has(&self, node: NodeId) -> bool {
        self.count.load(Relaxed) > 0 && self.files.lock().contains_key(&node)
    }

    /// The kernel has forgotten it.
    pub(super) fn forget(&self, node: NodeId) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let mut files = self.files.lock();
        let Some(fd) = files.remove(&node) else { return };
        self.count.store(files.len(), Relaxed);
        drop(files);
        self.forgotten.lock().push((node, fd));
    }

    fn is_full(&self) -> bool {
        self.count.load(Relaxed) >= self.most
    }

    /// A backing goes: nothing of it is kept.
    pub(super) fn leave(&self, slot: Slot) {
        let here: Vec<NodeId> = self.files.lock().keys().copied().filter(|node| is_on(*node, slot)).collect();
        here.into_iter().for_each(|node| self.forget(node));
        self.close(slot);
    }

    /// Closes what was forgotten on a backing.
    fn close(&self, slot: Slot) {
        let mut forgotten = self.forgotten.lock();
        let (close, keep) = forgotten.drain(..).partition::<Vec<_>, _>(|(node, _)| is_on(*node, slot));
        *forgotten = keep;
        drop(forgotten);
        drop(close);
    }
}

fn is_on(node: NodeId, slot: Slot) -> bool {
    matches!(node.node(), Some(Node::File(at, _)) if at == slot)
}

/// Opens the file of this name with `O_PATH`, if it's the right one.
fn open_the_file(
    parent: &DirFd,
    name: &[u8],
    is_it: impl Fn(&Statx) -> bool,
) -> std::result::Result<(OwnedFd, Statx), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = stat_fd(&fd)?;
    if is_it(&stat) { Ok((fd, stat)) } else { Err(Errno::STALE) }
}

/// The same, in a way that tells whether somebody else has it open, as far as that's allowed.
fn open_to_evict(
    parent: &DirFd,
    name: &[u8],
    is_it: impl Fn(&Statx) -> bool,
) -> std::result::Result<(OwnedFd, Statx), Errno> {
    // Nothing but a regular file is opened: a FIFO or a device might do something.
    let (path, stat) = open_the_file(parent, name, is_it)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
    match rustix::fs::open(proc_path(&path), flags, Mode::empty()) {
        Ok(fd) => Ok((fd, stat)),
        Err(Errno::TXTBSY) => Err(Errno::BUSY),
        Err(_) => Ok((path, stat)),
    }
}

fn is_nameless(fd: &OwnedFd) -> bool {
    stat_fd(fd).is_ok_and(|stat| stat.stx_nlink == 0)
}

fn time(t: &rustix::fs::StatxTimestamp) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or(0));
    SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(t.tv_nsec.into())
}
