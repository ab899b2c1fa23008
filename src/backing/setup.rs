//! Checks a mount's list of backings and opens them.
//!
//! What always holds: either every backing is usable, has its marker and is locked, or nothing is left
//! behind: directories and markers that a failed call made are removed again. No two backings overlap, and
//! none overlaps the mount point, by path, by inode, or through a bind mount.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, Mode, OFlags, StatVfsMountFlags, accessat, fstatvfs, open};

use super::error::not_writable;
use super::missing::{Missing, find_missing};
use super::overlap::{check_overlap, check_same_inode, fs_path};
use super::reopen::{Marking, open_marker};
use super::{
    Backing, HealthCell, Limit, MinFree, Room, SetupError, Space, Spec, StateCell, dio_align, mountinfo,
};
use rustix::io::Errno;
use uuid::Uuid;

use crate::index::{MAX_BACKINGS, Slot};

/// What preparing the backings has made. Dropped, it's taken back; a mount that succeeds keeps it.
#[derive(Debug, Default)]
pub struct Made {
    dirs: Vec<PathBuf>,
    markers: Vec<PathBuf>,
}

impl Drop for Made {
    fn drop(&mut self) {
        for marker in &self.markers {
            let _ = fs::remove_file(marker);
        }
        for dir in self.dirs.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

impl Made {
    /// All went well: nothing is taken back.
    pub fn keep(mut self) {
        self.dirs.clear();
        self.markers.clear();
    }
}

/// What holds for a backing of which nothing else was said.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// What must stay free.
    pub min_free: MinFree,
    /// How much kvfs may put there.
    pub capacity: Option<Limit>,
}

impl Defaults {
    /// What was said of a backing, with what holds for it otherwise.
    fn complete(self, spec: Spec) -> Spec {
        Spec {
            min_free: Some(spec.min_free.unwrap_or(self.min_free)),
            capacity: spec.capacity.or(self.capacity),
            ..spec
        }
    }
}

impl Default for Defaults {
    fn default() -> Defaults {
        Defaults { min_free: MinFree::Default, capacity: None }
    }
}

/// Makes the backings ready, in the order given. `mount_point` is an absolute path without symbolic links.
pub fn prepare(
    specs: &[Spec],
    mount_point: &Path,
    defaults: Defaults,
) -> Result<(Vec<Backing>, Made), SetupError> {
    prepare_with(specs, mount_point, defaults, Missing::Refused)
}

/// The same; `missing` says what is done about backings that aren't there.
pub fn prepare_with(
    specs: &[Spec],
    mount_point: &Path,
    defaults: Defaults,
    missing: Missing,
) -> Result<(Vec<Backing>, Made), SetupError> {
    let away = who_is_away(specs, missing)?;
    prepare_all(specs, &away, mount_point, defaults, missing)
}

/// Refuses what [`prepare_with`] would, as far as that can be told without a lock or a change anywhere.
pub fn check(specs: &[Spec], mount_point: &Path, missing: Missing) -> Result<(), SetupError> {
    let away = who_is_away(specs, missing)?;
    let there =
        specs.iter().zip(away).filter(|(_, away)| away.is_none()).map(|(spec, _)| resolve(&spec.path));
    let paths: Vec<PathBuf> = there.collect::<Result<_, _>>()?;
    check_overlap(&paths, mount_point, |path| Ok(path.to_owned()))?;
    paths.iter().try_for_each(|path| match fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => Err(SetupError::NotADirectory(path.clone())),
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SetupError::Io(path.clone(), e)),
        _ => Ok(()),
    })
}

/// The identities of the backings that will be left out.
fn who_is_away(specs: &[Spec], missing: Missing) -> Result<Vec<Option<Uuid>>, SetupError> {
    if specs.is_empty() {
        return Err(SetupError::None);
    }
    if specs.len() > MAX_BACKINGS {
        return Err(SetupError::TooMany(specs.len()));
    }
    let mut away = find_missing(specs)?;
    if missing == Missing::Refused || away.iter().all(Option::is_some) {
        // Who is left out must be wanted so, and somebody must be left.
        if let Some(away) = away.iter_mut().find_map(Option::take) {
            return Err(away.error);
        }
    }
    Ok(away.iter().map(|away| away.as_ref().map(|away| away.id)).collect())
}

