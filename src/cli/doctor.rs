//! `kvfs doctor`: says what kvfs can use on this machine, what is missing, and how to get it.
//!
//! Each check looks at one thing and gives one line. What always holds: nothing is changed, nothing is
//! mounted, no GPU is initialised (unless `--backing` names a directory to try it with), and every check is a function of a `System`, so that the
//! tests can show it any machine. The exit status says whether a mount can work here; speed and GPUs don't
//! count for it.

mod backing;
mod check;
mod cufile;
mod fuse;
mod gpu;
mod limits;
mod system;
mod uring;

use check::{Check, Status};
use serde::Serialize;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use system::System;

/// Says what kvfs can use on this machine, what is missing and how to get it.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// Write the report as JSON.
    #[arg(long)]
    json: bool,

    /// Try how data moves between GPU memory and this directory, as a mount over it would; may be given several
    /// times. A file is made in it and removed again.
    #[arg(long, value_name = "DIR")]
    backing: Vec<PathBuf>,
}

/// Checks this machine and writes the report to standard output.
///
/// Succeeds (0) when a mount can work here, fails (1) when it can't or the report couldn't be written.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let report = Report::of(&System::this_machine(), &args.backing);
    match report.write(&mut io::stdout().lock(), args.json) {
        // Who reads only the first lines gets the verdict as well.
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            eprintln!("kvfs doctor: the report can't be written: {e}");
            ExitCode::FAILURE
        }
        _ if report.can_mount => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What this machine can do, as `--json` writes it.
pub(super) fn report() -> serde_json::Value {
    serde_json::to_value(Report::of(&System::this_machine(), &[])).unwrap_or_default()
}

/// All that was found out.
#[derive(Debug, Serialize)]
struct Report {
    can_mount: bool,
    checks: Vec<Check>,
}

impl Report {
    fn of(system: &System, backings: &[PathBuf]) -> Self {
        let groups = [fuse::checks, uring::checks, limits::checks, gpu::checks, cufile::checks];
        let mut checks: Vec<_> = groups.into_iter().flat_map(|group| group(system)).collect();
        checks.push(data_path(&checks));
        checks.extend(backing::checks(system, backings));
        let can_mount = checks.iter().all(|check| !check.essential || check.status != Status::Missing);
        Self { can_mount, checks }
    }

    fn write(&self, out: &mut dyn Write, json: bool) -> io::Result<()> {
        let text = match json {
            true => serde_json::to_string_pretty(self)? + "\n",
            false => self.to_string(),
        };
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// How file data would move, which follows from the other checks.
fn data_path(checks: &[Check]) -> Check {
    let usable = |name| checks.iter().any(|check| check.name == name && check.status == Status::Ok);
    let check = Check::new("mount", "file data");
    if usable(fuse::PASSTHROUGH) {
        check.ok("the kernel reads and writes the backing's files itself (passthrough)")
    } else if usable(uring::RING) {
        check.limited("through the daemon by io_uring", "see `passthrough` above for the faster way")
    } else {
        check.limited(
            "through the daemon by threads that read and write: the slowest way",
            "see `passthrough` and `io_uring` above for the faster ones",
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut group = "";
        for check in &self.checks {
            if group != check.group {
                group = check.group;
                writeln!(f, "{group}")?;
            }
            writeln!(f, "  {:<8} {:<widest$}  {}", check.status, check.name, check.found)?;
            if let Some(advice) = &check.advice {
                writeln!(f, "  {:<8} {:<widest$}  -> {advice}", "", "")?;
            }
        }
        f.write_str(match self.can_mount {
            true => "A mount can work here.\n",
            false => "A mount can't work here: see the lines that say `missing`.\n",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::system::tests::Machine;
    use super::*;

    fn status(report: &Report, name: &str) -> Status {
        report.checks.iter().find(|check| check.name == name).expect("there is such a check").status
    }

    #[test]
    fn a_bare_machine_cannot_mount_and_is_told_why() {
        let report = Report::of(&Machine::bare().system(), &[]);
        assert!(!report.can_mount);
        let text = report.to_string();
        assert!(text.ends_with("A mount can't work here: see the lines that say `missing`.\n"), "{text}");
        for check in &report.checks {
            assert!(check.status != Status::Missing || check.advice.is_some(), "{check:?}");
        }
    }

    #[test]
    fn a_server_without_gpus_mounts_with_passthrough() {
        let report = Report::of(&Machine::server().system(), &[]);
        assert!(report.can_mount, "{report}");
        assert_eq!(status(&report, "file data"), Status::Ok);
        assert!(
            report.checks.iter().all(|check| matches!(check.status, Status::Ok | Status::None)),
            "{report}"
        );
    }

    #[test]
    fn without_passthrough_and_io_uring_data_moves_slowly() {
        let mut machine = Machine::server();
        machine.file("proc/sys/kernel/osrelease", "6.8.0-31-generic\n");
        let report = Report::of(&machine.system(), &[]);
        assert_eq!((report.can_mount, status(&report, "file data")), (true, Status::Limited));
        machine.without_io_uring();
        let report = Report::of(&machine.system(), &[]);
        assert_eq!((report.can_mount, status(&report, "file data")), (true, Status::Limited));
        assert!(report.to_string().contains("threads that read and write"), "{report}");
    }

    #[test]
    fn both_forms_hold_every_check() {
        let report = Report::of(&Machine::server().system(), &[]);
        let (mut text, mut json) = (Vec::new(), Vec::new());
        report.write(&mut text, false).unwrap();
        report.write(&mut json, true).unwrap();
        let text = String::from_utf8(text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["can_mount"], true);
        for (check, value) in report.checks.iter().zip(json["checks"].as_array().unwrap()) {
            assert!(text.contains(&*check.found));
            assert_eq!(value["name"], check.name);
            assert_eq!(value["status"], check.status.to_string());
        }
    }

    #[test]
    fn names_are_unique() {
        let report = Report::of(&Machine::server().system(), &[]);
        let mut names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn this_machine_can_be_checked() {
        let report = Report::of(&System::this_machine(), &[]);
        assert!(!report.to_string().is_empty());
    }
}
