//! What a daemon that died was in the middle of, by what the disks say.
//!
//! What always holds: this is done before the backings are read, so the index begins with what it leaves
//! behind. What was begun on several backings is brought to its end; what wasn't begun, or can be done again as
//! a whole, is left to be done when its request comes again. Paths lead through no symbolic link and out of no
//! backing.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::attr::stat_at;
use crate::backing::{Backing, open_dir_below};
use crate::supervise::{Intent, Outcome, State, Work, name_hash};

/// Settles all that was begun.
pub(super) fn settle_all(backings: &[Backing], state: &State, work: &Work) {
    if !state.is_recovered() {
        return;
    }
    work.take_over(|intent| {
        let outcome = Disks(backings).settle(intent, state);
        tracing::debug!("was begun when the daemon died, and is {outcome:?}: {intent:?}");
        outcome
    });
}

struct Disks<'a>(&'a [Backing]);

/// A name on one backing, with its directory.
type Named<'p> = (OwnedFd, &'p [u8]);

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b".", path),
    }
}

impl Disks<'_> {
    fn on(&self, slot: u8) -> Option<&Backing> {
        self.0.iter().find(|backing| backing.slot.0 == slot)
    }

    fn named<'p>(&self, backing: &Backing, path: &'p [u8]) -> Option<Named<'p>> {
        let (dir, name) = split(path);
        Some((open_dir_below(backing.root(), dir).ok()?, name))
    }

    /// The inode of a path on a backing; 0 where it isn't.
    fn ino(&self, backing: &Backing, path: &[u8]) -> u64 {
        let stat = self.named(backing, path).and_then(|(dir, name)| stat_at(&dir, name).ok());
        stat.map_or(0, |stat| stat.stx_ino)
    }

    fn is_anywhere(&self, path: &[u8]) -> bool {
        self.0.iter().any(|backing| self.ino(backing, path) != 0)
    }

    fn settle(&self, intent: &Intent, state: &State) -> Outcome {
        let done = match intent {
            Intent::Make(path) | Intent::Link(path) => self.is_anywhere(path),
            Intent::Remove(path) => !self.is_anywhere(path),
            Intent::RenameFile { from, to, slot, ino } => self.finish_file(from, to, *slot, *ino),
            Intent::RenameDir { dir, from, to, slots } => self.finish_dir(*dir, from, to, *slots, state),
            Intent::Exchange { from, to, sides } => self.finish_exchange(from, to, *sides),
            Intent::Attribute => false,
        };
        if done { Outcome::Done } else { Outcome::Open }
    }

    /// A file that has its new name: what it replaced on other backings goes.
    fn finish_file(&self, from: &[u8], to: &[u8], slot: u8, ino: u64) -> bool {
        let moved = |backing: &Backing| self.ino(backing, to) == ino && self.ino(backing, from) != ino;
        if !self.on(slot).is_some_and(moved) {
            return false;
        }
        for other in self.0.iter().filter(|backing| backing.slot.0 != slot && !backing.shared) {
            if let Some((dir, name)) = self.named(other, to) {
                // A directory there is somebody else's.
                let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
            }
        }
        true
    }

    /// A directory that has its new name on one backing gets it on all.
    fn finish_dir(&self, dir: u32, from: &[u8], to: &[u8], slots: u64, state: &State) -> bool {
        let all = || self.0.iter().filter(|backing| slots >> backing.slot.0 & 1 == 1);
        let moved = |backing: &Backing| self.ino(backing, to) != 0 && self.ino(backing, from) == 0;
        if !all().any(moved) {
            return false;
        }
        for backing in all().filter(|backing| !moved(backing)) {
            self.rename(backing, from, to, RenameFlags::NOREPLACE);
        }
        move_number(dir, from, to, state);
        true
    }

    fn rename(&self, backing: &Backing, from: &[u8], to: &[u8], flags: RenameFlags) {
        let (Some(from), Some(to)) = (self.named(backing, from), self.named(backing, to)) else { return };
        match rustix::fs::renameat_with(&from.0, from.1, &to.0, to.1, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => tracing::error!(
                "backing {}: a rename that was cut off can't be brought to its end: {e}",
                backing.path.display()
            ),
        }
    }

    /// Two names that were changing places. One of two files on different backings is linked to its new name
    /// first, then the other goes to its own, then the first loses its old one.
    fn finish_exchange(&self, from: &[u8], to: &[u8], sides: [(u8, u64); 2]) -> bool {
        let [(a, ino_a), (b, ino_b)] = sides;
        let (Some(on_a), Some(on_b)) = (self.on(a), self.on(b)) else { return false };
        if a == b {
            return self.ino(on_a, from) == ino_b && self.ino(on_a, to) == ino_a;
        }
        if self.ino(on_a, to) != ino_a {
            return false;
        }
        if self.ino(on_b, to) == ino_b {
            self.rename(on_b, to, from, RenameFlags::NOREPLACE);
        }
        if self.ino(on_a, from) == ino_a
            && let Some((dir, name)) = self.named(on_a, from)
        {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        }
        true
    }
}

/// The directory's number goes with it.
fn move_number(dir: u32, from: &[u8], to: &[u8], state: &State) {
    let dirs = state.dirs();
    let find = |parent: u32, name: &[u8]| {
        let hash = name_hash(name);
        dirs.iter().find(|(above, at, ..)| *above == parent && *at == hash).map(|(.., id, at)| (*id, *at))
    };
    let parent_of = |path: &[u8]| -> Option<u32> {
        let above = split(path).0;
        if above == b"." {
            return Some(0);
        }
        above.split(|b| *b == b'/').try_fold(0, |parent, name| find(parent, name).map(|(id, _)| id))
    };
    let old = parent_of(from).and_then(|parent| find(parent, split(from).1));
    if let (Some((id, at)), Some(parent)) = (old, parent_of(to))
        && id == dir
    {
        state.keep_dir(dir, parent, split(to).1);
        state.drop_dir(at);
    }
}
