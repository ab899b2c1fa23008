//! Samples of ways that take turns, and what is told of them.
//!
//! What always holds: the ways of one comparison are measured in turns, each round beginning with another, so
//! that what else the machine does meets them all; what is told is the median.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::Failure;

/// One way's result in one comparison.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// What was done: `no-op`, `read`, `write`, `batch read`.
    pub(super) what: &'static str,
    /// By which way.
    pub(super) way: String,
    /// Bytes of one op.
    pub(super) size: u64,
    /// Ops of one call.
    pub(super) ops: u64,
    /// Median time of a call, in microseconds.
    pub(super) p50_us: f64,
    /// 99th percentile of it.
    pub(super) p99_us: f64,
    /// Bytes per second at the median.
    pub(super) rate: f64,
    /// The rate (for a no-op: the speed) relative to the first way of the comparison.
    pub(super) ratio: f64,
}

impl Row {
    /// What was done: `read 1M`, `batch read 64 x 64K`.
    pub(super) fn title(&self) -> String {
        match (self.size, self.ops) {
            (0, _) => self.what.to_owned(),
            (size, 1) => format!("{} {}", self.what, short(size)),
            (size, ops) => format!("{} {ops} x {}", self.what, short(size)),
        }
    }
}

fn short(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{}M", bytes >> 20) } else { format!("{}K", bytes >> 10) }
}

/// Sizes as the operator writes them.
pub(super) fn sizes(texts: &[String]) -> Result<Vec<u64>, Failure> {
    let size = |text: &String| {
        let bytes = crate::backing::parse_bytes(text).map_err(Failure::bad_value)?;
        let possible = bytes > 0 && bytes.is_multiple_of(4096) && bytes <= 256 << 20;
        possible.then_some(bytes).ok_or_else(|| {
            Failure::bad_value(format!("--size {text}: a multiple of 4K, up to 256M, can be measured"))
        })
    };
    texts.iter().map(size).collect()
}

/// A way with its name; it's given the number of the round.
pub(super) type Way<'a> = (String, Box<dyn FnMut(usize) -> Result<(), String> + 'a>);

/// Measures ways in turns.
pub(super) fn compare(
    what: &'static str,
    size: u64,
    ops: u64,
    rounds: usize,
    ways: &mut [Way<'_>],
) -> Result<Vec<Row>, String> {
    let mut times: Vec<Vec<Duration>> = vec![Vec::with_capacity(rounds); ways.len()];
    // What is done the first time only isn't measured.
    for (_, way) in ways.iter_mut() {
        way(0)?;
    }
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let at = (turn + round) % ways.len();
            let began = Instant::now();
            (ways[at].1)(round)?;
            times[at].push(began.elapsed());
        }
    }
    let percentile = |times: &[Duration], share: f64| {
        let at = (times.len() as f64 * share) as usize;
        times[at.min(times.len() - 1)].as_secs_f64() * 1e6
    };
    let mut rows = Vec::new();
    let mut first = None;
    for ((name, _), times) in ways.iter().zip(&mut times) {
        times.sort_unstable();
        let p50_us = percentile(times, 0.5);
        let first = *first.get_or_insert(p50_us);
        rows.push(Row {
            what,
            way: name.clone(),
            size,
            ops,
            p50_us,
            p99_us: percentile(times, 0.99),
            rate: (size * ops) as f64 / p50_us * 1e6,
            ratio: first / p50_us,
        });
    }
    Ok(rows)
}
