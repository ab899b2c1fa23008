//! What a scan tells: how far it is, what it found, what it skipped.
//!
//! What always holds: however much is skipped, a hundred of it is kept, and the rest counted.

use std::fmt;
use std::time::Duration;

use super::Slot;

/// Something that could not be read, or is not shown.
#[derive(Clone, Debug)]
pub struct Problem {
    /// On which backing.
    pub slot: Slot,
    /// The path below the backing's root.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub what: String,
    /// It can be read, but something of the same name on another backing hides it.
    pub is_hidden: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", crate::printable::printable(&self.path), self.what)
    }
}

/// How far the scan is, told a few times a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Names read so far.
    pub names: u64,
    /// Time since the start.
    pub elapsed: Duration,
}

/// What the scan found.
#[derive(Debug, Default)]
pub struct Report {
    /// Names read, on all backings.
    pub names: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What was skipped.
    pub problems: Vec<Problem>,
    /// How many more there were than `problems` keeps.
    pub more_problems: u64,
    /// Paths of what work that was cut off has left.
    pub leftovers: Vec<(Slot, Vec<u8>)>,
}

impl Report {
    const KEPT: usize = 100;

    pub(super) fn add(&mut self, problem: Problem) {
        if self.problems.len() < Self::KEPT {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }

    /// Everything that was skipped.
    pub fn unreadable(&self) -> u64 {
        self.problems.len() as u64 + self.more_problems
    }
}