/// Makes those ready that aren't away.
fn prepare_all(
    specs: &[Spec],
    away: &[Option<Uuid>],
    mount_point: &Path,
    defaults: Defaults,
    missing: Missing,
) -> Result<(Vec<Backing>, Made), SetupError> {
    let there: Vec<Spec> =
        specs.iter().zip(away).filter(|(_, away)| away.is_none()).map(|(spec, _)| spec.clone()).collect();
    let mut made = Made::default();
    let mut canonical = make_ready(&there, mount_point, &mut made)?.into_iter();
    let mut backings: Vec<Backing> = Vec::with_capacity(specs.len());
    for (slot, (spec, away)) in specs.iter().zip(away).enumerate() {
        let slot = Slot(slot as u8);
        let absent = |id| {
            let path = resolve(&spec.path).unwrap_or_else(|_| spec.path.clone());
            let of_spec = defaults.complete(Spec { path, ..spec.clone() });
            Backing::absent(slot, id, of_spec).map_err(|e| SetupError::Io(spec.path.clone(), e))
        };
        let backing = match away {
            Some(id) => absent(*id)?,
            None => {
                let path = canonical.next().ok_or(SetupError::None)?;
                match open_backing(|_| Some(slot), &path, spec, defaults, Marking::Make, &mut made) {
                    Err(e) if missing == Missing::LeftOut && e.is_of_the_drive() => {
                        tracing::warn!("{e}; going on without it");
                        absent(Uuid::nil())?
                    }
                    opened => opened?,
                }
            }
        };
        let is_twin = |other: &&Backing| other.id() == backing.id() && !backing.id().is_nil();
        if let Some(twin) = backings.iter().find(is_twin) {
            return Err(SetupError::SameIdentity(twin.path.clone(), backing.path));
        }
        backings.push(backing);
    }
    Ok((backings, made))
}

/// Makes one more backing ready, beside those `there`; `slot` says which slot an identity gets, if one is
/// left. Directories that it makes are for their owner to change, whatever the process's umask is.
pub fn prepare_one(
    spec: &Spec,
    there: &[PathBuf],
    slot: impl Fn(Uuid) -> Option<Slot>,
    mount_point: &Path,
    defaults: Defaults,
) -> Result<(Backing, Made), SetupError> {
    let mut made = Made::default();
    let mut all: Vec<Spec> = there.iter().cloned().map(Spec::from).collect();
    all.push(spec.clone());
    let mut canonical = make_ready(&all, mount_point, &mut made)?;
    for dir in &made.dirs {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir, mode).map_err(|e| SetupError::Io(dir.clone(), e))?;
    }
    let path = canonical.pop().ok_or(SetupError::None)?;
    let backing = open_backing(slot, &path, spec, defaults, Marking::Make, &mut made)?;
    Ok((backing, made))
}

/// Has the directories there and free from overlaps; their paths without symbolic links.
fn make_ready(specs: &[Spec], mount_point: &Path, made: &mut Made) -> Result<Vec<PathBuf>, SetupError> {
    // By path first, so that a wrong list makes no directory.
    let absolute: Vec<PathBuf> = specs.iter().map(|s| resolve(&s.path)).collect::<Result<_, _>>()?;
    check_overlap(&absolute, mount_point, |path| Ok(path.to_owned()))?;

    for path in &absolute {
        make_dir(path, made)?;
    }
    let canonical: Vec<PathBuf> = absolute
        .iter()
        .map(|p| fs::canonicalize(p).map_err(|e| SetupError::Io(p.clone(), e)))
        .collect::<Result<_, _>>()?;
    check_same_inode(&canonical, mount_point)?;
    // Where bind mounts lead to the same place: compare paths inside the file systems.
    check_overlap(&canonical, mount_point, fs_path)?;
    Ok(canonical)
}

