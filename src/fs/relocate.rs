//! Moving one file to another backing.
//!
//! What always holds: at every moment one of the two copies is the file, whole and on its device. The copy is
//! made under a temporary name; it takes the file's name only if nobody has the original open or mapped, and
//! nobody has changed, renamed or removed it meanwhile, while nobody can. The original is removed when the copy's name is on the device, and
//! is a shadow until then: a crash in between leaves two copies of the same content, of which the next mount
//! takes the newer one, and nothing is ever there twice.
//!
//! Locks: the name's, over all of the change; the node's only from the last look at it to the index. The kernel
//! is told afterwards (`tell`); whoever asks for the old node before it knows gets ESTALE, and looks again.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Statx};
use rustix::io::Errno;
use uuid::Uuid;

use super::attr::{stat_at, stat_fd};
use super::copy::{Buffer, CopyError, Original, Pace, Target};
use super::{DirFd, Fs, fault, lease};
use crate::index::{DirId, EntryId, FileRef, Kind, Slot, SlotSet, What};
use crate::placement::{self, Asker, Reason};
use crate::printable::printable;

/// What the temporary names of copies start with.
const TEMPORARY: &[u8] = b".kvfs-move-";

/// Longer than a tick of the kernel's clock, which is 10 ms at most.
const FRESH: std::time::Duration = std::time::Duration::from_millis(20);

/// Whether a name is that of an unfinished copy.
pub(crate) fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(TEMPORARY)
}

/// A file that may be moved, as it was when it was found.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) dir: DirId,
    pub(crate) name: Vec<u8>,
    pub(crate) file: FileRef,
}

/// Why a file wasn't moved. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotMoved {
    /// It isn't there any more, or elsewhere.
    Gone,
    /// Somebody has it open.
    Open,
    /// It was changed meanwhile.
    Changed,
    /// It has several names.
    Linked,
    /// The target has something of that name that the index doesn't know.
    Taken,
    /// The target has no room.
    NoRoom,
    /// The work was called off.
    Cancelled,
    /// The backing that it's on gave this error.
    Source(Errno),
    /// The backing that it goes to gave this error.
    Target(Errno),
}

impl From<CopyError> for NotMoved {
    fn from(e: CopyError) -> NotMoved {
        match e {
            CopyError::Source(e) => NotMoved::Source(e),
            CopyError::Target(e) => on_target(e),
            CopyError::Changed => NotMoved::Changed,
            CopyError::Cancelled => NotMoved::Cancelled,
        }
    }
}

fn on_target(e: Errno) -> NotMoved {
    match e {
        Errno::NOSPC | Errno::DQUOT => NotMoved::NoRoom,
        Errno::EXIST => NotMoved::Taken,
        e => NotMoved::Target(e),
    }
}

/// A finished copy under its temporary name.
struct Copied<'a> {
    item: &'a Item,
    original: Original,
    from_dir: DirFd,
    to: Slot,
    to_dir: DirFd,
    temporary: Vec<u8>,
    made: Statx,
}

impl Fs {
    /// The next files on a backing, of those with numbers from `from` on, and where to go on.
    pub(crate) fn items_on(&self, slot: Slot, from: u32) -> (Vec<Item>, Option<u32>) {
        let index = self.index.read();
        let (entries, next) = index.files_from(slot, from);
        let item = |entry: &EntryId| match index.live(*entry)? {
            What::File(file) => {
                let (dir, name) = index.place(*entry);
                Some(Item { dir, name: name.to_vec(), file })
            }
            What::Dir(_) => None,
        };
        (entries.iter().filter_map(item).collect(), next)
    }

    /// What a file takes on its backing, in bytes.
    pub(crate) fn weigh(&self, item: &Item) -> Result<u64, NotMoved> {
        let dir = self.dir_fd(item.file.slot, item.dir).map_err(|e| gone_or_source(e.errno()))?;
        let stat = stat_at(&dir, &*item.name).map_err(gone_or_source)?;
        Ok(stat.stx_blocks * 512)
    }

    /// Where the policy would put a file of so many bytes if it were new, but for some backings. `None` when
    /// no other has room.
    pub(crate) fn target_for(&self, item: &Item, bytes: u64, not: SlotSet) -> Option<Slot> {
        let path = self.index.read().path_of(item.dir, &item.name);
        let mut candidates = self.candidates();
        for c in &mut candidates {
            c.usable &= c.free > bytes && !not.has(Slot(c.slot)) && c.slot != item.file.slot.0;
        }
        let target = placement::Target { path: &path };
        // Who made it isn't asked: that was long ago.
        let decision = self.policy_in(item.dir).choose(&Asker::default(), &target, &candidates)?;
        Some(Slot(decision.slot))
    }

