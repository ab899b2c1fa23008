//! Renaming and exchanging names.
//!
//! What always holds: data stays on its backing. A client sees the old state or the new one: the index
//! changes in one step. On disk, the file under its new name is there before anything else of that name is
//! taken away, so a crash in between leaves a shadow, never two files and never none. A directory is renamed
//! on each backing that has it; if one refuses, the others are put back.

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{Error, Fs, NodeId, Result, check_name, check_new_name};
use crate::backing::is_reserved;
use crate::index::{DirId, EntryId, FileRef, Slot, SlotSet, What};

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

/// A name, and what it stands for with what shadows.
#[derive(Clone, Copy, PartialEq)]
struct Side {
    entry: EntryId,
    what: What,
    shadows: SlotSet,
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
        loop {
            // The directories have to be there before the names are locked; then look again.
            let (source, target) = self.sides(from, to)?;
            let (to_slots, from_slots) = self.slots_needed(&source, target.as_ref(), mode);
            for slot in to_slots.iter() {
                self.ensure_dir(slot, to.0)?;
            }
            for slot in from_slots.iter() {
                self.ensure_dir(slot, from.0)?;
            }
            let _lock = self.locks.lock_two(from, to);
            if self.sides(from, to)? != (source, target) {
                continue;
            }
            return match (mode, target) {
                (RenameMode::NoReplace, Some(_)) => Err(Errno::EXIST.into()),
                (RenameMode::Exchange, None) => Err(Errno::NOENT.into()),
                (RenameMode::Exchange, Some(target)) => self.exchange(from, source, to, target),
                _ if from == to => Ok(()),
                _ => match source.what {
                    What::File(file) => self.rename_file(from, source, file, to, target),
                    What::Dir(dir) => self.rename_dir(from, source, dir, to, target),
                },
            };
        }
    }

    fn sides(&self, from: Name<'_>, to: Name<'_>) -> Result<(Side, Option<Side>)> {
        let index = self.index.read();
        let side = |(dir, name): Name<'_>| {
            index.find(dir, name).map(|(entry, what)| Side { entry, what, shadows: index.shadows(entry) })
        };
        Ok((side(from).ok_or(Errno::NOENT)?, side(to)))
    }

    /// The backings on which the new directory, and for an exchange the old one, must be.
    fn slots_needed(&self, source: &Side, target: Option<&Side>, mode: RenameMode) -> (SlotSet, SlotSet) {
        let back = match (mode, target) {
            (RenameMode::Exchange, Some(target)) => self.slots_of(target.what),
            _ => SlotSet::EMPTY,
        };
        (self.slots_of(source.what), back)
    }

    fn slots_of(&self, what: What) -> SlotSet {
        match what {
            What::File(file) => SlotSet::one(file.slot),
            What::Dir(dir) => self.index.read().slots(dir).unwrap_or_default(),
        }
    }

    fn rename_file(
        &self,
        from: Name<'_>,
        source: Side,
        file: FileRef,
        to: Name<'_>,
        target: Option<Side>,
    ) -> Result<()> {
        let replaced = match target.map(|t| (t, t.what)) {
            Some((_, What::Dir(_))) => return Err(Errno::ISDIR.into()),
            // Two names of one file: POSIX has rename do nothing.
            Some((_, What::File(other))) if other.node() == file.node() => return Ok(()),
            Some((target, What::File(other))) => Some((target, other)),
            None => None,
        };
        self.remove_copies(from.0, from.1, source.shadows)?;
        self.rename_on(file.slot, from, to, RenameFlags::empty())?;

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
            self.open.forget_idle(other.node());
            self.decisions.lock().pop(&other.node());
        }
        Ok(())
    }

    fn rename_dir(
        &self,
        from: Name<'_>,
        source: Side,
        dir: DirId,
        to: Name<'_>,
        target: Option<Side>,
    ) -> Result<()> {
        let slots = self.slots_of(source.what);
        let replaced = match target.map(|t| (t.entry, t.what)) {
            Some((_, What::File(_))) => return Err(Errno::NOTDIR.into()),
            Some((entry, What::Dir(other))) => {
                if !self.index.read().is_empty(other) {
                    return Err(Errno::NOTEMPTY.into());
                }
                Some((entry, other, self.slots_of(What::Dir(other)), self.stat_dir(other).ok()))
            }
            None => None,
        };
        if self.index.read().is_within(to.0, dir) {
            return Err(Errno::INVAL.into());
        }
        if let Some((_, other, other_slots, last)) = replaced {
            // Empty to clients; each backing has to agree before anything is renamed over it.
            self.remove_dir_on(to.0, to.1, other, other_slots)
                .inspect_err(|_| self.restore_dir(to, other, last))?;
        }
        let mut done = Vec::new();
        for slot in slots.iter() {
            match self.rename_on(slot, from, to, RenameFlags::NOREPLACE) {
                Ok(()) => done.push(slot),
                // This backing has lost it behind the mount's back.
                Err(e) if e.errno() == Errno::NOENT && slots.len() > 1 => {}
                Err(e) => {
                    for slot in done {
                        if let Err(e) = self.rename_on(slot, to, from, RenameFlags::NOREPLACE) {
                            tracing::error!(
                                "a directory half renamed could not be put back on backing {}: {e}",
                                slot.0
                            );
                        }
                    }
                    if let Some((_, other, _, last)) = replaced {
                        self.restore_dir(to, other, last);
                    }
                    return Err(e);
                }
            }
        }
        let mut index = self.index.write();
        if let Some((entry, ..)) = replaced {
            index.remove(entry);
        }
        index.rename(source.entry, to.0, to.1)?;
        index.set_slots(dir, done.into_iter().collect());
        drop(index);
        if let Some((_, other, other_slots, last)) = replaced {
            self.dir_is_gone(other, other_slots, last);
        }
        Ok(())
    }

    /// Puts an empty directory that was taken away back on a backing, if no backing has it any more.
    fn restore_dir(&self, place: Name<'_>, dir: DirId, last: Option<super::Attr>) {
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

    fn rename_on(&self, slot: Slot, from: Name<'_>, to: Name<'_>, flags: RenameFlags) -> Result<()> {
        let (old, new) = (self.dir_fd(slot, from.0)?, self.dir_fd(slot, to.0)?);
        rustix::fs::renameat_with(&old, from.1, &new, to.1, flags).map_err(Error::on(slot))
    }

    fn exchange(&self, from: Name<'_>, source: Side, to: Name<'_>, target: Side) -> Result<()> {
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
        match (source.what, target.what) {
            (What::File(a), What::File(b)) if a.slot != b.slot => {
                self.exchange_files(from, a.slot, to, b.slot)?
            }
            _ => self.exchange_on_each(from, self.slots_of(source.what), to, self.slots_of(target.what))?,
        }
        let mut index = self.index.write();
        index.exchange(source.entry, target.entry);
        index.set_shadows(source.entry, SlotSet::EMPTY);
        index.set_shadows(target.entry, SlotSet::EMPTY);
        Ok(())
    }

    /// Two files on two backings: at every moment each name has a file on some backing.
    fn exchange_files(&self, from: Name<'_>, a: Slot, to: Name<'_>, b: Slot) -> Result<()> {
        let (from_a, to_a) = (self.dir_fd(a, from.0)?, self.dir_fd(a, to.0)?);
        rustix::fs::linkat(&from_a, from.1, &to_a, to.1, AtFlags::empty()).map_err(Error::on(a))?;
        if let Err(e) = self.rename_on(b, to, from, RenameFlags::NOREPLACE) {
            let _ = rustix::fs::unlinkat(&to_a, to.1, AtFlags::empty());
            return Err(e);
        }
        rustix::fs::unlinkat(&from_a, from.1, AtFlags::empty()).map_err(Error::on(a))
    }

    /// On each backing what is there of the two changes places.
    fn exchange_on_each(
        &self,
        from: Name<'_>,
        from_slots: SlotSet,
        to: Name<'_>,
        to_slots: SlotSet,
    ) -> Result<()> {
        let swap = |slot: Slot| match (from_slots.has(slot), to_slots.has(slot)) {
            (true, true) => self.rename_on(slot, from, to, RenameFlags::EXCHANGE),
            (true, false) => self.rename_on(slot, from, to, RenameFlags::NOREPLACE),
            _ => self.rename_on(slot, to, from, RenameFlags::NOREPLACE),
        };
        let undo = |slot: Slot| match (from_slots.has(slot), to_slots.has(slot)) {
            (true, true) => self.rename_on(slot, from, to, RenameFlags::EXCHANGE),
            (true, false) => self.rename_on(slot, to, from, RenameFlags::NOREPLACE),
            _ => self.rename_on(slot, from, to, RenameFlags::NOREPLACE),
        };
        let mut done = Vec::new();
        for slot in from_slots.union(to_slots).iter() {
            if let Err(e) = swap(slot) {
                for slot in done {
                    if let Err(e) = undo(slot) {
                        tracing::error!(
                            "names half exchanged could not be put back on backing {}: {e}",
                            slot.0
                        );
                    }
                }
                return Err(e);
            }
            done.push(slot);
        }
        Ok(())
    }
}
