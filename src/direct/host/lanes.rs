//! Writes of one file that go past the page cache, and those that go through it, apart from each other.
//!
//! A direct write throws the pages of its range out of the cache when it has ended. Where a buffered write has
//! made one dirty meanwhile (the same page, or another of the same folio) it can't: the cache keeps old bytes,
//! writes them over the new ones later, and the next fsync fails with EIO (dio_warn_stale_pagecache in
//! mm/filemap.c). What always holds: of one file either direct writes are under way or buffered ones; whoever
//! waits has a turn.

use std::collections::{HashMap, VecDeque};

/// Which way a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Past the page cache.
    Direct,
    /// Through it.
    Cached,
}

/// Bytes of a page: what one write alone has of a file, at least.
pub(super) fn page_size() -> u64 {
    // SAFETY: an integer in, an integer out.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(super::PAGE)
}

struct File {
    lane: Lane,
    running: usize,
    waiting: VecDeque<(usize, Lane)>,
}

/// Writes under way, by file.
#[derive(Default)]
pub(super) struct Lanes(HashMap<u64, File>);

impl Lanes {
    /// Whether a write of the file may start; if not, it's told by [`Lanes::leave`] when.
    pub(super) fn enter(&mut self, file: u64, write: usize, lane: Lane) -> bool {
        let state = self.0.entry(file).or_insert(File { lane, running: 0, waiting: VecDeque::new() });
        if state.running == 0 && state.waiting.is_empty() {
            state.lane = lane;
        }
        // Behind those that wait, or they'd wait for ever.
        if state.lane != lane || !state.waiting.is_empty() {
            state.waiting.push_back((write, lane));
            return false;
        }
        state.running += 1;
        true
    }

    /// A write of the file has ended; says which may start now.
    pub(super) fn leave(&mut self, file: u64) -> Vec<usize> {
        let mut next = Vec::new();
        let Some(state) = self.0.get_mut(&file) else { return next };
        state.running -= 1;
        if state.running == 0
            && let Some((_, lane)) = state.waiting.front()
        {
            state.lane = *lane;
            while let Some((write, _)) = state.waiting.front().filter(|(_, lane)| *lane == state.lane) {
                next.push(*write);
                state.waiting.pop_front();
            }
            state.running = next.len();
        }
        if state.running == 0 {
            self.0.remove(&file);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::Lane::*;
    use super::*;

    #[test]
    fn one_lane_at_a_time_and_everybody_has_a_turn() {
        let mut lanes = Lanes::default();
        assert!(lanes.enter(7, 0, Direct));
        assert!(lanes.enter(7, 1, Direct));
        assert!(!lanes.enter(7, 2, Cached));
        assert!(!lanes.enter(7, 3, Direct), "behind the one that waits");
        assert!(!lanes.enter(7, 4, Cached));
        assert!(lanes.enter(8, 5, Cached), "another file");
        assert!(lanes.leave(7).is_empty());
        assert_eq!(lanes.leave(7), [2]);
        assert_eq!(lanes.leave(7), [3]);
        assert_eq!(lanes.leave(7), [4]);
        assert!(lanes.leave(7).is_empty());
        assert!(lanes.leave(8).is_empty());
        assert!(lanes.0.is_empty());
    }
}