    /// Whether a backing would take a new file of so many bytes.
    pub(crate) fn has_room_for(&self, slot: Slot, bytes: u64) -> bool {
        self.backing(slot).is_ok_and(|b| b.is_open_to_files() && b.spare() > bytes)
    }

    /// A file's path in the mount, for people.
    pub(crate) fn path_of_item(&self, item: &Item) -> String {
        printable(self.index.read().path_of(item.dir, &item.name))
    }

    /// Moves a file. What it took on its backing, in bytes.
    pub(crate) fn relocate(
        &self,
        item: &Item,
        to: Slot,
        buffer: &mut Buffer,
        pace: Pace<'_>,
    ) -> Result<u64, NotMoved> {
        let node = item.file.node();
        let from = self.backing(item.file.slot).map_err(|e| NotMoved::Source(e.errno()))?;
        let target = self.backing(to).map_err(|e| NotMoved::Target(e.errno()))?;
        let watched = self.moving.watch(node).ok_or(NotMoved::Open)?;
        // Who was at it before it was watched has ended now, or is counted.
        drop(self.still.still(node));
        if self.open.is_open(node) || self.publish.is_hidden(node) {
            return Err(NotMoved::Open);
        }
        if matches!(item.file.kind, Kind::Fifo | Kind::Socket) && self.is_known(item) {
            // Opens of these never come here: but the kernel keeps the node of one that is in use.
            self.tell_moved(item.dir, &item.name, node, None);
            return Err(NotMoved::Open);
        }
        let from_dir = self.dir_fd(item.file.slot, item.dir).map_err(|e| gone_or_source(e.errno()))?;
        let original =
            Original::open(&from_dir, &item.name, item.file.kind, from.dio_align).map_err(gone_or_source)?;
        if !self.is_file(&original.stat, item.file) {
            self.drop_stale(item.dir, &item.name, item.file);
            return Err(NotMoved::Gone);
        }
        if original.stat.stx_nlink > 1 {
            return Err(NotMoved::Linked);
        }
        if is_fresh(&original.stat) {
            return Err(NotMoved::Changed);
        }
        if self.is_in_use(item, &original) {
            return Err(NotMoved::Open);
        }
        let to_dir = self.ensure_dir(to, item.dir).map_err(|e| match e.errno() {
            Errno::NOENT => NotMoved::Gone,
            e => on_target(e),
        })?;
        let temporary = [TEMPORARY, Uuid::new_v4().to_string().as_bytes()].concat();
        let place = Target { dir: &to_dir, name: &temporary, align: target.dio_align };
        let copy = original.copy(&place, buffer, pace)?;
        fault::point("after-copy");
        let bytes = original.stat.stx_blocks * 512;
        let swapped = stat_fd(&copy).map_err(on_target).and_then(|made| {
            let copied = Copied {
                item,
                original,
                from_dir,
                to,
                to_dir: to_dir.clone(),
                temporary: temporary.clone(),
                made,
            };
            self.swap(copied, || watched.is_touched())
        });
        if swapped.is_err() {
            // Unless it has taken its name already.
            let _ = rustix::fs::unlinkat(&to_dir, &*temporary, AtFlags::empty());
        }
        from.space.distrust();
        target.space.distrust();
        swapped.map(|()| bytes)
    }

    /// Whether the file is mapped, or open behind the mount's back. Nothing is kept of it for a next open: our
    /// own descriptors would count.
    fn is_in_use(&self, item: &Item, original: &Original) -> bool {
        self.open.forget_idle(item.file.node());
        // Of another of its names, that it has lost.
        self.open.forget_removed(item.file.node());
        item.file.kind == Kind::File && lease::is_in_use(&original.fd)
    }

    fn is_known(&self, item: &Item) -> bool {
        let index = self.index.read();
        index.find(item.dir, &item.name).is_some_and(|(entry, _)| index.is_remembered(entry))
    }

