//! Which backings belong together, kept on each of them: so that an empty mount point isn't taken for a drive.
//!
//! What always holds: the list is whole or not there, and a list that can't be read says nothing. Backings that
//! others share have none: they belong to several sets.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat, renameat};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::marker::identity_of;
use super::{Backing, List};

/// The list's name in a backing's root.
pub(super) const MEMBERS: &str = ".kvfs-members";
const NEW: &str = ".kvfs-members.new";
/// A longer file is none of ours: 64 backings with the longest of paths.
const LONGEST: usize = 512 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    id: Uuid,
    path: PathBuf,
}

/// What is known of a set before its backings are opened.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Who was where, and who says so.
    were: Vec<(Member, PathBuf)>,
    /// Identities that are there.
    present: HashSet<Uuid>,
}

impl Known {
    /// Asks those of the directories that are backings.
    pub(super) fn ask(dirs: &[PathBuf]) -> Known {
        let mut known = Known::default();
        for dir in dirs {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(root) = rustix::fs::open(dir, flags, Mode::empty()) else { continue };
            let Ok(id) = identity_of(&root) else { continue };
            known.present.insert(id);
            let said = read(&root).unwrap_or_default();
            known.were.extend(said.into_iter().map(|member| (member, dir.clone())));
        }
        known
    }

    /// The backing that was at a path and is nowhere now, and one of the set that says so.
    pub(super) fn missing_at(&self, path: &Path) -> Option<(Uuid, &Path)> {
        let is_it =
            |(member, _): &&(Member, PathBuf)| member.path == path && !self.present.contains(&member.id);
        self.were.iter().find(is_it).map(|(member, by)| (member.id, &**by))
    }
}

fn read(root: impl AsFd) -> io::Result<Vec<Member>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(root, MEMBERS, flags, Mode::empty())?;
    let mut text = vec![0; LONGEST];
    let len = rustix::io::pread(&file, &mut text, 0)?;
    Ok(serde_json::from_slice(&text[..len])?)
}

fn write(backing: &Backing, members: &[Member]) -> io::Result<()> {
    if read(backing.root()).is_ok_and(|there| there == members) {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(backing.root(), NEW, flags, Mode::from_raw_mode(0o644))?;
    let mut text = serde_json::to_string(members)?;
    text.push('\n');
    let mut left = text.as_bytes();
    while !left.is_empty() {
        left = &left[rustix::io::write(&file, left)?..];
    }
    rustix::fs::fsync(&file)?;
    Ok(renameat(backing.root(), NEW, backing.root(), MEMBERS)?)
}

/// Lets each backing know which others there are. One that can't be written keeps what it has.
pub fn remember_members(backings: &List) {
    let member = |b: &std::sync::Arc<Backing>| Member { id: b.id(), path: b.path.clone() };
    let is_own = |b: &&std::sync::Arc<Backing>| !b.shared;
    let members: Vec<Member> = backings.iter().filter(is_own).map(member).collect();
    for backing in backings.iter().filter(is_own).filter(|b| b.health.takes_changes()) {
        if let Err(e) = write(backing, &members) {
            tracing::debug!("backing {}: {MEMBERS} can't be written: {e}", backing.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backings, Defaults, Spec, prepare};
    use super::*;

    #[test]
    fn those_that_are_there_tell_of_the_one_that_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let tmp = tmp.path().canonicalize().unwrap();
        std::fs::create_dir(tmp.join("mnt")).unwrap();
        let paths = [tmp.join("a"), tmp.join("b")];
        let specs = paths.clone().map(Spec::from);
        let (backings, made) = prepare(&specs, &tmp.join("mnt"), Defaults::default()).unwrap();
        let id = backings[1].id();
        remember_members(&Backings::new(backings, Vec::new()).list());
        made.keep();
        assert_eq!(Known::ask(&paths).missing_at(&paths[1]), None);
        std::fs::rename(&paths[1], tmp.join("c")).unwrap();
        assert_eq!(Known::ask(&paths).missing_at(&paths[1]), Some((id, &*paths[0])));
        assert_eq!(Known::ask(&paths).missing_at(&tmp.join("d")), None);
        // It's the same one at another path.
        let moved = [paths[0].clone(), tmp.join("c"), paths[1].clone()];
        assert_eq!(Known::ask(&moved).missing_at(&paths[1]), None);
        std::fs::write(tmp.join("a").join(MEMBERS), "what?").unwrap();
        assert_eq!(Known::ask(&paths).missing_at(&paths[1]), None);
    }
}
