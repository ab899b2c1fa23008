//! `kvfs evict`: shows what an eviction would take, or has one run and waits for its end.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use super::status::bytes;
use crate::backing::mountinfo::named;
use crate::backing::parse_bytes;
use crate::control::{AskError, Question, Status, ask};
use crate::retention::{BackingPlan, EvictPlan};

/// Make room: remove what may be removed, or show what that would be
#[derive(Debug, clap::Args)]
pub(super) struct EvictArgs {
    /// Where it's mounted
    mount_point: PathBuf,

    /// Only show what would go, and why
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Free this much on each backing, whatever the watermarks say. Bytes with K, M, G or T
    #[arg(long, value_name = "SIZE")]
    bytes: Option<String>,

    /// Only on this backing: its slot or its path
    #[arg(long, value_name = "BACKING")]
    backing: Option<String>,

    /// Write the plan as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub(super) fn run(args: &EvictArgs) -> Result<(), Failure> {
    let bytes = match &args.bytes {
        Some(text) => Some(parse_bytes(text).map_err(|e| Failure::bad_value(format!("--bytes: {e}")))?),
        None => None,
    };
    let mount = named(&args.mount_point).map_err(Failure::other)?.ok_or_else(|| Failure {
        status: 50,
        message: format!(
            "no kvfs is mounted at {}; `kvfs status` lists the mounts",
            args.mount_point.display()
        ),
    })?;
    let unanswered = |e: AskError| match e {
        AskError::Refused(why) => Failure::bad_value(why),
        AskError::Io(e) => Failure::no_answer(format!(
            "the daemon of {} doesn't answer ({e}); is it another user's, or dead?",
            mount.point.display()
        )),
    };
    let status = || ask::<Status>(mount.device, &Question::Status).map_err(unanswered);
    let before = status()?.retention;
    let order = Question::Evict { dry_run: args.dry_run, bytes, backing: args.backing.clone() };
    let mut plan: EvictPlan = ask(mount.device, &order).map_err(unanswered)?;
    while plan.surveying {
        std::thread::sleep(Duration::from_millis(50));
        plan = ask(mount.device, &order).map_err(unanswered)?;
    }
    let mut out = io::stdout().lock();
    if args.dry_run {
        let written = if args.json {
            serde_json::to_string(&plan).map_err(io::Error::other).and_then(|text| writeln!(out, "{text}"))
        } else {
            plan.backings.iter().try_for_each(|backing| show(&mut out, &plan.evict, backing))
        };
        return match written {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::other(format!("the plan can't be written: {e}")))
            }
            _ => Ok(()),
        };
    }
    // The daemon goes on in any case; this only waits for it.
    let mut after = status()?.retention;
    while after.evicting {
        std::thread::sleep(Duration::from_millis(50));
        after = status()?.retention;
    }
    let files = |r: &crate::retention::RetentionStatus| r.evicted_orphans + r.evicted_lru;
    let gone = files(&after).saturating_sub(files(&before));
    let freed = after.evicted_bytes.saturating_sub(before.evicted_bytes);
    let _ = writeln!(out, "evicted {gone} files of {}", super::status::bytes(freed));
    Ok(())
}

fn show(out: &mut impl Write, evict: &str, b: &BackingPlan) -> io::Result<()> {
    writeln!(out, "backing {} {}", b.slot, b.path.display())?;
    writeln!(
        out,
        "  room for new files {}; eviction begins below {} and ends at {} (--evict {evict})",
        bytes(b.spare),
        bytes(b.begin),
        bytes(b.end)
    )?;
    match (b.evictable, b.wanted) {
        (false, _) => return writeln!(out, "  shared: nothing is evicted from it (:evict allows it)"),
        (_, 0) => return writeln!(out, "  nothing would go now"),
        (_, wanted) => writeln!(
            out,
            "  {} wanted: {} files of {} would go{}",
            bytes(wanted),
            b.files,
            bytes(b.bytes),
            if b.bytes < wanted { ", and nothing else may" } else { "" }
        )?,
    }
    for v in &b.victims {
        let idle = v.idle_s.map_or("at an unknown time".into(), |s| format!("{s} s ago"));
        writeln!(out, "  {:>10}  {}  ({}, last used {idle})", bytes(v.bytes), v.path, v.why)?;
    }
    let unnamed = b.files - b.victims.len() as u64;
    if unnamed > 0 { writeln!(out, "  and {unnamed} more") } else { Ok(()) }
}
