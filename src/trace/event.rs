//! What those who look on hear, and what they want to hear.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Begun;
use crate::control::Name;

/// An operation that was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it began, in microseconds since 1970.
    pub at_us: u64,
    /// Which.
    pub op: String,
    /// The path in the mount; absent where it can't be told.
    pub path: Option<Name>,
    /// Where a rename or a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// The calling process; 0 if it can't be seen.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The backing.
    pub backing: Option<u8>,
    /// 0, or the errno of the answer.
    pub errno: i32,
    /// From its coming to its answer, in microseconds.
    pub took_us: u64,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// From now on all is told.
    Begins,
    /// This has happened.
    Event(Event),
    /// So many operations found no room in the queue.
    Lost(u64),
}

/// Which operations are told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Of these names; empty for all.
    pub ops: Vec<String>,
    /// Whose path in the mount matches this pattern (`*` stays within a directory, `**` doesn't).
    pub path: Option<String>,
    /// Of this process.
    pub pid: Option<u32>,
    /// On this backing.
    pub backing: Option<u8>,
    /// That took so many microseconds or more.
    pub slow_us: Option<u64>,
    /// That failed.
    pub errors: bool,
}

impl Filter {
    /// Whether an operation may be told.
    pub(super) fn has_op(&self, op: &str) -> bool {
        self.ops.is_empty() || self.ops.iter().any(|wanted| wanted == op)
    }

    /// Whether it may be told, as far as that's known when it's answered.
    pub(super) fn takes(&self, begun: &Begun, errno: i32, took: Duration) -> bool {
        self.has_op(begun.op)
            && self.pid.is_none_or(|pid| pid == begun.pid)
            && (!self.errors || errno != 0)
            && self.slow_us.is_none_or(|least| took.as_micros() >= u128::from(least))
    }
}
