//! Renaming and exchanging names.
//!
//! What always holds: data stays on its backing. A client sees the old state or the new one: the index
//! changes in one step. On disk, the file under its new name is there before anything else of that name is
//! taken away, so a crash in between leaves a shadow, never two files and never none. A directory is renamed
//! on each backing that has it; if one refuses, the others are put back.

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::attr::stat_at;
use super::fault::crash_point;
use super::{Attr, DirFd, Error, Fs, NodeId, Result, check_name, check_new_name};
use crate::backing::is_reserved;
use crate::index::{DirId, EntryId, FileRef, Slot, SlotSet, What};
use crate::supervise::{Intent, is_done};

/// What becomes of the new name if it's there (renameat2(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It's replaced.
    Replace,
    /// EEXIST.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// A name in a directory.
type Name<'a> = (DirId, &'a [u8]);

/// A name, what it stands for, on which backings, and its shadows.
#[derive(Clone, Copy, PartialEq)]
struct Side {
    entry: EntryId,
    what: What,
    slots: SlotSet,
    shadows: SlotSet,
}

/// Two names, with their directories open on the backings that matter.
struct Names<'a> {
    from: Name<'a>,
    to: Name<'a>,
    dirs: Vec<(Slot, DirFd, DirFd)>,
}

impl Names<'_> {
    fn rename(&self, slot: Slot, flags: RenameFlags) -> Result<()> {
        let (from, to) = self.dirs(slot)?;
        match rustix::fs::renameat_with(from, self.from.1, to, self.to.1, flags) {
            // NFS and CephFS know no flags (nfs_rename in fs/nfs/dir.c, ceph_rename in fs/ceph/dir.c).
            Err(Errno::INVAL) if flags == RenameFlags::NOREPLACE => match stat_at(to, self.to.1) {
                Ok(_) => Err(Errno::EXIST),
                Err(_) => rustix::fs::renameat(from, self.from.1, to, self.to.1),
            },
            result => result,
        }
        .map_err(Error::on(slot))
    }

    fn rename_back(&self, slot: Slot) -> Result<()> {
        let (from, to) = self.dirs(slot)?;
        rustix::fs::renameat_with(to, self.to.1, from, self.from.1, RenameFlags::NOREPLACE)
            .map_err(Error::on(slot))
    }

    fn dirs(&self, slot: Slot) -> Result<(&DirFd, &DirFd)> {
        let found = self.dirs.iter().find(|(at, ..)| *at == slot);
        found.map(|(_, from, to)| (from, to)).ok_or_else(|| Errno::NOENT.into())
    }
}

