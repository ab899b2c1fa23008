//! A backing whose drive is away: what stands in its slot, and how it comes back.
//!
//! What always holds: a stand-in has the backing's slot, identity and path, and nothing of the drive: nothing can
//! be opened below its root, so the drive can be unmounted. What comes back has the same identity.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use uuid::Uuid;

use super::error::not_writable;
use super::setup::open_backing;
use super::{Backing, Health, HealthCell, Made, Marker, MarkerError, SetupError, Space, Spec, StateCell};
use crate::index::Slot;

/// How a backing is told by its marker.
#[derive(Clone, Copy, Debug)]
pub(super) enum Marking<'a> {
    /// One is made where there is none.
    Make,
    /// It must be there, with this identity; nil for any.
    Again(Uuid),
    /// The same, and this is it, locked.
    Kept(Uuid, BorrowedFd<'a>),
}

impl Marking<'_> {
    fn identity(self) -> Option<Uuid> {
        match self {
            Marking::Make => None,
            Marking::Again(id) | Marking::Kept(id, _) => Some(id),
        }
    }

    /// Whether the backing was there before.
    pub(super) fn is_again(self) -> bool {
        self.identity().is_some()
    }
}

pub(super) fn open_marker(
    path: &Path,
    root: impl AsFd,
    shared: bool,
    marking: Marking<'_>,
) -> Result<Marker, SetupError> {
    let opened = match marking {
        Marking::Make => Marker::open(path, root, shared),
        Marking::Again(_) => Marker::open_again(root, shared),
        Marking::Kept(_, kept) => Marker::open_kept(root, shared, kept),
    };
    let marker = opened.map_err(|e| match (e, marking.is_again()) {
        (MarkerError::Io(e), true) if e.kind() == io::ErrorKind::NotFound => {
            SetupError::NotIt(path.to_owned(), "it has no marker, so its drive isn't mounted there")
        }
        (MarkerError::Io(e), _) => not_writable(path, e),
        (e @ (MarkerError::InUse | MarkerError::InSharedUse | MarkerError::InSoleUse), _) => {
            SetupError::InUse(path.to_owned(), e)
        }
        (e @ MarkerError::Damaged(_), _) => SetupError::BadMarker(path.to_owned(), e),
    })?;
    match marking.identity() {
        Some(id) if marker.id != id && !id.is_nil() => {
            Err(SetupError::NotIt(path.to_owned(), "its marker is another backing's"))
        }
        _ => Ok(marker),
    }
}

/// What is open in place of a root directory and a marker: no directory, and empty.
fn nothing() -> io::Result<File> {
    Ok(memfd_create("kvfs-no-drive", MemfdFlags::CLOEXEC)?.into())
}

impl Backing {
    /// A backing of a mount that starts without it.
    pub(super) fn absent(slot: Slot, id: Uuid, spec: Spec) -> io::Result<Backing> {
        let root = nothing()?;
        Ok(Backing {
            slot,
            path: spec.path.clone(),
            device: 0,
            fs_type: "unknown".into(),
            dio_align: 0,
            space: Arc::new(Space::new(0, None)),
            weight: 0,
            shared: spec.shared,
            evictable: false,
            health: Arc::new(HealthCell::new(Health::Absent)),
            mount_id: None,
            is_stand_in: true,
            state: StateCell::new(spec.state),
            spec,
            marker: Marker::stand_in(id, root.try_clone()?),
            root: root.into(),
            passthrough: Default::default(),
            unclosed: Default::default(),
        })
    }

    /// The same backing without its drive.
    pub fn stand_in(&self) -> io::Result<Backing> {
        let root = nothing()?;
        Ok(Backing {
            slot: self.slot,
            path: self.path.clone(),
            device: self.device,
            fs_type: self.fs_type.clone(),
            dio_align: self.dio_align,
            space: self.space.clone(),
            weight: self.weight,
            shared: self.shared,
            evictable: self.evictable,
            health: self.health.clone(),
            mount_id: None,
            is_stand_in: true,
            state: StateCell::new(self.state()),
            spec: self.spec.clone(),
            marker: Marker::stand_in(self.id(), root.try_clone()?),
            root: root.into(),
            passthrough: self.passthrough.clone(),
            unclosed: Default::default(),
        })
    }

    /// Opens what is at the path now, if it's this backing; in the state that it has now.
    pub fn reopen(&self) -> Result<Backing, SetupError> {
        let spec = Spec { state: self.state(), ..self.spec.clone() };
        let marking = Marking::Again(self.id());
        let backing = open_backing(
            |_| Some(self.slot),
            &self.path,
            &spec,
            Default::default(),
            marking,
            &mut Made::default(),
        )?;
        match backing.examine() {
            Health::Well => Ok(backing),
            Health::ReadOnly => Err(SetupError::ReadOnly(self.path.clone())),
            other => Err(SetupError::Sick(self.path.clone(), other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Defaults, prepare};
    use super::*;
    use std::fs;

    #[test]
    fn a_backing_comes_back_as_itself_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let tmp = tmp.path().canonicalize().unwrap();
        fs::create_dir(tmp.join("mnt")).unwrap();
        let spec = Spec::from(tmp.join("a"));
        let (mut backings, made) = prepare(&[spec], &tmp.join("mnt"), Defaults::default()).unwrap();
        made.keep();
        let backing = backings.remove(0);
        let away = backing.stand_in().unwrap();
        assert_eq!((away.id(), away.slot), (backing.id(), backing.slot));
        assert!(away.open_dir(b"").is_err(), "nothing is below a stand-in");
        assert!(matches!(away.reopen(), Err(SetupError::InUse(..))), "it's there still");
        drop(backing);
        fs::rename(tmp.join("a"), tmp.join("away")).unwrap();
        assert!(away.reopen().is_err());
        fs::create_dir(tmp.join("a")).unwrap();
        assert!(matches!(away.reopen(), Err(SetupError::NotIt(..))), "an empty directory in its place");
        assert_eq!(fs::read_dir(tmp.join("a")).unwrap().count(), 0, "and nothing is made there");
        fs::remove_dir(tmp.join("a")).unwrap();
        fs::rename(tmp.join("away"), tmp.join("a")).unwrap();
        assert_eq!(away.reopen().unwrap().id(), away.id());
    }
}
