//! `kvfs status`: what a mount says of itself.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Failure;
use crate::backing::mountinfo::{Mount, mounts, named};
use crate::control::{Question, Status, ask};
use crate::direct::DirectStatus;
use crate::fuse::FS_TYPE;
use crate::retention::RetentionStatus;
use crate::supervise::HandoverOutcome;

/// Show a mount: backings, files, room, passthrough or not and why
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Where it's mounted [default: all mounts]
    mount_point: Option<PathBuf>,

    /// Write JSON: one object per line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let wanted = chosen(args.mount_point.as_ref())?;
    if wanted.is_empty() {
        return Err(Failure { status: 50, message: "no kvfs is mounted here".into() });
    }
    let mut failure = None;
    let mut out = io::stdout().lock();
    for (n, mount) in wanted.iter().enumerate() {
        match ask::<Status>(mount.device, &Question::Status) {
            Ok(status) => {
                let written = if args.json {
                    serde_json::to_string(&status)
                        .map_err(io::Error::other)
                        .and_then(|text| writeln!(out, "{text}"))
                } else {
                    if n > 0 {
                        let _ = writeln!(out);
                    }
                    show(&mut out, &status)
                };
                if let Err(e) = written
                    && e.kind() != io::ErrorKind::BrokenPipe
                {
                    return Err(Failure::other(format!("the status can't be written: {e}")));
                }
            }
            Err(e) => {
                failure = Some(Failure::no_answer(format!(
                    "the daemon of {} doesn't answer ({e}); is it another user's, or dead? (kvfs umount --lazy {0} removes a dead mount)",
                    mount.point.display()
                )));
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// The mounts that are asked about: one, or all.
pub(super) fn chosen(point: Option<&PathBuf>) -> Result<Vec<Mount>, Failure> {
    let ours = |mount: &Mount| mount.fs_type == FS_TYPE;
    let Some(point) = point else {
        return Ok(mounts().map_err(Failure::other)?.into_iter().filter(ours).collect());
    };
    match named(point).map_err(Failure::other)?.filter(ours) {
        Some(mount) => Ok(vec![mount]),
        None => Err(Failure {
            status: 50,
            message: format!(
                "no kvfs is mounted at {}; `kvfs status` without a path lists the mounts",
                point.display()
            ),
        }),
    }
}

fn direct(out: &mut impl Write, d: &DirectStatus) -> io::Result<()> {
    if !d.on {
        return writeln!(out, "  fast path    off (--direct off)");
    }
    writeln!(
        out,
        "  fast path    host memory: {}; {} buffers of {}",
        d.host,
        d.buffers,
        bytes(d.buffer_bytes)
    )?;
    for b in &d.gpu.backings {
        if d.gpu.driver.is_some() {
            writeln!(out, "               GPU memory and backing {}: {}", b.slot, b.detail)?;
        }
    }
    if d.gpu.driver.is_none() {
        let why = match (d.gpu.enabled, d.gpu.probed) {
            (false, _) => "off (--direct host)",
            (_, false) => "being looked for",
            _ => "no GPU",
        };
        writeln!(out, "               GPU memory: {why}")?;
    }
    for w in &d.gpu.workers {
        let pid = w.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        let error = w.last_error.as_deref().map(|e| format!("; last fault: {e}")).unwrap_or_default();
        writeln!(
            out,
            "               GPU {}: {}{pid}, {} buffers, {} transfers of {}, {} deaths{error}",
            w.gpu,
            format!("{:?}", w.state).to_lowercase(),
            w.buffers,
            w.ops,
            bytes(w.bytes),
            w.restarts
        )?;
    }
    let c = &d.counts;
    if c.calls > 0 {
        writeln!(
            out,
            "               {} reads of {}, {} writes of {}, {} failed, {} calls refused",
            c.reads,
            bytes(c.bytes_read),
            c.writes,
            bytes(c.bytes_written),
            c.failed,
            c.refused
        )?;
    }
    Ok(())
}

fn retention(out: &mut impl Write, r: &RetentionStatus) -> io::Result<()> {
    let doing = if r.evicting { ", evicting now" } else { "" };
    let total = r.capacity_total.map(|n| format!("; at most {} in all", bytes(n))).unwrap_or_default();
    writeln!(
        out,
        "  retention    evict {}: above {}% until {}%{total}{doing}",
        r.evict, r.high_water, r.low_water
    )?;
    let orphans: u64 = r.backings.iter().map(|b| b.orphans).sum();
    if r.evicted_orphans + r.evicted_lru + orphans > 0 {
        writeln!(
            out,
            "               evicted {} orphans and {} others, {} in all; {orphans} orphans are left",
            r.evicted_orphans,
            r.evicted_lru,
            bytes(r.evicted_bytes)
        )?;
    }
    if r.waited > 0 {
        writeln!(out, "               {} creates waited for room, {} found none", r.waited, r.refused)?;
    }
    for b in r.backings.iter().filter(|b| b.capacity.is_some()) {
        writeln!(
            out,
            "               backing {}: files take {} of {}",
            b.slot,
            bytes(b.used.unwrap_or(0)),
            bytes(b.capacity.unwrap_or(0))
        )?;
    }
    Ok(())
}

fn show(out: &mut impl Write, s: &Status) -> io::Result<()> {
    writeln!(
        out,
        "{}  kvfs {}{}, pid {}, up {}",
        s.mountpoint.display(),
        s.version,
        s.build.as_deref().map(|build| format!(" ({build})")).unwrap_or_default(),
        s.pid,
        duration(s.uptime_s)
    )?;
    writeln!(out, "  executable   {}", s.executable.display())?;
    let passthrough = if s.passthrough.on { "on" } else { "off" };
    writeln!(out, "  passthrough  {passthrough}: {}", s.passthrough.why)?;
    let why = s.transport_why.as_deref().map(|why| format!(" (not io_uring: {why})")).unwrap_or_default();
    writeln!(out, "  transport    {}{why}", s.transport)?;
    let why = s.io_engine_why.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
    writeln!(out, "  data engine  {}{why}", s.io_engine)?;
    let again = &s.supervised;
    let last = again.last_end.as_deref().map_or_else(String::new, |end| {
        format!(
            "; daemon {}, the one before {end}; {} open files went on, {} lost",
            again.daemons, again.files, again.lost
        )
    });
    writeln!(out, "  supervised   by {}{last}", again.by)?;
    if let Some(upgrade) = &s.last_upgrade {
        let came = match &upgrade.outcome {
            HandoverOutcome::Begun => "under way".into(),
            HandoverOutcome::Done => format!("requests waited {} ms", upgrade.pause_ms),
            HandoverOutcome::Failed(why) => format!("failed: {why}"),
        };
        writeln!(out, "  upgrade      from {} to {}: {came}", upgrade.from, upgrade.to)?;
    }
    writeln!(out, "  placement    {}{}", s.placement, if s.exclusive { ", exclusive" } else { "" })?;
    writeln!(
        out,
        "  index        {} files, {} directories, {} shadows, {} unreadable; read in {} ms",
        s.index.files, s.index.dirs, s.index.shadows, s.index.unreadable, s.index.scan_ms
    )?;
    writeln!(out, "  open files   {}", s.open_files)?;
    let p = &s.publish;
    writeln!(
        out,
        "  publish      {}: {} not closed yet; removed as torn: {} at the start, {} since",
        p.publish, p.unpublished, p.dropped_at_start, p.dropped
    )?;
    retention(out, &s.retention)?;
    direct(out, &s.direct)?;
    writeln!(out, "  sandbox      {}", s.sandbox)?;
    writeln!(out, "  log          {}", s.log)?;
    if let Some(job) = &s.job {
        writeln!(out, "  job          {}", super::job::line(job))?;
    }
    backings(out, s)?;
    for rule in &s.rules {
        let placement = rule.placement.as_deref().map(|p| format!("  placement {p}")).unwrap_or_default();
        let quota = rule
            .quota
            .map(|limit| format!("  quota {}, {} used", bytes(limit), bytes(rule.used.unwrap_or_default())));
        writeln!(out, "  directory /{}{placement}{}", rule.path.display(), quota.unwrap_or_default())?;
    }
    for problem in s.index.problems.iter().take(5) {
        writeln!(out, "  not shown: {problem}")?;
    }
    for warning in &s.warnings {
        writeln!(out, "  warning: {warning}")?;
    }
    if let Some(panics) = s.ops.get("panics").filter(|n| **n > 0) {
        writeln!(out, "  {panics} requests failed by a fault in kvfs (panics); see the log and report them")?;
    }
    Ok(())
}

/// The backings, one a line.
pub(super) fn backings(out: &mut impl Write, s: &Status) -> io::Result<()> {
    writeln!(
        out,
        "  {:<4} {:<9} {:>12} {:>10} {:>10} {:>10}  {:<8} backing",
        "slot", "state", "files", "size", "used", "free", "fs"
    )?;
    for b in &s.backings {
        writeln!(
            out,
            "  {:<4} {:<9} {:>12} {:>10} {:>10} {:>10}  {:<8} {}{}",
            b.slot,
            b.state,
            b.files,
            bytes(b.bytes_total),
            bytes(b.bytes_used),
            bytes(b.bytes_free),
            b.fs,
            b.path.display(),
            if b.shared { "  (shared)" } else { "" }
        )?;
    }
    for b in &s.backings {
        let Some(health) = &b.health else { continue };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(health.since, |now| now.as_secs());
        let since = duration(now.saturating_sub(health.since));
        writeln!(
            out,
            "  backing {} ({}): {} (for {since}); {}",
            b.slot,
            b.path.display(),
            health.what,
            health.advice
        )?;
        if let Some(why) = &health.hindrance {
            writeln!(out, "    not used again yet: {why}")?;
        }
        if health.open_files > 0 && health.state != "read-only" {
            writeln!(out, "    {} opens of its files keep its file system in use", health.open_files)?;
        }
    }
    Ok(())
}

pub(super) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].iter();
    let mut unit = units.next().unwrap_or(&"");
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    if *unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

pub(super) fn duration(seconds: u64) -> String {
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3_840_755_982_336), "3.5 TiB");
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(7260), "2 h 1 min");
        assert_eq!(duration(200_000), "2 d 7 h");
    }
}