/// The path made absolute, with the part of it that exists freed from symbolic links and dots.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, SetupError> {
    let io = |e| SetupError::Io(path.to_owned(), e);
    let absolute = std::path::absolute(path).map_err(io)?;
    let mut missing = Vec::new();
    let mut at = absolute.as_path();
    loop {
        match fs::canonicalize(at) {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |path, part| path.join(part))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match (at.file_name(), at.parent()) {
                (Some(name), Some(parent)) if fs::symlink_metadata(at).is_err() => {
                    missing.push(name.to_owned());
                    at = parent;
                }
                _ => return Err(io(e)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(SetupError::NotADirectory(absolute.clone()));
            }
            Err(e) => return Err(io(e)),
        }
    }
}

/// Makes the directory and what is missing above it.
fn make_dir(path: &Path, made: &mut Made) -> Result<(), SetupError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(SetupError::NotADirectory(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(SetupError::Io(path.to_owned(), e)),
    }
    if let Some(parent) = path.parent() {
        make_dir(parent, made)?;
    }
    match fs::create_dir(path) {
        Ok(()) => made.dirs.push(path.to_owned()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(not_writable(path, e)),
    }
    Ok(())
}

pub(super) fn open_backing(
    slot: impl Fn(Uuid) -> Option<Slot>,
    path: &Path,
    spec: &Spec,
    defaults: Defaults,
    marking: Marking<'_>,
    made: &mut Made,
) -> Result<Backing, SetupError> {
    let spec = defaults.complete(Spec { path: path.to_owned(), ..spec.clone() });
    let io = |e: io::Error| SetupError::Io(path.to_owned(), e);
    let opened = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = opened.map_err(|e| match (e, marking) {
        (Errno::NOENT, again) if again.is_again() => SetupError::NotIt(path.to_owned(), "nothing is there"),
        _ => io(e.into()),
    })?;
    let vfs = fstatvfs(&root).map_err(|e| io(e.into()))?;
    if vfs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(SetupError::ReadOnly(path.to_owned()));
    }
    accessat(&root, c".", Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|e| not_writable(path, e.into()))?;
    let marker = open_marker(path, &root, spec.shared, marking)?;
    if marker.created {
        made.markers.push(path.join(super::MARKER));
    }
    if folds_case(&root) {
        return Err(SetupError::FoldsCase(path.to_owned()));
    }
    let (fs_type, mount_id) = match mountinfo::of(&root) {
        Some(mount) => (mount.fs_type, Some(mount.id)),
        None => match mountinfo::inside(path) {
            Ok(Some((mount, _))) => (mount.fs_type, None),
            _ => ("unknown".into(), None),
        },
    };
    let total = Room::from(vfs).total;
    let min_free = spec.min_free.unwrap_or(defaults.min_free).of(total);
    let capacity = spec.capacity.map(|limit| limit.of(total));
    Ok(Backing {
        slot: slot(marker.id).ok_or(SetupError::NoSlot)?,
        path: path.to_owned(),
        device: rustix::fs::fstat(&root).map_err(|e| io(e.into()))?.st_dev,
        fs_type,
        dio_align: dio_align(marker.file().as_fd()),
        space: Arc::new(Space::new(min_free, capacity)),
        weight: capacity.unwrap_or(total),
        shared: spec.shared,
        evictable: !spec.shared || spec.evict,
        health: Arc::new(HealthCell::default()),
        mount_id,
        is_stand_in: false,
        state: StateCell::new(spec.state),
        spec,
        marker,
        root,
        passthrough: Default::default(),
        unclosed: Default::default(),
    })
}