impl Fs {
    /// Renames.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &[u8],
        newparent: NodeId,
        newname: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let from = (self.dir_of(parent)?, name);
        let to = (self.dir_of(newparent)?, newname);
        check_name(name)?;
        check_new_name(newname)?;
        if is_reserved(name) {
            return Err(Errno::NOENT.into());
        }
        if is_done() {
            return Ok(());
        }
        self.settle_both(from.0, to.0);
        self.refresh(from.0, from.1)?;
        self.refresh(to.0, to.1)?;
        self.refresh_below(to.0, to.1);
        self.complete_at(from.0, from.1);
        if mode == RenameMode::Exchange {
            self.complete_at(to.0, to.1);
        }
        loop {
            // The directories have to be there and open before the names are locked; then look again.
            let (source, target) = self.sides(from, to)?;
            match (mode, &target) {
                (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST.into()),
                (RenameMode::Exchange, None) => return Err(Errno::NOENT.into()),
                _ if from == to => return Ok(()),
                _ => self.both_changeable(source, target)?,
            }
            self.is_no_ancestor(source.what, to.0, Errno::INVAL)?;
            if let Some(target) = target {
                let errno = if mode == RenameMode::Exchange { Errno::INVAL } else { Errno::NOTEMPTY };
                self.is_no_ancestor(target.what, from.0, errno)?;
            }
            let back = match (mode, &target) {
                (RenameMode::Exchange, Some(target)) => target.slots,
                _ => SlotSet::EMPTY,
            };
            let mut names = Names { from, to, dirs: Vec::new() };
            for slot in source.slots.union(back).iter() {
                let to_fd = self.ensure_dir(slot, to.0)?;
                let from_fd =
                    if back.has(slot) { self.ensure_dir(slot, from.0)? } else { self.dir_fd(slot, from.0)? };
                names.dirs.push((slot, from_fd, to_fd));
            }
            let _lock = self.locks.lock_two(from, to);
            if self.sides(from, to)? != (source, target) {
                continue;
            }
            let exchange = mode == RenameMode::Exchange;
            let replaced = target.map(|side| (side.entry, side.what));
            self.may_move(from.0, to.0, (source.entry, source.what), replaced, exchange)?;
            self.ghosts.take(to.0, to.1);
            return match (mode, target) {
                (RenameMode::Exchange, Some(target)) => self.exchange(&names, source, target),
                _ => match source.what {
                    What::File(file) => self.rename_file(&names, source, file, target, mode),
                    What::Dir(dir) => self.rename_dir(&names, source, dir, target),
                },
            };
        }
    }

    /// An error where a directory would go below itself. The kernel doesn't ask for that; and before names are locked:
    /// who has locked a name in a directory may wait for the directory's own.
    fn is_no_ancestor(&self, what: What, dir: DirId, errno: Errno) -> Result<()> {
        match what {
            What::Dir(above) if self.index.read().is_within(dir, above) => Err(errno.into()),
            _ => Ok(()),
        }
    }

    fn sides(&self, from: Name<'_>, to: Name<'_>) -> Result<(Side, Option<Side>)> {
        let index = self.index.read();
        let side = |(dir, name): Name<'_>| {
            index.find(dir, name).map(|(entry, what)| {
                let slots = match what {
                    What::File(file) => SlotSet::one(file.slot),
                    What::Dir(dir) => index.slots(dir).unwrap_or_default(),
                };
                Side { entry, what, slots, shadows: index.shadows(entry) }
            })
        };
        Ok((side(from).ok_or(Errno::NOENT)?, side(to)))
    }

    /// EROFS, or EIO, if something of it is on a backing that takes no changes.
    fn both_changeable(&self, source: Side, target: Option<Side>) -> Result<()> {
        let all = |side: Side| side.slots.union(side.shadows);
        self.all_changeable(target.map_or(all(source), |t| all(source).union(all(t))))
    }

    fn rename_file(
        &self,
        names: &Names<'_>,
        source: Side,
        file: FileRef,
        target: Option<Side>,
        mode: RenameMode,
    ) -> Result<()> {
        let (from, to) = (names.from, names.to);
        let replaced = match target.map(|t| (t, t.what)) {
            Some((_, What::Dir(_))) => return Err(Errno::ISDIR.into()),
            // Two names of one file: POSIX has rename do nothing.
            Some((_, What::File(other))) if other.node() == file.node() => return Ok(()),
            Some((target, What::File(other))) => Some((target, other)),
            None => None,
        };
        self.work.intend(|| {
            let index = self.index.read();
            let (from, to) = (index.path_of(from.0, from.1), index.path_of(to.0, to.1));
            Intent::RenameFile { from, to, slot: file.slot.0, ino: index.ino(file.ino) }
        });
        crash_point("rename before", from.1);
        self.remove_copies(from.0, from.1, source.shadows)?;
        let held = replaced.and_then(|(_, other)| {
            let dir = self.dir_fd(other.slot, to.0).ok()?;
            self.before_removal(&dir, to.1, other)
        });
        // What others have just put there, the index doesn't know.
        let flags = match mode {
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            _ => RenameFlags::empty(),
        };
        names.rename(file.slot, flags)?;
        crash_point("rename after", from.1);

        // From here on the new name is the file. What stays behind of the old one is a shadow.
        let mut left = SlotSet::EMPTY;
        if let Some((target, other)) = replaced {
            for slot in target.shadows.with(other.slot).without(file.slot).iter() {
                if let Err(e) = self.remove_copy(to.0, to.1, slot) {
                    tracing::warn!("a replaced file's copy on backing {} could not be removed: {e}", slot.0);
                    left = left.with(slot);
                }
            }
        }
        let mut index = self.index.write();
        if let Some((target, _)) = replaced {
            index.remove(target.entry);
        }
        index.rename(source.entry, to.0, to.1)?;
        index.set_shadows(source.entry, left);
        drop(index);
        if let Some((_, other)) = replaced {
            self.after_removal(other, held);
        }
        Ok(())
    }

    fn rename_dir(&self, names: &Names<'_>, source: Side, dir: DirId, target: Option<Side>) -> Result<()> {
        let to = names.to;
        let replaced = match target.map(|t| (t, t.what)) {
            Some((_, What::File(_))) => return Err(Errno::NOTDIR.into()),
            Some((target, What::Dir(other))) => {
                if !self.index.read().is_empty(other) {
                    return Err(Errno::NOTEMPTY.into());
                }
                Some((target, other, self.stat_dir(other).ok()))
            }
            None => None,
        };
        if self.index.read().is_within(to.0, dir) {
            return Err(Errno::INVAL.into());
        }
        if let Some((target, other, last)) = replaced {
            // Empty to clients; each backing has to agree before anything takes its place.
            self.remove_dir_on(to.0, to.1, other, target.slots)
                .inspect_err(|_| self.restore_dir(to, other, last))?;
        }
        let changing = self.dirs.changing(source.slots);
        self.work.intend(|| {
            let index = self.index.read();
            let (from, to) = (index.path_of(names.from.0, names.from.1), index.path_of(to.0, to.1));
            Intent::RenameDir { dir: dir.0, from, to, slots: source.slots.bits() }
        });
        crash_point("rename before", names.from.1);
        let mut done = SlotSet::EMPTY;
        let mut failed = Error::from(Errno::NOENT);
        for slot in source.slots.iter() {
            match names.rename(slot, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    crash_point("rename after", names.from.1);
                    done = done.with(slot);
                }
                // This backing has lost it behind the mount's back.
                Err(e) if e.errno() == Errno::NOENT && !is_there(names, slot) => {}
                Err(e) => {
                    failed = e;
                    self.put_back(names, done);
                    done = SlotSet::EMPTY;
                    break;
                }
            }
        }
        if done.is_empty() {
            drop(changing);
            if let Some((_, other, last)) = replaced {
                self.restore_dir(to, other, last);
            }
            return Err(failed);
        }
        let mut index = self.index.write();
        if let Some((target, ..)) = replaced {
            index.remove(target.entry);
        }
        index.rename(source.entry, to.0, to.1)?;
        index.set_slots(dir, done);
        drop(index);
        drop(changing);
        self.rules.unsettle();
        if let Some((target, other, last)) = replaced {
            self.dir_is_gone(other, target.slots, last);
        }
        Ok(())
    }

    fn put_back(&self, names: &Names<'_>, slots: SlotSet) {
        for slot in slots.iter() {
            if let Err(e) = names.rename_back(slot) {
                tracing::error!("a directory half renamed could not be put back on backing {}: {e}", slot.0);
            }
        }
    }

    /// Puts an empty directory that was taken away back on a backing, if no backing has it any more.
    fn restore_dir(&self, place: Name<'_>, dir: DirId, last: Option<Attr>) {
        let Some(slots) = self.index.read().slots(dir) else { return };
        if slots.iter().any(|slot| self.stat_dir_on(slot, dir).is_ok()) {
            return;
        }
        let mode = rustix::fs::Mode::from_raw_mode(last.map_or(0o755, |a| u32::from(a.perm)));
        for slot in slots.iter() {
            self.dirs.forget(dir, SlotSet::one(slot));
            let made = self.dir_fd(slot, place.0).map(|fd| rustix::fs::mkdirat(&fd, place.1, mode));
            if matches!(made, Ok(Ok(()))) {
                self.index.write().set_slots(dir, SlotSet::one(slot));
                return;
            }
        }
    }

    fn exchange(&self, names: &Names<'_>, source: Side, target: Side) -> Result<()> {
        let (from, to) = (names.from, names.to);
        if source.entry == target.entry {
            return Ok(());
        }
        for (side, other) in [(&source, to.0), (&target, from.0)] {
            if let What::Dir(dir) = side.what
                && self.index.read().is_within(other, dir)
            {
                return Err(Errno::INVAL.into());
            }
        }
        self.remove_copies(from.0, from.1, source.shadows)?;
        self.remove_copies(to.0, to.1, target.shadows)?;
        self.intend_exchange(names, source, target);
        crash_point("exchange before", from.1);
        let has_dir = [source.what, target.what].iter().any(|what| matches!(what, What::Dir(_)));
        let _changing = has_dir.then(|| self.dirs.changing(source.slots.union(target.slots)));
        match (source.what, target.what) {
            (What::File(a), What::File(b)) if a.slot != b.slot => exchange_files(names, a.slot, b.slot)?,
            _ => exchange_on_each(names, source.slots, target.slots)?,
        }
        crash_point("exchange after", from.1);
        let mut index = self.index.write();
        index.exchange(source.entry, target.entry);
        index.set_shadows(source.entry, SlotSet::EMPTY);
        index.set_shadows(target.entry, SlotSet::EMPTY);
        drop(index);
        if has_dir {
            self.rules.unsettle();
        }
        Ok(())
    }
}

