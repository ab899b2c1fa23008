//! All that a mount counts, put together from the rooms that count it.
//!
//! What always holds: every metric is in docs/METRICS.md (a test compares them); a family is told though it has no
//! sample; what isn't known isn't told as 0.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::status::BackingStatus;
use super::{HealthStatus, Status};
use crate::fs::{Fs, Op};
use crate::index::Slot;
use crate::metrics::{Families, Mover, PassedThrough, Writer};
use crate::placement::Reason;

/// What a mount has counted, as `kvfs stats --json` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// When that was, in seconds since 1970.
    pub at: f64,
    /// The counters.
    pub metrics: Families,
    /// Who made files lately; who did last comes first.
    pub writers: Vec<Writer>,
    /// Why bytes that the kernel moves by itself aren't known, if they aren't.
    #[serde(default)]
    pub passthrough_unknown: Option<String>,
    /// How the mount was then, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Status>>,
}

/// One of bytes read and bytes written.
type Which = fn(u64, u64) -> u64;
/// A number of a backing.
type Of<'a> = &'a dyn Fn(&BackingStatus) -> f64;

/// What `backing` says of requests that were at none.
const NONE: &str = "none";

impl Stats {
    /// Puts together what is counted in the filesystem and what its status tells.
    pub fn of(fs: &Fs, status: &Status) -> Stats {
        let mut all = Families::default();
        daemon(&mut all, fs, status);
        requests(&mut all, fs, status);
        let passthrough_unknown = bytes(&mut all, fs, status);
        placement(&mut all, fs, status);
        backings(&mut all, fs, status);
        files(&mut all, status);
        retention(&mut all, status);
        direct(&mut all, status);
        Stats {
            at: seconds(SystemTime::now()),
            metrics: all,
            writers: fs.metrics.writers.recent(),
            passthrough_unknown,
            status: None,
        }
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn on(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

fn daemon(all: &mut Families, fs: &Fs, s: &Status) {
    let passthrough = if s.passthrough.on { "on" } else { "off" };
    all.gauge("kvfs_info", "The mount and its daemon; the value is 1.").with(
        &[
            ("version", &s.version),
            ("mountpoint", &s.mountpoint.to_string_lossy()),
            ("placement", &s.placement),
            ("transport", &s.transport),
            ("io_engine", &s.io_engine),
            ("passthrough", passthrough),
        ],
        1.0,
    );
    all.gauge(
        "kvfs_start_time_seconds",
        "When the daemon started to serve, in seconds since 1970: counters begin then.",
    )
    .is(seconds(fs.metrics.since));
    let restarts = s.supervised.daemons.saturating_sub(1);
    all.counter("kvfs_daemon_restarts_total", "Daemons of the mount before this one: crashes and upgrades.")
        .is(f64::from(restarts));
    all.counter("kvfs_panics_total", "Requests that failed by a fault in kvfs.").is(s
        .ops
        .get("panics")
        .copied()
        .unwrap_or_default()
        as f64);
}

fn requests(all: &mut Families, fs: &Fs, s: &Status) {
    let mut took = all.histogram(
        "kvfs_request_duration_seconds",
        "Time from reading a request of the kernel to its answer, by operation and by the backing that it was at last (none: answered from memory).",
    );
    for (op, slot, histogram) in fs.metrics.requests() {
        let Some(op) = Op::from_number(op) else { continue };
        let backing = slot.map_or_else(|| NONE.to_owned(), |slot| slot.0.to_string());
        took.took(&[("op", op.name()), ("backing", &backing)], histogram);
    }
    let (found, missed) = fs.metrics.lookups();
    all.counter("kvfs_lookups_total", "Names that the kernel asked for, by whether they were there.")
        .with(&[("result", "hit")], found as f64)
        .with(&[("result", "miss")], missed as f64);
    let op = |name: &str| s.ops.get(name).copied().unwrap_or_default() as f64;
    all.counter(
        "kvfs_opens_total",
        "Files opened, by who moves their data: the kernel (passthrough) or the daemon.",
    )
    .with(&[("path", "passthrough")], op("opens_passed_through"))
    .with(&[("path", "daemon")], op("opens_by_daemon"));
}

/// Why the kernel's part isn't known, if it isn't.
fn bytes(all: &mut Families, fs: &Fs, s: &Status) -> Option<String> {
    let (mut passed, mut uncounted, mut unknown) = (Vec::new(), None, None);
    match fs.metrics.passed_through() {
        Some(PassedThrough::Counted { bytes, missed }) => {
            passed = bytes;
            uncounted = missed;
        }
        Some(PassedThrough::Unknown(why)) => unknown = Some(why),
        None => unknown = Some("nothing here counts what the kernel moves by itself".into()),
    }
    let directions: [(&str, &str, Which); 2] = [
        (
            "kvfs_read_bytes_total",
            "Bytes read from files by clients, by backing and by who moved them: the daemon, the ioctl fast path (direct), or the kernel (passthrough; absent where that can't be counted). Reads of pages that the kernel has aren't in it.",
            |read, _| read,
        ),
        (
            "kvfs_written_bytes_total",
            "Bytes written to files by clients, by backing and by who moved them: the daemon, the ioctl fast path (direct), or the kernel (passthrough; absent where that can't be counted).",
            |_, written| written,
        ),
    ];
    for (name, help, which) in directions {
        let mut family = all.counter(name, help);
        for b in &s.backings {
            for by in Mover::ALL {
                let (read, written) = fs.metrics.bytes(by, Slot(b.slot));
                let labels = [("backing", &*b.slot.to_string()), ("path", by.name())];
                family.with(&labels, which(read, written) as f64);
            }
        }
        for (slot, read, written) in &passed {
            let labels = [("backing", &*slot.to_string()), ("path", "passthrough")];
            family.with(&labels, which(*read, *written) as f64);
        }
    }
    let mut missed = all.counter(
        "kvfs_passthrough_uncounted_calls_total",
        "Reads and writes by the kernel itself that weren't counted, at most; absent where none can be counted.",
    );
    if let Some(calls) = uncounted {
        missed.is(calls as f64);
    }
    unknown
}

fn placement(all: &mut Families, fs: &Fs, s: &Status) {
    let mut created = all.counter("kvfs_files_created_total", "Files created, by backing and why there.");
    for b in &s.backings {
        for (code, n) in fs.metrics.creates(Slot(b.slot)) {
            let reason = Reason::from_code(code).map_or("unknown", Reason::name);
            created.with(&[("backing", &b.slot.to_string()), ("reason", reason)], n as f64);
        }
    }
    all.counter(
        "kvfs_processes_with_random_names_total",
        "Processes that named files by hashes which no other process repeats (PYTHONHASHSEED isn't set).",
    )
    .is(fs.metrics.random_names.processes() as f64);
}

fn backings(all: &mut Families, fs: &Fs, s: &Status) {
    let mut info = all.gauge("kvfs_backing_info", "A backing; the value is 1.");
    for b in &s.backings {
        let (slot, path) = (b.slot.to_string(), b.path.to_string_lossy());
        info.with(&[("backing", &slot), ("path", &path), ("fs", &b.fs), ("id", &b.id)], 1.0);
    }
    let is_up = |b: &BackingStatus| b.health.as_ref().is_none_or(HealthStatus::answers);
    let files = |b: &BackingStatus| b.files as f64;
    let each: [(&str, &str, Of<'_>); 8] = [
        ("kvfs_backing_up", "Whether the backing's drive answers.", &|b| on(is_up(b))),
        ("kvfs_backing_writable", "Whether new files may go to the backing.", &|b| on(b.state == "rw")),
        ("kvfs_backing_passthrough", "Whether the kernel moves the backing's data by itself.", &|b| {
            on(b.passthrough.on)
        }),
        ("kvfs_backing_files", "Files on the backing.", &files),
        ("kvfs_backing_size_bytes", "Size of the backing's file system.", &|b| b.bytes_total as f64),
        ("kvfs_backing_used_bytes", "What is used of it, by whatever.", &|b| b.bytes_used as f64),
        ("kvfs_backing_free_bytes", "What is free of it.", &|b| b.bytes_free as f64),
        ("kvfs_backing_reserve_bytes", "What stays free of it.", &|b| b.min_free as f64),
    ];
    for (name, help, value) in each {
        let mut family = all.gauge(name, help);
        for b in &s.backings {
            family.with(&[("backing", &b.slot.to_string())], value(b));
        }
    }
    let mut faults =
        all.counter("kvfs_backing_errors_total", "Errors of the backing's drive that requests have met.");
    for b in &s.backings {
        faults.with(&[("backing", &b.slot.to_string())], fs.metrics.faults(Slot(b.slot)) as f64);
    }
}

fn files(all: &mut Families, s: &Status) {
    let index = &s.index;
    let gauges = [
        ("kvfs_open_files", "Files that clients have open.", s.open_files),
        ("kvfs_index_files", "Names of files in the index.", index.files),
        ("kvfs_index_directories", "Directories in the index.", index.dirs),
        ("kvfs_index_shadows", "Copies of a file behind another backing's of the same name.", index.shadows),
        ("kvfs_index_unreadable", "Names that couldn't be read when the mount started.", index.unreadable),
        ("kvfs_unpublished_files", "New files that others don't see yet.", s.publish.unpublished as u64),
    ];
    for (name, help, value) in gauges {
        all.gauge(name, help).is(value as f64);
    }
    all.gauge("kvfs_index_scan_seconds", "How long the reading of the backings at the start took.")
        .is(index.scan_ms as f64 / 1000.0);
    all.counter("kvfs_torn_files_removed_total", "Files removed because their writer never closed them.")
        .with(&[("when", "start")], s.publish.dropped_at_start as f64)
        .with(&[("when", "served")], s.publish.dropped as f64);
    let quotas = || s.rules.iter().filter_map(|rule| Some((rule, rule.quota?)));
    let mut limit = all.gauge("kvfs_directory_quota_bytes", "What the files of a directory may take.");
    quotas().for_each(|(rule, quota)| {
        limit.with(&[("directory", &format!("/{}", rule.path.display()))], quota as f64);
    });
    let mut used = all.gauge("kvfs_directory_used_bytes", "What the files of a directory with a quota take.");
    quotas().for_each(|(rule, _)| {
        let path = format!("/{}", rule.path.display());
        used.with(&[("directory", &path)], rule.used.unwrap_or_default() as f64);
    });
}

fn retention(all: &mut Families, s: &Status) {
    let r = &s.retention;
    let mut orphans =
        all.gauge("kvfs_backing_orphans", "Files on the backing that nobody can read any more.");
    for b in &r.backings {
        orphans.with(&[("backing", &b.slot.to_string())], b.orphans as f64);
    }
    let mut spare = all.gauge("kvfs_backing_spare_bytes", "What new files may still use of the backing.");
    for b in &r.backings {
        spare.with(&[("backing", &b.slot.to_string())], b.spare as f64);
    }
    all.gauge("kvfs_evicting", "Whether files are being evicted, or are about to be.").is(on(r.evicting));
    all.counter("kvfs_evicted_files_total", "Files evicted: orphans, or the least recently used.")
        .with(&[("reason", "orphan")], r.evicted_orphans as f64)
        .with(&[("reason", "lru")], r.evicted_lru as f64);
    let counters = [
        ("kvfs_evicted_bytes_total", "Bytes that evicted files took.", r.evicted_bytes),
        ("kvfs_eviction_errors_total", "Files that a backing refused to remove.", r.failed),
        ("kvfs_creates_waited_total", "Creates that had to wait for room.", r.waited),
        ("kvfs_creates_refused_total", "Creates that found no room in the end.", r.refused),
    ];
    for (name, help, value) in counters {
        all.counter(name, help).is(value as f64);
    }
}

fn direct(all: &mut Families, s: &Status) {
    let (d, c) = (&s.direct, &s.direct.counts);
    all.counter("kvfs_direct_calls_total", "Calls of the ioctl fast path, by whether they were accepted.")
        .with(&[("result", "accepted")], c.calls.saturating_sub(c.refused) as f64)
        .with(&[("result", "refused")], c.refused as f64);
    all.counter("kvfs_direct_ops_total", "Transfers of the fast path: a call has up to 127.")
        .with(&[("op", "read"), ("result", "done")], c.reads as f64)
        .with(&[("op", "write"), ("result", "done")], c.writes as f64)
        .with(&[("op", "any"), ("result", "failed")], c.failed as f64);
    let gauges = [
        ("kvfs_direct_buffers", "Buffers registered with the fast path.", d.buffers),
        ("kvfs_direct_buffer_bytes", "Bytes in them.", d.buffer_bytes),
        ("kvfs_direct_calls_in_flight", "Calls of the fast path under way.", d.in_flight),
    ];
    for (name, help, value) in gauges {
        all.gauge(name, help).is(value as f64);
    }
}
