//! How long things took: counts in cells that grow with the time.
//!
//! What always holds: a cell is a quarter of a power of two wide, from a quarter of a microsecond on, so a quantile is
//! right within an eighth; what took longer than [`LONGEST`] is in the last cell. Adding is two additions, and reading
//! doesn't stop them: a sum may be a request ahead of its count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The smallest unit, in nanoseconds.
const UNIT: u64 = 250;
/// Powers of two of a microsecond that have an edge: 1 us to 2^24 us, 16.8 s.
const EDGES: usize = 25;
/// Four before the first edge, four from each edge to the next, and one for what is longer.
const CELLS: usize = 4 * EDGES + 1;

/// What took longer is counted as that long, and no more is known of it.
const LONGEST: Duration = Duration::from_micros(1 << (EDGES - 1));

/// The cells as they're counted.
pub(super) struct Cells {
    cells: [AtomicU64; CELLS],
    nanos: AtomicU64,
}

impl Default for Cells {
    fn default() -> Cells {
        Cells { cells: super::zeros(), nanos: AtomicU64::new(0) }
    }
}

impl Cells {
    pub(super) fn add(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.cells[cell_of(nanos)].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }
}

/// The cell that so many nanoseconds are counted in.
fn cell_of(nanos: u64) -> usize {
    let quarters = nanos / UNIT;
    if quarters < 4 {
        return quarters as usize;
    }
    let power = quarters.ilog2() as usize;
    let cell = 4 * (power - 1) + ((quarters >> (power - 2)) & 3) as usize;
    cell.min(CELLS - 1)
}

/// Where a cell ends, in seconds: what is as long is in the next one. The last one ends nowhere.
fn end_of(cell: usize) -> f64 {
    let quarters = match cell {
        0..4 => cell as u64 + 1,
        CELLS.. => return f64::INFINITY,
        _ if cell == CELLS - 1 => return f64::INFINITY,
        _ => (5 + (cell as u64 & 3)) << (cell / 4 - 1),
    };
    (quarters * UNIT) as f64 / 1e9
}

/// A histogram of seconds, as it was at a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many there were.
    pub count: u64,
    /// Seconds that all took together.
    pub sum: f64,
    /// Cells with something in them: number and count.
    pub cells: Vec<(u8, u64)>,
}

impl Histogram {
    pub(super) fn sum_of<'a>(all: impl Iterator<Item = &'a Cells>) -> Histogram {
        let (mut cells, mut nanos) = ([0u64; CELLS], 0u64);
        for one in all {
            nanos = nanos.wrapping_add(one.nanos.load(Relaxed));
            cells.iter_mut().zip(&one.cells).for_each(|(sum, n)| *sum += n.load(Relaxed));
        }
        Histogram::of(cells, nanos as f64 / 1e9)
    }

    fn of(cells: [u64; CELLS], sum: f64) -> Histogram {
        let there = cells.iter().enumerate().filter(|(_, n)| **n > 0).map(|(cell, n)| (cell as u8, *n));
        Histogram { count: cells.iter().sum(), sum, cells: there.collect() }
    }

    fn spread(&self) -> [u64; CELLS] {
        let mut cells = [0; CELLS];
        for (cell, n) in &self.cells {
            if let Some(sum) = cells.get_mut(usize::from(*cell)) {
                *sum += n;
            }
        }
        cells
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Histogram) -> Histogram {
        let (mut cells, others) = (self.spread(), other.spread());
        cells.iter_mut().zip(others).for_each(|(sum, n)| *sum += n);
        Histogram::of(cells, self.sum + other.sum)
    }

    /// What came since an earlier one. All of it, where the daemon has begun anew meanwhile.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        if earlier.count > self.count {
            return self.clone();
        }
        let (mut cells, before) = (self.spread(), earlier.spread());
        cells.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(before));
        Histogram::of(cells, (self.sum - earlier.sum).max(0.0))
    }

    /// The mean in seconds; `None` of nothing.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// The time in seconds that the share `q` of all took at most; `None` of nothing. 16.8 s
    /// where it's longer.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total: u64 = self.cells.iter().map(|(_, n)| n).sum();
        let wanted = (q * total as f64).max(f64::MIN_POSITIVE);
        let mut before = 0;
        for (cell, n) in &self.cells {
            if (before + n) as f64 >= wanted {
                let cell = usize::from(*cell);
                let begin = if cell == 0 { 0.0 } else { end_of(cell - 1) };
                let end = end_of(cell);
                if end.is_infinite() {
                    return Some(LONGEST.as_secs_f64());
                }
                return Some(begin + (end - begin) * (wanted - before as f64) / *n as f64);
            }
            before += n;
        }
        None
    }

    /// How many took less than each power of two of a microsecond, in seconds; the last edge is infinity.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let cells = self.spread();
        let mut below = 0;
        (0..=EDGES).map(move |edge| {
            below += cells[4 * edge..].iter().take(4).sum::<u64>();
            (if edge == EDGES { f64::INFINITY } else { end_of(4 * edge + 3) }, below)
        })
    }
}
