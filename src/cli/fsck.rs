//! `kvfs fsck`: what is wrong on backings, and putting it right.
//!
//! What always holds: backings that a mount uses are changed by its daemon alone; nothing is changed before somebody
//! has said yes to that kind of change; the exit status is one of fsck(8)'s.

mod mounted;
mod offline;
mod report;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::{Failure, settings};
use crate::check::{Finding, Fix, Kind, Looked, RepairError};
use crate::config::backing_specs;

/// Nothing is wrong, or nothing but what was repaired; the bits add up, as in fsck(8).
const CLEAN: u8 = 0;
const REPAIRED: u8 = 1;
const LEFT: u8 = 4;
const FAILED: u8 = 8;
/// The status of a command line that can't be.
pub(super) const USAGE: u8 = 16;

const STATUS: &str = "\
Exit status, as fsck(8) has it:
  0 nothing is wrong, 1 all that was wrong is repaired, 4 something wrong is left,
  8 it couldn't be checked, 16 wrong usage
  Files that weren't closed and orphans are told, but aren't wrong: a mount removes
  them by itself.";

/// Check backings: duplicates, leftovers, what can't be read
#[derive(Debug, clap::Args)]
#[command(after_help = STATUS)]
pub(super) struct FsckArgs {
    /// A mount that is in use: its daemon is asked, and repairs. Instead of --backing
    #[arg(conflicts_with_all = ["backing", "config"], required_unless_present_any = ["backing", "config"])]
    mount_point: Option<PathBuf>,

    /// Backings that aren't mounted, separated by commas, in the mount's order; may be given several times
    #[arg(long, value_name = "DIR,DIR,...")]
    backing: Vec<String>,

    /// The file of a mount that isn't in use (as in `kvfs mount --config`): its backings
    #[arg(long, value_name = "FILE", conflicts_with = "backing")]
    config: Option<PathBuf>,

    /// Read every file to its end, and compare the bytes of copies
    #[arg(long)]
    deep: bool,

    /// Repair: asks once for each kind of fault
    #[arg(long)]
    repair: bool,

    /// With --repair: don't ask, but leave what might be the only copy of its bytes
    #[arg(long, requires = "repair")]
    yes: bool,

    /// With --repair --yes: give up such bytes as well (older copies that differ, orphans)
    #[arg(long, requires = "yes")]
    discard: bool,

    /// Tell every single one of many
    #[arg(long)]
    all: bool,

    /// Write a JSON object
    #[arg(long)]
    json: bool,
}

/// How something was checked, and repairs it.
trait Checker {
    /// What was found.
    fn looked(&mut self) -> Result<Looked, Failure>;
    /// Whether it can repair this kind, or why it can't.
    fn can_repair(&self, kind: Kind) -> Result<(), String>;
    /// Repairs.
    fn repair(&mut self, fix: &Fix) -> Result<(), RepairError>;
    /// What is told beside the findings.
    fn notes(&self) -> Vec<String>;
}

/// What came of it all.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// Files that were looked at.
    files: u64,
    /// Bytes that were read of them (`--deep`).
    bytes_read: u64,
    findings: Vec<Finding>,
    /// By kind, how many were repaired.
    repaired: BTreeMap<Kind, u64>,
    /// What couldn't be repaired, and why.
    not_repaired: Vec<String>,
    notes: Vec<String>,
    status: u8,
}

