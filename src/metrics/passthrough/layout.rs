//! How the table is laid out that programs add to and the daemon reads.
//!
//! First the devices whose bytes are told apart, each a number of 32 bits, ended by 0 or by the table's room. Then rows, one for
//! each processor or for a few, so that processors seldom wait for each other's cache lines: bytes read and bytes written for each
//! device, and for all others together at the end.
//!
//! What always holds: a device keeps its place as long as the table lives.

use crate::index::MAX_BACKINGS;

/// More rows than this are no use: 256 of them are 272 KiB.
const MOST_ROWS: usize = 256;

/// Bytes of a row: a whole number of cache lines.
const ROW: usize = ((MAX_BACKINGS + 1) * 16).next_multiple_of(64);

/// Bytes of the devices.
const DEVICES: usize = MAX_BACKINGS * 4;

/// Sizes and places in the table; numbers as instructions take them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// How many devices there's room for.
    pub(super) entries: i32,
    /// Bytes of a row.
    pub(super) row: i32,
    /// Rows: a power of two.
    pub(super) shards: i32,
}

impl Layout {
    /// For a machine that can have this many processors.
    pub(super) fn new(processors: usize) -> Layout {
        let shards = processors.clamp(1, MOST_ROWS).next_power_of_two();
        Layout { entries: MAX_BACKINGS as i32, row: ROW as i32, shards: shards as i32 }
    }

    /// Of the whole table, in bytes.
    pub(super) fn len(&self) -> usize {
        DEVICES + self.shards as usize * ROW
    }

    /// Where the first row's first counter is.
    pub(super) fn counters(&self, written: bool) -> i16 {
        (DEVICES + if written { 8 } else { 0 }) as i16
    }

    /// Where the device in this place is.
    pub(super) fn device(&self, place: usize) -> usize {
        place * 4
    }

    /// Where all counters are of the device in this place; the place behind the last is that of all others.
    pub(super) fn all(&self, place: usize, written: bool) -> impl Iterator<Item = usize> {
        let first = self.counters(written) as usize + place * 16;
        (0..self.shards as usize).map(move |shard| first + shard * ROW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_nothing_is_outside() {
        for processors in [0, 1, 3, 64, 1000] {
            let layout = Layout::new(processors);
            let devices = (0..MAX_BACKINGS).map(|place| (layout.device(place), 4));
            let counters = (0..=MAX_BACKINGS)
                .flat_map(|place| [false, true].map(|written| layout.all(place, written)))
                .flatten()
                .map(|at| (at, 8));
            let mut all: Vec<_> = devices.chain(counters).collect();
            all.sort_unstable();
            assert!(all.is_sorted_by(|a, b| a.0 + a.1 <= b.0), "{processors} processors");
            assert!(all.last().is_some_and(|last| last.0 + last.1 <= layout.len()));
            assert!(layout.shards.cast_unsigned().is_power_of_two());
        }
    }
}