impl Fs {
    fn intend_exchange(&self, names: &Names<'_>, source: Side, target: Side) {
        let place = |side: Side, is_old: bool| match side.what {
            What::File(file) => (file.slot.0, self.index.read().ino(file.ino)),
            What::Dir(_) => {
                let on = |slot: Slot| {
                    let (from, to) = names.dirs(slot).ok()?;
                    let stat = if is_old { stat_at(from, names.from.1) } else { stat_at(to, names.to.1) };
                    stat.ok().map(|stat| (slot.0, stat.stx_ino))
                };
                side.slots.iter().find_map(on).unwrap_or_default()
            }
        };
        self.work.intend(|| {
            let sides = [place(source, true), place(target, false)];
            let index = self.index.read();
            let path = |name: Name<'_>| index.path_of(name.0, name.1);
            Intent::Exchange { from: path(names.from), to: path(names.to), sides }
        });
    }
}

/// Whether the old name is on the backing.
fn is_there(names: &Names<'_>, slot: Slot) -> bool {
    names.dirs(slot).is_ok_and(|(from, _)| stat_at(from, names.from.1).is_ok())
}

/// Two files on two backings: at every moment each name has a file on some backing.
fn exchange_files(names: &Names<'_>, a: Slot, b: Slot) -> Result<()> {
    let (from, to) = names.dirs(a)?;
    rustix::fs::linkat(from, names.from.1, to, names.to.1, AtFlags::empty()).map_err(Error::on(a))?;
    if let Err(e) = names.rename_back(b) {
        // What was done is undone; if even that fails, a shadow stays.
        let _ = rustix::fs::unlinkat(to, names.to.1, AtFlags::empty());
        return Err(e);
    }
    rustix::fs::unlinkat(from, names.from.1, AtFlags::empty()).map_err(Error::on(a))
}

/// On each backing what is there of the two changes places.
fn exchange_on_each(names: &Names<'_>, from: SlotSet, to: SlotSet) -> Result<()> {
    let swap = |slot: Slot, forwards: bool| match (from.has(slot), to.has(slot)) {
        (true, true) => names.rename(slot, RenameFlags::EXCHANGE),
        (has, _) if has == forwards => names.rename(slot, RenameFlags::NOREPLACE),
        _ => names.rename_back(slot),
    };
    let mut done = Vec::new();
    for slot in from.union(to).iter() {
        if let Err(e) = swap(slot, true) {
            for slot in done {
                if let Err(e) = swap(slot, false) {
                    tracing::error!("names half exchanged could not be put back on backing {}: {e}", slot.0);
                }
            }
            return Err(e);
        }
        done.push(slot);
    }
    Ok(())
}
