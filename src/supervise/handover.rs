//! An upgrade: what the daemon that goes has written down of it for the one that comes.
//!
//! What always holds: it's written down before the parent hears of the new executable; whichever daemon comes up
//! next says what came of it, by what it is itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::State;

/// What came of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverOutcome {
    /// It's under way.
    Begun,
    /// The new executable serves.
    Done,
    /// The former one goes on, for this reason.
    Failed(String),
}

/// An upgrade, as `kvfs status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Which one: a number that whoever ordered it has chosen.
    pub id: uuid::Uuid,
    /// The version that served before.
    pub from: String,
    /// The version that was to serve.
    pub to: String,
    /// Its executable.
    pub executable: PathBuf,
    /// What became of it.
    pub outcome: HandoverOutcome,
    /// How long requests waited, in milliseconds; of one that is under way 0.
    pub pause_ms: u64,
    /// When it was ordered, in seconds since 1970.
    pub at: u64,
    /// The executable's file: device and inode.
    file: (u64, u64),
    /// Since when requests wait, by CLOCK_MONOTONIC in nanoseconds.
    waiting_since: u64,
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Which file this process is.
fn own_file() -> Option<(u64, u64)> {
    std::fs::metadata("/proc/self/exe").ok().map(|meta| (meta.dev(), meta.ino()))
}

impl Handover {
    /// Is ordered now.
    pub fn new(
        id: uuid::Uuid,
        versions: (String, String),
        path: PathBuf,
        executable: BorrowedFd<'_>,
    ) -> std::io::Result<Handover> {
        let stat = rustix::fs::fstat(executable.as_fd())?;
        let (from, to) = versions;
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Handover {
            id,
            from,
            to,
            executable: path,
            outcome: HandoverOutcome::Begun,
            pause_ms: 0,
            at: since_1970.map_or(0, |time| time.as_secs()),
            file: (stat.st_dev, stat.st_ino),
            waiting_since: now(),
        })
    }

    /// Requests wait from now on.
    pub fn pauses(&mut self) {
        self.waiting_since = now();
    }

    /// Writes it down. Failing that, nobody will hear of it.
    pub fn keep(&self, state: &State) {
        let kept = serde_json::to_vec(self).is_ok_and(|bytes| state.keep_handover(&bytes));
        if !kept {
            tracing::warn!("what comes of this upgrade can't be written down");
        }
    }

    /// The last one.
    pub fn last(state: &State) -> Option<Handover> {
        serde_json::from_slice(&state.handover()?).ok()
    }

    /// A daemon has come up: what it means for the upgrade that was under way, if one was. `fell_back`: the
    /// parent has gone back to the executable before.
    pub fn settle(state: &State, fell_back: bool) -> Option<Handover> {
        let mut last = Handover::last(state).filter(|last| last.outcome == HandoverOutcome::Begun)?;
        last.pause_ms = now().saturating_sub(last.waiting_since) / 1_000_000;
        last.outcome = if fell_back {
            HandoverOutcome::Failed("the new daemon ended before it was ready; its log says why".into())
        } else if own_file() == Some(last.file) {
            HandoverOutcome::Done
        } else {
            let own = std::fs::read_link("/proc/self/exe").unwrap_or_default();
            HandoverOutcome::Failed(format!(
                "the daemon that came up is {}, not that executable",
                own.display()
            ))
        };
        last.keep(state);
        Some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_daemon_says_what_came_of_it() {
        let state = State::create().unwrap();
        assert_eq!(Handover::settle(&state, false), None);
        let own = std::fs::File::open("/proc/self/exe").unwrap();
        let other = std::fs::File::open("/proc/self/status").unwrap();
        for (file, fell_back, done) in [(&own, false, true), (&own, true, false), (&other, false, false)] {
            let id = uuid::Uuid::new_v4();
            let versions = ("1".to_owned(), "2".to_owned());
            Handover::new(id, versions, "/x".into(), file.as_fd()).unwrap().keep(&state);
            assert_eq!(Handover::last(&state).unwrap().outcome, HandoverOutcome::Begun);
            let settled = Handover::settle(&state, fell_back).unwrap();
            assert_eq!((settled.id, settled.outcome == HandoverOutcome::Done), (id, done));
            assert_eq!(Handover::last(&state), Some(settled));
            assert_eq!(Handover::settle(&state, fell_back), None, "once");
        }
    }
}
