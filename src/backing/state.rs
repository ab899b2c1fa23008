//! What a backing takes, as the operator has set it.
//!
//! What always holds: files can be read in every state. A state says nothing of the drive's health.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// What a backing takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum State {
    /// New files and changes.
    #[default]
    ReadWrite = 0,
    /// Changes of the files that it has (written, renamed, removed), no new ones.
    NoCreate = 1,
    /// Neither.
    ReadOnly = 2,
    /// No new files; those that it has are being moved to others.
    Draining = 3,
}

impl State {
    const ALL: [State; 4] = [State::ReadWrite, State::NoCreate, State::ReadOnly, State::Draining];

    /// Its name: `rw`, `no-create`, `ro`, `draining`.
    pub fn name(self) -> &'static str {
        match self {
            State::ReadWrite => "rw",
            State::NoCreate => "no-create",
            State::ReadOnly => "ro",
            State::Draining => "draining",
        }
    }

    /// Whether new files may be made there.
    pub fn takes_new_files(self) -> bool {
        self == State::ReadWrite
    }

    /// Whether files there may be changed and removed.
    pub fn takes_changes(self) -> bool {
        self != State::ReadOnly
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for State {
    type Err = String;

    /// The states that an operator can set; `draining` is the work of a drain.
    fn from_str(text: &str) -> Result<State, String> {
        let found = State::ALL.into_iter().find(|s| s.name() == text && *s != State::Draining);
        found.ok_or_else(|| format!("{text:?} is no state of a backing; there are rw, no-create and ro"))
    }
}

/// A state that changes while others look.
#[derive(Debug, Default)]
pub(super) struct StateCell(AtomicU8);

impl StateCell {
    pub(super) fn new(state: State) -> StateCell {
        StateCell(AtomicU8::new(state as u8))
    }

    pub(super) fn get(&self) -> State {
        State::ALL.get(usize::from(self.0.load(Relaxed))).copied().unwrap_or_default()
    }

    pub(super) fn set(&self, state: State) {
        self.0.store(state as u8, Relaxed);
    }
}
