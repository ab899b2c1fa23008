//! What is seen of a mount between two moments, as lines of text.
//!
//! What always holds: a number that isn't known is a dash and not 0; counters that are smaller than before are of a
//! daemon that has begun anew.

use crate::cli::stats::time;
use crate::cli::status::{bytes, duration};
use crate::control::BackingStatus;
use crate::metrics::Histogram;
use crate::printable::printable;

use super::sample::Sample;

/// Operations and processes that are shown.
const OPS: usize = 8;
const WRITERS: usize = 20;
/// A process that has made no file for so long, in seconds, isn't shown.
const SILENT: f64 = 60.0;

const REQUESTS: &str = "kvfs_request_duration_seconds";

/// What processes are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    /// Files made in a second.
    Files,
    /// Bytes written in a second.
    Bytes,
    /// Their ids.
    Pid,
}

impl Sort {
    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Files => "files/s",
            Sort::Bytes => "bytes/s",
            Sort::Pid => "pid",
        }
    }

    pub(super) fn next(self) -> Sort {
        match self {
            Sort::Files => Sort::Bytes,
            Sort::Bytes => Sort::Pid,
            Sort::Pid => Sort::Files,
        }
    }
}

/// Two moments.
pub(super) struct View<'a> {
    pub(super) before: &'a Sample,
    pub(super) now: &'a Sample,
    pub(super) sort: Sort,
}

/// A process on a backing, in the interval.
struct Line {
    pid: u32,
    name: String,
    gpu: Option<u64>,
    backing: u8,
    made: u64,
    files: f64,
    bytes: Option<f64>,
}