/// Whether the marker answers to another name: so could whatever is to be hidden.
fn folds_case(root: &rustix::fd::OwnedFd) -> bool {
    let other = super::MARKER.to_ascii_uppercase();
    rustix::fs::statat(root, other, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|there| {
        let marker = rustix::fs::statat(root, super::MARKER, AtFlags::SYMLINK_NOFOLLOW);
        marker.is_ok_and(|marker| marker.st_ino == there.st_ino)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(root: &Path, backings: &[&str]) -> Result<Vec<Backing>, SetupError> {
        let point = root.join("mnt");
        let _ = fs::create_dir(&point);
        let specs: Vec<Spec> = backings.iter().map(|b| Spec::from(root.join(b))).collect();
        prepare(&specs, &point, Defaults::default()).map(|(backings, made)| {
            made.keep();
            backings
        })
    }

    #[test]
    fn makes_missing_backings_and_keeps_their_identity() {
        let tmp = tempfile::tempdir().unwrap();
        let ids: Vec<_> = setup(tmp.path(), &["a/b/c", "a/d"]).unwrap().iter().map(Backing::id).collect();
        let again: Vec<_> = setup(tmp.path(), &["a/d", "a/b/c"]).unwrap().iter().map(Backing::id).collect();
        assert_eq!(ids, [again[1], again[0]]);
    }

    #[test]
    fn refuses_overlaps_by_whole_components_and_leaves_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        assert!(matches!(setup(dir, &[]), Err(SetupError::None)));
        assert!(matches!(setup(dir, &["x", "y", "x"]), Err(SetupError::Duplicate(..))));
        assert!(matches!(setup(dir, &["x", "y/../x"]), Err(SetupError::Io(..) | SetupError::Duplicate(..))));
        assert!(matches!(setup(dir, &["x", "x/y"]), Err(SetupError::Nested(..))));
        assert!(matches!(setup(dir, &["x/y", "x"]), Err(SetupError::Nested(..))));
        for bad in ["mnt", "mnt/x", "."] {
            assert!(matches!(setup(dir, &[bad]), Err(SetupError::MountPoint { .. })), "{bad}");
        }
        fs::write(dir.join("file"), "").unwrap();
        assert!(matches!(setup(dir, &["fresh", "file"]), Err(SetupError::NotADirectory(_))));
        assert!(matches!(setup(dir, &["fresh", "file/x"]), Err(SetupError::NotADirectory(_))));
        std::os::unix::fs::symlink("fresh", dir.join("link")).unwrap();
        fs::create_dir(dir.join("fresh")).unwrap();
        assert!(matches!(setup(dir, &["fresh", "link"]), Err(SetupError::Duplicate(..))));
        fs::remove_dir(dir.join("fresh")).unwrap();
        fs::remove_file(dir.join("link")).unwrap();
        let left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "the mount point and the file: {left:?}");
        drop(setup(dir, &["nvme1", "nvme10"]).unwrap());
    }

    #[test]
    fn a_copied_backing_is_found_out() {
        let tmp = tempfile::tempdir().unwrap();
        drop(setup(tmp.path(), &["one"]).unwrap());
        fs::create_dir(tmp.path().join("two")).unwrap();
        fs::copy(tmp.path().join("one/.kvfs-backing"), tmp.path().join("two/.kvfs-backing")).unwrap();
        assert!(matches!(setup(tmp.path(), &["one", "two"]), Err(SetupError::SameIdentity(..))));
        drop(setup(tmp.path(), &["one"]).unwrap());
    }

    #[test]
    fn a_mount_that_fails_later_leaves_nothing_either() {
        let tmp = tempfile::tempdir().unwrap();
        let paths = ["new/backing", "old"].map(|p| Spec::from(tmp.path().join(p)));
        fs::create_dir(&paths[1].path).unwrap();
        fs::create_dir(tmp.path().join("mnt")).unwrap();
        drop(prepare(&paths, &tmp.path().join("mnt"), Defaults::default()).unwrap());
        assert!(!tmp.path().join("new").exists() && fs::read_dir(&paths[1].path).unwrap().next().is_none());
    }

    #[test]
    fn one_mount_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        let held = setup(tmp.path(), &["one"]).unwrap();
        assert!(matches!(setup(tmp.path(), &["new", "one"]), Err(SetupError::InUse(..))));
        assert!(!tmp.path().join("new").exists());
        drop(held);
    }
}