pub(super) fn run(args: &FsckArgs) -> ExitCode {
    match check(args) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("kvfs: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

fn failed(e: impl std::fmt::Display) -> Failure {
    Failure { status: FAILED, message: e.to_string() }
}

fn check(args: &FsckArgs) -> Result<u8, Failure> {
    if args.repair && !args.yes && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let message =
            "--repair asks, and there is no terminal to ask on; say --yes to repair without being asked";
        return Err(Failure { status: USAGE, message: message.into() });
    }
    let mut checker: Box<dyn Checker> = match &args.mount_point {
        Some(point) => Box::new(mounted::Mounted::new(point, args.deep, args.repair)?),
        None => {
            let usage = |e: Failure| Failure { status: USAGE, ..e };
            let backing = match &args.config {
                Some(file) => settings::resolve(&settings::line_of(file)).map_err(usage)?.args.backing,
                None => args.backing.clone(),
            };
            let specs = backing.iter().flat_map(|value| backing_specs(value));
            let paths = specs.map(|spec| spec.map(|spec| spec.path)).collect::<Result<Vec<_>, _>>();
            let paths = paths.map_err(|e| Failure { status: USAGE, message: format!("--backing {e}") })?;
            Box::new(offline::Offline::new(&paths, args.deep, args.repair)?)
        }
    };
    let looked = checker.looked()?;
    let mut outcome = Outcome {
        files: looked.files,
        bytes_read: looked.bytes,
        findings: looked.found,
        notes: checker.notes(),
        ..Outcome::default()
    };
    if !args.json {
        report::findings(&outcome.findings, args.all).or_else(is_pipe)?;
    }
    if args.repair {
        repair(args, &mut *checker, &mut outcome)?;
    }
    outcome.status = outcome.judge();
    if args.json {
        let text = serde_json::to_string_pretty(&outcome).map_err(failed)?;
        writeln!(io::stdout(), "{text}").or_else(is_pipe)?;
    } else {
        report::end(&outcome).or_else(is_pipe)?;
    }
    Ok(outcome.status)
}

/// Who reads only the first lines has read enough.
fn is_pipe(e: io::Error) -> Result<(), Failure> {
    match e.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(failed(format!("the report can't be written: {e}"))),
    }
}

impl Outcome {
    fn judge(&self) -> u8 {
        let count = |kind| self.findings.iter().filter(|finding| finding.kind == kind).count() as u64;
        let kinds: std::collections::BTreeSet<Kind> =
            self.findings.iter().map(|finding| finding.kind).collect();
        let repaired = |kind| self.repaired.get(&kind).copied().unwrap_or(0);
        let left = kinds.iter().any(|kind| !kind.is_note() && repaired(*kind) < count(*kind));
        match (left, self.repaired.values().sum::<u64>() > 0) {
            (false, false) => CLEAN,
            (false, true) => REPAIRED,
            (true, repaired) => LEFT + if repaired { REPAIRED } else { 0 },
        }
    }
}

fn repair(args: &FsckArgs, checker: &mut dyn Checker, outcome: &mut Outcome) -> Result<(), Failure> {
    let mut by_kind = BTreeMap::<Kind, Vec<&Finding>>::new();
    for finding in outcome.findings.iter().filter(|finding| finding.fix != Fix::None) {
        by_kind.entry(finding.kind).or_default().push(finding);
    }
    for (kind, findings) in by_kind {
        let Some(remedy) = kind.remedy() else { continue };
        if let Err(why) = checker.can_repair(kind) {
            outcome.not_repaired.push(format!("{}: {why}", kind.name()));
            continue;
        }
        let agreed = if args.yes {
            !kind.gives_up_bytes() || args.discard
        } else {
            ask(kind, findings.len(), remedy)?
        };
        if !agreed {
            let how = if args.yes { "; --discard would" } else { "" };
            outcome.not_repaired.push(format!("{}: {} left as they are{how}", kind.name(), findings.len()));
            continue;
        }
        // One repair of a directory is for all its backings.
        let mut done: Vec<&Fix> = Vec::new();
        for finding in findings {
            let again = matches!(finding.fix, Fix::Directory { .. }) && done.contains(&&finding.fix);
            let result = if again { Ok(()) } else { checker.repair(&finding.fix) };
            match result {
                Ok(()) => {
                    *outcome.repaired.entry(kind).or_default() += 1;
                    if matches!(finding.fix, Fix::Directory { .. }) {
                        done.push(&finding.fix);
                    }
                }
                Err(e) => {
                    let (path, backing) = (&finding.path, finding.backing.display());
                    outcome.not_repaired.push(format!("{}: {path} on {backing}: {e}", kind.name()));
                }
            }
        }
    }
    Ok(())
}

/// Asks about one kind.
fn ask(kind: Kind, count: usize, remedy: &str) -> Result<bool, Failure> {
    let warning = if kind.gives_up_bytes() { " No other copy has these bytes." } else { "" };
    let mut err = io::stderr().lock();
    let asked =
        write!(err, "{} ({count}): {remedy}?{warning} [y/N] ", kind.name()).and_then(|()| err.flush());
    asked.map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
