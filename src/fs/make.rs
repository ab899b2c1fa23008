//! Making files and directories: choosing the backing, having the directory there, and the new name.
//!
//! What always holds: a new file is the caller's from its first moment, and its name is on exactly one
//! backing. A backing that has no room, or fails, is passed over for another; only when none is left is the
//! answer ENOSPC (or the last backing's error), and nothing was made then.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::attr::{Attr, stat_at, stat_fd};
use super::creds::{Acting, keeping_setgid};
use super::fault::crash_point;
use super::{Caller, DirFd, Entry, Error, Fs, NodeId, Opened, Result, check_new_name, proc_path};
use crate::index::{DirId, FileRef, Kind, MAX_DEPTH, Slot, SlotSet, What};
use crate::placement::{Asker, Decision, Reason, Target, rendezvous};
use crate::retention::CREATOR_XATTR;
use crate::supervise::{Intent, is_done};

/// Where a new name goes on disk.
struct Place {
    slot: Slot,
    dir: DirFd,
    decision: Option<Decision>,
}

impl Fs {
    /// Creates and opens a file; opens it if it's there and `O_EXCL` isn't set.
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        let dir = self.dir_of(parent)?;
        check_new_name(name)?;
        if is_done() {
            // By a daemon that died before it could say so.
            let made = self.lookup(parent, name)?;
            let opened = self.open(caller, made.node, flags & !libc::O_TRUNC)?;
            self.opened_by(caller.tid, made.node, flags);
            return Ok((made, opened));
        }
        if let Some(existing) = self.existing_file(parent, dir, name, flags)? {
            let opened = self.open(caller, existing.node, flags)?;
            self.opened_by(caller.tid, existing.node, flags);
            self.opened_to_write(caller.tid, existing.node, flags);
            return Ok((existing, opened));
        }
        self.admit(dir)?;
        let room = self.room_to_open(caller)?;
        let path = self.index.read().path_of(dir, name);
        let creator = self.retention.creator_of(caller.tid, &path);
        let writer = self.writer_of(caller, flags);
        let make = |place: &Place| {
            let making = self.making(place.slot, &place.dir, name, writer)?;
            let open = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let acting = Acting::as_caller(caller);
            let fd = keeping_setgid(mode, || {
                rustix::fs::openat(&place.dir, name, open, Mode::from_raw_mode(mode & 0o7777))
            })?;
            drop(acting);
            if let Some((_, Some(record))) = &creator {
                // A backing without such attributes: a later mount can't judge the file, and lets it be.
                let _ = rustix::fs::fsetxattr(
                    &fd,
                    CREATOR_XATTR,
                    record.encode().as_bytes(),
                    XattrFlags::empty(),
                );
            }
            let stat = stat_fd(&fd)?;
            crash_point("make between", name);
            let hidden = making.map(|making| making.made(&fd, &stat)).transpose()?;
            Ok((fd, stat, hidden))
        };
        let made = self.make(caller, dir, name, make, |place, (fd, stat, hidden)| {
            let mut index = self.index.write();
            let file = FileRef {
                slot: place.slot,
                ino: index.pack_ino(stat.stx_ino),
                kind: Kind::File,
                reason: place.decision.map_or(Reason::Hash, |d| d.reason).code(),
            };
            if hidden.is_some() {
                self.publish.hide(file.node(), 1, hidden, writer);
            }
            let entry = index.add_file(dir, name, file)?.map_err(|_| Errno::EXIST)?;
            index.remember(entry);
            index.used_at(entry, self.retention.now());
            if let Some((code, record)) = &creator {
                index.set_creator(entry, self.retention.creators.confirmed(*code, record.as_ref()));
            }
            drop(index);
            if let Some(decision) = place.decision {
                self.decisions.lock().put(file.node(), decision);
                self.note_created(caller.tid, &path, &decision);
            }
            // Under the name's lock: nobody may take it for a file that isn't open.
            let attr = self.identified(Attr::new(file.node(), &stat), &fd, b"");
            Ok((attr, self.enter_created(file, fd, &stat, self.promise_in(dir))))
        });
        match made {
            Ok((attr, open)) => {
                let opened = self.finish_open_created(open, flags, room);
                self.created_with(attr.node, flags, &opened);
                Ok((attr, opened?))
            }
            // Somebody made it behind the mount's back, on the very backing.
            Err(e) if e.errno() == Errno::EXIST && flags & libc::O_EXCL == 0 => {
                let existing = self.lookup(parent, name)?;
                let opened = self.open(caller, existing.node, flags)?;
                self.opened_by(caller.tid, existing.node, flags);
                Ok((existing, opened))
            }
            Err(e) => Err(e),
        }
    }

    /// The file that a create finds there already. EEXIST or EISDIR where the create can't use it.
    fn existing_file(&self, parent: NodeId, dir: DirId, name: &[u8], flags: i32) -> Result<Option<Entry>> {
        let found = self.index.read().find(dir, name);
        match found {
            None => Ok(None),
            Some(_) if flags & libc::O_EXCL != 0 => {
                // The index may be behind the backing; a lookup sets that right.
                match self.lookup(parent, name) {
                    Ok(_) => Err(Errno::EXIST.into()),
                    Err(e) if e.errno() == Errno::NOENT => Ok(None),
                    Err(e) => Err(e),
                }
            }
            Some((_, What::Dir(_))) => Err(Errno::ISDIR.into()),
            Some((_, What::File(_))) => match self.lookup(parent, name) {
                Ok(attr) => Ok(Some(attr)),
                Err(e) if e.errno() == Errno::NOENT => Ok(None),
                Err(e) => Err(e),
            },
        }
    }

    /// Makes a regular file, pipe, socket or device node.
    pub fn mknod(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32, rdev: u32) -> Result<Entry> {
        use rustix::fs::FileType;
        if let Some(socket) = self.make_socket(caller, parent, name, mode) {
            return socket;
        }
        let kind = FileType::from_raw_mode(mode);
        let device = super::attr::decode_dev(rdev);
        self.make_node(caller, parent, name, Kind::from_mode(mode), |dir| {
            let _acting = Acting::as_caller(caller);
            keeping_setgid(mode, || {
                rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), device)
            })
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        self.make_node(caller, parent, name, Kind::Symlink, |dir| {
            let _acting = Acting::as_caller(caller);
            rustix::fs::symlinkat(target, dir, name)
        })
    }

    fn make_node(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        kind: Kind,
        act: impl Fn(&DirFd) -> std::result::Result<(), Errno>,
    ) -> Result<Entry> {
        let dir = self.dir_of(parent)?;
        check_new_name(name)?;
        if is_done() {
            return self.lookup(parent, name);
        }
        let make = |place: &Place| {
            act(&place.dir)?;
            stat_at(&place.dir, name)
        };
        self.make(caller, dir, name, make, |place, stat| {
            let mut index = self.index.write();
            let file = FileRef {
                slot: place.slot,
                ino: index.pack_ino(stat.stx_ino),
                kind,
                reason: place.decision.map_or(Reason::Hash, |d| d.reason).code(),
            };
            let entry = index.add_file(dir, name, file)?.map_err(|_| Errno::EXIST)?;
            index.remember(entry);
            drop(index);
            Ok(self.identified(Attr::new(file.node(), &stat), &place.dir, name))
        })
    }

    /// Makes a directory, on one backing; others get it when a file needs it there.
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<Entry> {
        let dir = self.dir_of(parent)?;
        check_new_name(name)?;
        if is_done() {
            return self.lookup(parent, name);
        }
        let make = |place: &Place| {
            let _acting = Acting::as_caller(caller);
            keeping_setgid(mode, || rustix::fs::mkdirat(&place.dir, name, Mode::from_raw_mode(mode & 0o7777)))
        };
        let id = self.make_by(
            |candidates| {
                let path = self.index.read().path_of(dir, name);
                rendezvous::choose(&path, candidates.iter().filter(|c| c.usable))
                    .map(|c| (Slot(c.slot), None))
            },
            dir,
            name,
            make,
            |place, ()| {
                Ok(self
                    .index
                    .write()
                    .add_dir(dir, name, SlotSet::one(place.slot))?
                    .map_err(|_| Errno::EXIST)?)
            },
        )?;
        self.stat_dir(id)
    }

    fn make<M, T>(
        &self,
        caller: &Caller,
        dir: DirId,
        name: &[u8],
        make: impl Fn(&Place) -> std::result::Result<M, Errno>,
        commit: impl FnOnce(&Place, M) -> Result<T>,
    ) -> Result<T> {
        let asker = Asker { tid: caller.tid, uid: caller.uid, gid: caller.gid };
        let path = self.index.read().path_of(dir, name);
        let policy = self.policy_in(dir);
        let choose = |candidates: &[_]| {
            let decision = policy.choose(&asker, &Target { path: &path }, candidates)?;
            Some((Slot(decision.slot), Some(decision)))
        };
        self.make_by(choose, dir, name, make, commit)
    }

    /// Chooses a backing, makes something there with `make` and enters it with `commit`; tries the next
    /// backing where one has no room or fails.
    fn make_by<M, T>(
        &self,
        choose: impl Fn(&[crate::placement::Candidate]) -> Option<(Slot, Option<Decision>)>,
        dir: DirId,
        name: &[u8],
        make: impl Fn(&Place) -> std::result::Result<M, Errno>,
        commit: impl FnOnce(&Place, M) -> Result<T>,
    ) -> Result<T> {
        self.still_there(dir)?;
        let mut candidates = self.candidates();
        let mut failed = Error::from(Errno::NOSPC);
        while let Some((slot, decision)) = choose(&candidates) {
            let made = self.ensure_dir(slot, dir).and_then(|fd| {
                let place = Place { slot, dir: fd, decision };
                let lock = self.lock_to_make(dir, name)?;
                if self.index.read().find(dir, name).is_some() {
                    return Err(Errno::EXIST.into());
                }
                self.work.intend(|| Intent::Make(self.index.read().path_of(dir, name)));
                crash_point("make before", name);
                let made = make(&place).map_err(Error::on(slot))?;
                crash_point("make after", name);
                Ok((place, made, lock))
            });
            match made {
                Ok((place, made, _lock)) => {
                    self.ghosts.take(dir, name);
                    return commit(&place, made);
                }
                Err(e) if passes_over(e.errno()) => {
                    if let Ok(backing) = self.backing(slot) {
                        backing.space.distrust();
                    }
                    self.noticed(e.slot().unwrap_or(slot), e.errno());
                    candidates.iter_mut().filter(|c| c.slot == slot.0).for_each(|c| c.usable = false);
                    failed = e;
                }
                Err(e) => return Err(e),
            }
        }
        Err(failed)
    }

    /// The directory on a backing, made there (with all above it) if the backing doesn't have it yet.
    /// ENAMETOOLONG where it's so deep that the next mount wouldn't read what is made there.
    pub(super) fn ensure_dir(&self, slot: Slot, dir: DirId) -> Result<DirFd> {
        if self.is_too_deep(dir) {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.ensure_dir_here(slot, dir)
    }

    fn is_too_deep(&self, dir: DirId) -> bool {
        let index = self.index.read();
        let mut above = std::iter::successors(Some(dir), |at| index.dir_place(*at).map(|(parent, _)| parent));
        above.nth(MAX_DEPTH - 1).is_some()
    }

    /// It calls itself for the one above, as often as [`MAX_DEPTH`] lets it.
    fn ensure_dir_here(&self, slot: Slot, dir: DirId) -> Result<DirFd> {
        loop {
            let (has, place) = {
                let index = self.index.read();
                let has = index.slots(dir).ok_or(Errno::NOENT)?.has(slot);
                (has, index.dir_place(dir).map(|(parent, name)| (parent, name.to_vec())))
            };
            let Some((parent, name)) = place else { return self.dir_fd(slot, dir) };
            if has {
                match self.dir_fd(slot, dir) {
                    // Removed behind the mount's back: make it again.
                    Err(e) if e.errno() == Errno::NOENT => {}
                    result => return result,
                }
            }
            // What somebody else has removed or moved isn't to come back.
            self.still_there(dir)?;
            let above = self.ensure_dir_here(slot, parent)?;
            // A rename or removal of the directory takes this lock too.
            let _lock = self.locks.lock(parent, &name);
            if self.index.read().dir_place(dir) != Some((parent, &name)) {
                continue;
            }
            self.copy_dir(slot, dir, &above, &name)?;
            let mut index = self.index.write();
            let slots = index.slots(dir).ok_or(Errno::NOENT)?;
            index.set_slots(dir, slots.with(slot));
        }
    }

    /// Makes a directory of another backing on this one: same mode, owner, times and extended attributes;
    /// the directory above it keeps its times, because clients see no change there.
    fn copy_dir(&self, slot: Slot, dir: DirId, above: &DirFd, name: &[u8]) -> Result<()> {
        let on = Error::on(slot);
        let model = self.stat_dir(dir)?;
        self.reach(slot)?;
        let above_stat = stat_fd(above).map_err(on)?;
        let owner = Caller { uid: model.uid, gid: model.gid, tid: 0 };
        let acting = Acting::as_caller(&owner);
        let made = rustix::fs::mkdirat(above, name, Mode::from_raw_mode(u32::from(model.perm)));
        drop(acting);
        match made {
            Ok(()) => {}
            // Somebody else has made it. Anything else of that name is nothing to make files in.
            Err(Errno::EXIST) => {
                return crate::backing::open_dir_below(above.as_fd(), name)
                    .map(drop)
                    .map_err(|_| on(Errno::STALE));
            }
            Err(e) => return Err(on(e)),
        }
        let made = crate::backing::open_dir_below(above.as_fd(), name)?;
        if rustix::process::geteuid().is_root() {
            // Whoever can change the backing may have put another's directory there: it isn't given away.
            let there = stat_fd(&made).map_err(on)?;
            if there.stx_uid != model.uid {
                return Err(Errno::STALE.into());
            }
            if there.stx_gid != model.gid {
                let gid = Some(rustix::fs::Gid::from_raw(model.gid));
                rustix::fs::chownat(&made, c"", None, gid, AtFlags::EMPTY_PATH).map_err(on)?;
            }
        }
        let perm = u32::from(model.perm);
        keeping_setgid(perm, || {
            rustix::fs::chmodat(CWD, proc_path(&made), Mode::from_raw_mode(perm), AtFlags::empty())
        })
        .map_err(on)?;
        self.copy_dir_xattrs(dir, slot, &made);
        let time = |t: super::Time| Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() };
        let times = Timestamps { last_access: time(model.atime), last_modification: time(model.mtime) };
        rustix::fs::utimensat(&made, c"", &times, AtFlags::EMPTY_PATH).map_err(on)?;
        let above_times = Timestamps {
            last_access: time(above_stat.stx_atime.into()),
            last_modification: time(above_stat.stx_mtime.into()),
        };
        rustix::fs::utimensat(above, c"", &above_times, AtFlags::EMPTY_PATH).map_err(on)
    }

    /// The extended attributes too, as far as this backing takes them.
    fn copy_dir_xattrs(&self, dir: DirId, slot: Slot, made: &OwnedFd) {
        let Some(from) = self.index.read().slots(dir).and_then(|slots| slots.without(slot).iter().next())
        else {
            return;
        };
        let Ok(fd) = self.dir_fd(from, dir) else { return };
        for name in super::xattr::list_path(&proc_path(&fd)).unwrap_or_default() {
            if let Ok(value) = super::xattr::get_path(&proc_path(&fd), &name) {
                let _ =
                    rustix::fs::setxattr(proc_path(made), &name[..], &value, rustix::fs::XattrFlags::empty());
            }
        }
    }
}

/// Whether an error of one backing means that another is to be tried.
fn passes_over(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC
            | Errno::DQUOT
            | Errno::ROFS
            | Errno::IO
            | Errno::NODEV
            | Errno::NXIO
            | Errno::SHUTDOWN
            | Errno::UCLEAN
            | Errno::STALE
    )
}
