//! A mount at one moment: what its daemon has counted, and what the kernel says of its drives and of who writes.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use crate::backing::block_device_of;
use crate::backing::mountinfo::{Mount, inside};
use crate::cli::Failure;
use crate::cli::stats::asked;
use crate::control::{Stats, Status};

/// A moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) status: Status,
    pub(super) stats: Stats,
    /// By slot, of those backings whose device is known.
    pub(super) drives: HashMap<u8, Drive>,
    /// Bytes that a process has had written to storage, by its id: of those that may be asked.
    pub(super) written: HashMap<u32, u64>,
}

/// What a block device has done, from /sys/dev/block/MAJOR:MINOR/stat (Documentation/block/stat.rst of the kernel).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drive {
    /// Reads and writes that were done.
    pub(super) ios: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    /// Milliseconds that all of them took together, from when they were queued.
    pub(super) waited_ms: u64,
    /// Under way now.
    pub(super) in_flight: u64,
}

impl Sample {
    pub(super) fn take(mount: &Mount) -> Result<Sample, Failure> {
        let mut stats = asked(mount, true)?;
        let status = *stats.status.take().ok_or_else(|| {
            Failure::no_answer(format!("the daemon of {} doesn't say how it is", mount.point.display()))
        })?;
        let drive = |path: &Path| drive_of(&inside(path).ok()??.0);
        let drives = status.backings.iter().filter_map(|b| Some((b.slot, drive(&b.path)?))).collect();
        let written = stats.writers.iter().filter_map(|w| Some((w.pid, written_by(w.pid)?))).collect();
        Ok(Sample { at: Instant::now(), status, stats, drives, written })
    }
}

fn drive_of(mount: &Mount) -> Option<Drive> {
    let device = block_device_of(mount)?;
    let (major, minor) = (libc::major(device), libc::minor(device));
    Drive::parse(&std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?)
}

impl Drive {
    fn parse(text: &str) -> Option<Drive> {
        let fields: Vec<u64> = text.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [reads, _, read, read_ms, writes, _, written, write_ms, in_flight, ..] = fields[..] else {
            return None;
        };
        Some(Drive {
            ios: reads + writes,
            // A sector is 512 bytes here, whatever the drive's are.
            bytes_read: read * 512,
            bytes_written: written * 512,
            waited_ms: read_ms + write_ms,
            in_flight,
        })
    }
}

/// `write_bytes` of /proc/PID/io: what the process itself had written to storage, by O_DIRECT or as dirty pages.
fn written_by(pid: u32) -> Option<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives() {
        let text = "  100 1 2000 30  50 0 400 10 3 40 45 0 0 0 0 0 0\n";
        let want =
            Drive { ios: 150, bytes_read: 1_024_000, bytes_written: 204_800, waited_ms: 40, in_flight: 3 };
        assert_eq!(Drive::parse(text), Some(want));
        assert_eq!(Drive::parse("1 2 3"), None);
    }
}
