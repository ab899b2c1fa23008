//! What people read.
//!
//! What always holds: each kind is explained once; of many of a kind the first are told, and how many more there are.

use std::io::{self, Write};

use super::super::status::bytes;
use super::{CLEAN, Outcome, REPAIRED};
use crate::check::Finding;

/// How many of a kind are told without `--all`.
const SHOWN: usize = 20;

/// Tells what was found, by kind.
pub(super) fn findings(findings: &[Finding], all: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for kind in findings.chunk_by(|a, b| a.kind == b.kind) {
        let what = kind[0].kind;
        writeln!(out, "{} ({}): {}", what.name(), kind.len(), what.meaning())?;
        if let Some(remedy) = what.remedy() {
            writeln!(out, "  --repair would {remedy}")?;
        }
        let shown = if all { kind.len() } else { SHOWN };
        for finding in kind.iter().take(shown) {
            let path = if finding.path.is_empty() { "/" } else { &finding.path };
            let detail =
                if finding.detail.is_empty() { String::new() } else { format!(": {}", finding.detail) };
            writeln!(out, "  {}  {path}{detail}", finding.backing.display())?;
        }
        if kind.len() > shown {
            writeln!(out, "  and {} more (--all tells them)", kind.len() - shown)?;
        }
    }
    Ok(())
}

/// Tells what came of it.
pub(super) fn end(outcome: &Outcome) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (kind, n) in &outcome.repaired {
        writeln!(out, "repaired: {n} {}", kind.name())?;
    }
    for what in &outcome.not_repaired {
        writeln!(out, "not repaired: {what}")?;
    }
    for note in &outcome.notes {
        writeln!(out, "note: {note}")?;
    }
    let read = match outcome.bytes_read {
        0 => String::new(),
        n => format!(", {} read", bytes(n)),
    };
    let verdict = match outcome.status {
        CLEAN => "nothing is wrong",
        REPAIRED => "all that was wrong is repaired",
        _ => "something is wrong",
    };
    writeln!(out, "{} files looked at{read}: {verdict}", outcome.files)
}
