//! No two backings overlap, and none overlaps the mount point.
//!
//! What always holds: nothing is made or changed here, and the mount point isn't touched where our own mount is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{SetupError, mountinfo};

/// Refuses paths of which one is in another.
pub(super) fn check_each_other(paths: &[PathBuf]) -> Result<(), SetupError> {
    check_places(paths, paths)
}

fn check_places(paths: &[PathBuf], places: &[PathBuf]) -> Result<(), SetupError> {
    for (i, one) in places.iter().enumerate() {
        for (j, other) in places.iter().enumerate().take(i) {
            if one == other {
                return Err(SetupError::Duplicate(paths[i].clone(), paths[j].clone()));
            }
            // `starts_with` goes by whole components: /mnt/nvme10 doesn't start with /mnt/nvme1.
            if one.starts_with(other) {
                return Err(SetupError::Nested(paths[i].clone(), paths[j].clone()));
            }
            if other.starts_with(one) {
                return Err(SetupError::Nested(paths[j].clone(), paths[i].clone()));
            }
        }
    }
    Ok(())
}

/// Refuses overlapping paths; `place` says where a path really is.
pub(super) fn check_overlap<P>(paths: &[PathBuf], mount_point: &Path, place: P) -> Result<(), SetupError>
where
    P: Fn(&Path) -> Result<PathBuf, SetupError>,
{
    let places: Vec<PathBuf> = paths.iter().map(|p| place(p)).collect::<Result<_, _>>()?;
    let point = place(mount_point)?;
    check_places(paths, &places)?;
    for (i, one) in places.iter().enumerate() {
        let relation = if *one == point {
            "is the"
        } else if one.starts_with(&point) {
            "lies below the"
        } else if point.starts_with(one) {
            "contains the"
        } else {
            continue;
        };
        return Err(SetupError::MountPoint {
            backing: paths[i].clone(),
            relation,
            point: mount_point.to_owned(),
        });
    }
    Ok(())
}

/// The path inside its file system, with the file system's number in front: the same for every bind mount.
pub(super) fn fs_path(path: &Path) -> Result<PathBuf, SetupError> {
    let inside = mountinfo::inside(path).map_err(|e| SetupError::Io(path.to_owned(), e))?;
    Ok(match inside {
        Some((mount, inner)) => {
            let device = format!("{}:{}", mount.device.0, mount.device.1);
            Path::new(&device).join(inner.strip_prefix("/").unwrap_or(&inner))
        }
        None => path.to_owned(),
    })
}

/// Refuses backings that are one directory by two names.
pub(super) fn check_same_inode(paths: &[PathBuf], mount_point: &Path) -> Result<(), SetupError> {
    let id = |path: &Path| {
        fs::metadata(path).map(|m| (m.dev(), m.ino())).map_err(|e| SetupError::Io(path.to_owned(), e))
    };
    let ids: Vec<_> = paths.iter().map(|p| id(p)).collect::<Result<_, _>>()?;
    // Where our own mount is by now, looking at it would be waiting for ourselves; and it's no backing.
    let mounted = mountinfo::mounted_at(mount_point).ok().flatten();
    let point = match mounted.is_some_and(|mount| mount.fs_type.starts_with("fuse.kvfs")) {
        true => None,
        false => Some(id(mount_point)?),
    };
    for (i, one) in ids.iter().enumerate() {
        if let Some(j) = ids[..i].iter().position(|other| other == one) {
            return Err(SetupError::Duplicate(paths[i].clone(), paths[j].clone()));
        }
        if Some(*one) == point {
            return Err(SetupError::MountPoint {
                backing: paths[i].clone(),
                relation: "is the",
                point: mount_point.to_owned(),
            });
        }
    }
    Ok(())
}