    /// Lets the copy be the file, and removes the original.
    fn swap(&self, copied: Copied<'_>, touched: impl Fn() -> bool) -> Result<(), NotMoved> {
        let Copied { item, original, from_dir, to, to_dir, temporary, made } = copied;
        let (dir, name, file) = (item.dir, &*item.name, item.file);
        let node = file.node();
        let _lock = self.locks.lock(dir, name);
        let still = self.still.still(node);
        let (entry, shadows) = self.find_item(item).ok_or(NotMoved::Gone)?;
        if self.open.is_open(node) || self.is_in_use(item, &original) {
            return Err(NotMoved::Open);
        }
        let now = stat_at(&from_dir, name).map_err(gone_or_source)?;
        if touched() || !is_same(&now, &original.stat) {
            return Err(NotMoved::Changed);
        }
        // A shadow of it may be replaced; anything else of that name is somebody's that we don't know.
        let flags = if shadows.has(to) { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(&to_dir, &*temporary, &to_dir, name, flags).map_err(on_target)?;
        fault::point("after-rename");

        let mut index = self.index.write();
        if !index.members().has(to) {
            drop(index);
            let _ = rustix::fs::unlinkat(&to_dir, name, AtFlags::empty());
            return Err(NotMoved::Target(Errno::STALE));
        }
        let ino = index.pack_ino(made.stx_ino);
        let copy = FileRef { slot: to, ino, kind: file.kind, reason: Reason::Moved.code() };
        let watched = self.moving.watch(copy.node());
        let is_known = index.is_remembered(entry);
        index.retarget(entry, copy);
        index.set_shadows(entry, shadows.without(to).with(file.slot));
        let (held, dropped) = match is_known {
            true => (None, self.open.hold_moved(node, original.fd)),
            false => (Some(original.fd), None),
        };
        drop(index);
        drop(dropped);
        self.open.forget_idle(node);
        self.decisions.lock().pop(&node);
        drop(still);
        self.tell_moved(dir, name, node, held);

        if let Err(e) = sync_dir(&to_dir) {
            let untouched = || watched.as_ref().is_some_and(|w| !w.is_touched());
            self.swap_back(item, copy, shadows, &to_dir, &untouched);
            return Err(on_target(e));
        }
        fault::point("before-unlink");
        // Here and gone is as good as removed; what can't be removed stays a shadow.
        let old = stat_at(&from_dir, name);
        let removed = match old {
            Ok(stat) if self.is_file(&stat, file) => rustix::fs::unlinkat(&from_dir, name, AtFlags::empty()),
            Ok(_) => Err(Errno::EXIST),
            Err(e) => Err(e),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {
                self.index.write().set_shadows(entry, shadows.without(to).without(file.slot));
            }
            Err(e) => {
                let path = printable(name);
                tracing::warn!("{path}: moved, but its old copy on backing {} stays: {e}", file.slot.0);
            }
        }
        fault::point("after-unlink");
        Ok(())
    }

    /// The copy may not be on its device: the original is the file again, if nobody has the copy in use.
    fn swap_back(
        &self,
        item: &Item,
        copy: FileRef,
        shadows: SlotSet,
        to_dir: &DirFd,
        untouched: &dyn Fn() -> bool,
    ) {
        let _still = self.still.still(copy.node());
        if self.open.is_open(copy.node()) || !untouched() {
            return;
        }
        let mut index = self.index.write();
        let Some((entry, What::File(there))) = index.find(item.dir, &item.name) else { return };
        if there != copy || !index.members().has(item.file.slot) {
            return;
        }
        index.retarget(entry, item.file);
        index.set_shadows(entry, shadows.without(copy.slot));
        drop(index);
        self.open.forget_moved(item.file.node());
        self.open.forget_idle(copy.node());
        self.tell_moved(item.dir, &item.name, copy.node(), None);
        let _ = rustix::fs::unlinkat(to_dir, &*item.name, AtFlags::empty());
    }

    /// The entry of a file that is where it was found, with its shadows.
    fn find_item(&self, item: &Item) -> Option<(EntryId, SlotSet)> {
        let index = self.index.read();
        match index.find(item.dir, &item.name)? {
            (entry, What::File(file)) if file == item.file => Some((entry, index.shadows(entry))),
            _ => None,
        }
    }

    /// Names of files elsewhere that have a shadow on a backing.
    pub(crate) fn shadowed_on(&self, slot: Slot) -> Vec<(DirId, Vec<u8>)> {
        let index = self.index.read();
        let place = |entry: EntryId| {
            let (dir, name) = index.place(entry);
            (dir, name.to_vec())
        };
        index.shadowed_on(slot).into_iter().map(place).collect()
    }

    /// Removes a file's shadow on a backing, if it has one.
    pub(crate) fn remove_shadow(&self, dir: DirId, name: &[u8], slot: Slot) -> super::Result<()> {
        let _lock = self.locks.lock(dir, name);
        let found = {
            let index = self.index.read();
            index.find(dir, name).map(|(entry, _)| (entry, index.shadows(entry)))
        };
        let Some((entry, shadows)) = found.filter(|(_, shadows)| shadows.has(slot)) else { return Ok(()) };
        self.remove_copy(dir, name, slot)?;
        self.index.write().set_shadows(entry, shadows.without(slot));
        Ok(())
    }

    /// Removes shadows that are the originals of files which a mount that was cut off had just moved: the same
    /// attributes, the same content. At most so many: there are no more than were under way.
    pub(crate) fn remove_twins(&self, most: usize) {
        let found: Vec<(Item, SlotSet)> = {
            let index = self.index.read();
            let item = |entry: EntryId| match index.live(entry)? {
                What::File(file) => {
                    let (dir, name) = index.place(entry);
                    Some((Item { dir, name: name.to_vec(), file }, index.shadows(entry)))
                }
                What::Dir(_) => None,
            };
            index.shadowed().filter_map(item).collect()
        };
        let twins = found.iter().flat_map(|(item, slots)| slots.iter().map(move |slot| (item, slot)));
        let is_twin = |(item, slot): &(&Item, Slot)| self.is_twin(item, *slot).unwrap_or(false);
        for (item, slot) in twins.filter(is_twin).take(most) {
            if let Err(e) = self.remove_shadow(item.dir, &item.name, slot) {
                let path = self.path_of_item(item);
                tracing::warn!("{path}: its copy on backing {} stays: {e}", slot.0);
            }
        }
    }

    /// Whether a file's shadow on a backing is the same file.
    fn is_twin(&self, item: &Item, slot: Slot) -> Result<bool, Errno> {
        let open = |slot: Slot| {
            let dir = self.dir_fd(slot, item.dir).map_err(|e| e.errno())?;
            Original::open(&dir, &item.name, item.file.kind, 0)
        };
        let (file, shadow) = (open(item.file.slot)?, open(slot)?);
        let of = |o: &Original| {
            let (s, time) = (&o.stat, o.stat.stx_mtime);
            (s.stx_mode, s.stx_uid, s.stx_gid, s.stx_size, time.tv_sec, time.tv_nsec)
        };
        if !self.is_file(&file.stat, item.file) || of(&file) != of(&shadow) || item.file.kind != Kind::File {
            return Ok(false);
        }
        file.has_content_of(&shadow)
    }

    /// Has every directory that only this backing has on another one too. How many that were.
    pub(crate) fn spread_dirs(&self, slot: Slot) -> super::Result<u64> {
        let only = self.index.read().dirs_only_on(slot);
        let mut made = 0;
        for dir in only {
            let path = self.index.read().path(dir);
            let candidates = self.candidates();
            let usable = candidates.iter().filter(|c| c.usable && c.slot != slot.0);
            let Some(target) = placement::rendezvous::choose(&path, usable) else {
                return Err(Errno::NOSPC.into());
            };
            match self.ensure_dir(Slot(target.slot), dir) {
                Ok(_) => made += 1,
                // Removed meanwhile; or so deep that nothing is made there.
                Err(e) if matches!(e.errno(), Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(made)
    }

    /// Removes copies that were never finished, of a mount that ended while it made them.
    pub(crate) fn remove_leftovers(&self, leftovers: &[(Slot, Vec<u8>)]) {
        for (slot, path) in leftovers {
            let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
                Some(at) => (&path[..at], &path[at + 1..]),
                None => (&[][..], &path[..]),
            };
            if !is_temporary(name) {
                continue;
            }
            let Ok(backing) = self.backing(*slot) else { continue };
            let removed = backing.open_dir(dir).and_then(|dir| {
                rustix::fs::unlinkat(&dir, name, AtFlags::empty()).map_err(std::io::Error::from)
            });
            let path = printable(path);
            match removed {
                Ok(()) => {
                    tracing::info!("backing {}: removed the unfinished copy {path}", backing.path.display())
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    tracing::warn!(
                        "backing {}: the unfinished copy {path} stays: {e}",
                        backing.path.display()
                    );
                }
            }
        }
    }
}

/// Whether the file is as it was.
fn is_same(now: &Statx, then: &Statx) -> bool {
    let times = |s: &Statx| [s.stx_mtime, s.stx_ctime].map(|t| (t.tv_sec, t.tv_nsec));
    let rest = |s: &Statx| (s.stx_ino, s.stx_mode, s.stx_nlink, s.stx_size);
    rest(now) == rest(then) && times(now) == times(then)
}

/// Whether it was changed a moment ago: the copy, made in the same tick of the clock, would not be the newer
/// one at the next mount.
fn is_fresh(stat: &Statx) -> bool {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};
    let ctime = u64::try_from(stat.stx_ctime.tv_sec).unwrap_or_default();
    let changed = UNIX_EPOCH + Duration::new(ctime, stat.stx_ctime.tv_nsec);
    // Later than now, by a clock that was set back: there's nothing to wait for.
    SystemTime::now().duration_since(changed).is_ok_and(|age| age < FRESH)
}

fn gone_or_source(e: Errno) -> NotMoved {
    match e {
        Errno::NOENT | Errno::STALE => NotMoved::Gone,
        e => NotMoved::Source(e),
    }
}

/// Has a directory's names on the device.
fn sync_dir(dir: &DirFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open: OwnedFd = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    rustix::fs::fsync(&open)
}