impl View<'_> {
    /// All lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = self.head();
        self.drives(&mut lines);
        self.ops(&mut lines);
        self.writers(&mut lines);
        lines
    }

    fn seconds(&self) -> f64 {
        self.now.at.saturating_duration_since(self.before.at).as_secs_f64().max(1e-3)
    }

    /// What a counter went up by in a second.
    fn rate(&self, now: f64, before: f64) -> f64 {
        (if now < before { now } else { now - before }) / self.seconds()
    }

    fn total(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let of = |sample: &Sample| sample.stats.metrics.total(name, labels);
        self.rate(of(self.now), of(self.before))
    }

    fn requests(&self, labels: &[(&str, &str)]) -> Histogram {
        let of = |sample: &Sample| sample.stats.metrics.histograms(REQUESTS, labels);
        of(self.now).since(&of(self.before))
    }

    fn head(&self) -> Vec<String> {
        let s = &self.now.status;
        let (hits, misses) = (
            self.total("kvfs_lookups_total", &[("result", "hit")]),
            self.total("kvfs_lookups_total", &[("result", "miss")]),
        );
        let hit = if hits + misses > 0.0 {
            format!("{:.0} % hit", 100.0 * hits / (hits + misses))
        } else {
            "none".into()
        };
        let passed = self.total("kvfs_opens_total", &[("path", "passthrough")]);
        let opened = self.total("kvfs_opens_total", &[]);
        let passed = if opened > 0.0 {
            format!("{:.0} % in passthrough", 100.0 * passed / opened)
        } else {
            "none".into()
        };
        let mut lines = vec![
            format!(
                "kvfs top  {}  kvfs {}  up {}  last {:.1} s",
                printable(s.mountpoint.as_os_str().as_encoded_bytes()),
                s.version,
                duration(s.uptime_s),
                self.seconds()
            ),
            format!(
                "lookups {:.0}/s ({hit})   opens {opened:.0}/s ({passed})   creates {:.0}/s   evicted {:.0}/s   open files {}   files {}",
                hits + misses,
                self.total("kvfs_files_created_total", &[]),
                self.total("kvfs_evicted_files_total", &[]),
                s.open_files,
                s.index.files
            ),
        ];
        lines.extend(s.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines.push(String::new());
        lines
    }

    fn drives(&self, lines: &mut Vec<String>) {
        lines.push(format!(
            "{:<4} {:<9} {:>11} {:>11} {:>7} {:>7} {:>5} {:>8} {:>7} {:>7} {:>10} {:>9} {:>8}  {}",
            "slot",
            "state",
            "read/s",
            "write/s",
            "io/s",
            "await",
            "queue",
            "req/s",
            "p50",
            "p99",
            "free",
            "files",
            "orphans",
            "backing"
        ));
        for b in &self.now.status.backings {
            let slot = b.slot.to_string();
            let requests = self.requests(&[("backing", &slot)]);
            let orphans = self.now.stats.metrics.total("kvfs_backing_orphans", &[("backing", &slot)]);
            let [read, written, ios, waited, queue] = self.drive(b);
            lines.push(format!(
                "{:<4} {:<9} {read:>11} {written:>11} {ios:>7} {waited:>7} {queue:>5} {:>8.0} {:>7} {:>7} {:>10} {:>9} {orphans:>8}  {}",
                slot,
                b.state,
                requests.count as f64 / self.seconds(),
                time(requests.quantile(0.5)),
                time(requests.quantile(0.99)),
                bytes(b.bytes_free),
                b.files,
                printable(b.path.as_os_str().as_encoded_bytes())
            ));
        }
        for b in &self.now.status.backings {
            if let Some(health) = &b.health {
                lines.push(format!("backing {}: {}; {}", b.slot, health.what, health.advice));
            }
        }
        lines.push(String::new());
    }

    /// What the drive of a backing has done: bytes read and written, requests, how long these took, and how many there
    /// are.
    fn drive(&self, b: &BackingStatus) -> [String; 5] {
        let (Some(now), Some(before)) = (self.now.drives.get(&b.slot), self.before.drives.get(&b.slot))
        else {
            return std::array::from_fn(|_| "-".into());
        };
        let ios = now.ios.saturating_sub(before.ios);
        let waited = now.waited_ms.saturating_sub(before.waited_ms) as f64 / 1000.0;
        [
            self.bytes_of(now.bytes_read, before.bytes_read),
            self.bytes_of(now.bytes_written, before.bytes_written),
            format!("{:.0}", self.rate(now.ios as f64, before.ios as f64)),
            time((ios > 0).then(|| waited / ios as f64)),
            now.in_flight.to_string(),
        ]
    }

    fn bytes_of(&self, now: u64, before: u64) -> String {
        bytes(self.rate(now as f64, before as f64) as u64)
    }

    fn ops(&self, lines: &mut Vec<String>) {
        let mut names: Vec<&str> = Vec::new();
        for sample in self.now.stats.metrics.samples(REQUESTS) {
            match sample.labels.get("op") {
                Some(op) if !names.contains(&op.as_str()) => names.push(op),
                _ => {}
            }
        }
        let mut ops: Vec<_> = names.into_iter().map(|op| (op, self.requests(&[("op", op)]))).collect();
        ops.retain(|(_, requests)| requests.count > 0);
        ops.sort_by_key(|(_, requests)| std::cmp::Reverse(requests.count));
        lines.push(format!("{:<16} {:>8} {:>8} {:>8}", "operation", "req/s", "p50", "p99"));
        for (op, requests) in ops.iter().take(OPS) {
            let rate = requests.count as f64 / self.seconds();
            let (p50, p99) = (time(requests.quantile(0.5)), time(requests.quantile(0.99)));
            lines.push(format!("{op:<16} {rate:>8.0} {p50:>8} {p99:>8}"));
        }
        lines.push(String::new());
    }

    fn writers(&self, lines: &mut Vec<String>) {
        let line = |w: &crate::metrics::Writer| {
            let is_same =
                |o: &&crate::metrics::Writer| (o.pid, o.backing, &o.name) == (w.pid, w.backing, &w.name);
            let before = self.before.stats.writers.iter().find(is_same).map_or(0, |before| before.files);
            let written = (self.now.written.get(&w.pid), self.before.written.get(&w.pid));
            Line {
                pid: w.pid,
                name: printable(w.name.as_bytes()),
                gpu: w.gpu,
                backing: w.backing,
                made: w.files,
                files: self.rate(w.files as f64, before as f64),
                bytes: written.0.zip(written.1).map(|(now, before)| self.rate(*now as f64, *before as f64)),
            }
        };
        let mut all: Vec<Line> =
            self.now.stats.writers.iter().filter(|w| w.idle_s < SILENT).map(line).collect();
        match self.sort {
            Sort::Files => all.sort_by(|a, b| b.files.total_cmp(&a.files)),
            Sort::Bytes => all.sort_by(|a, b| b.bytes.unwrap_or(-1.0).total_cmp(&a.bytes.unwrap_or(-1.0))),
            Sort::Pid => all.sort_by_key(|line| (line.pid, line.backing)),
        }
        lines.push(format!(
            "{:>8} {:<16} {:>4} {:>7} {:>9} {:>11} {:>9}",
            "pid", "who writes", "gpu", "backing", "files/s", "bytes/s", "files"
        ));
        for l in all.iter().take(WRITERS) {
            lines.push(format!(
                "{:>8} {:<16} {:>4} {:>7} {:>9.1} {:>11} {:>9}",
                l.pid,
                l.name,
                l.gpu.map_or_else(|| "-".into(), |gpu| gpu.to_string()),
                l.backing,
                l.files,
                l.bytes.map_or_else(|| "-".into(), |n| bytes(n as u64)),
                l.made
            ));
        }
        if all.len() > WRITERS {
            lines.push(format!("{:>8} more", all.len() - WRITERS));
        }
    }
}
