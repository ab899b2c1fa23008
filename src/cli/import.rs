//! `kvfs import`: what a mount over directories that are there already would serve.
//!
//! What always holds: nothing is changed, and nothing needs to be: mounting them is all there is to it. What is read is
//! what a mount would read, by the same code.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::Failure;
use super::status::bytes;
use crate::backing::{distinct, open_root};
use crate::check::{Census, Finding, Group, Root, UNKNOWN, census, read};
use crate::index::Slot;

/// Show what a mount over existing directories would serve: LMCache's multi-path, gds_path and fs:// directories,
/// SGLang's, vLLM's, or any. Changes nothing: to import is to mount
#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// The directories, in GPU order
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,

    /// With the sizes of files, which takes a look at each
    #[arg(long)]
    sizes: bool,

    /// Write a JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    directories: Vec<PathBuf>,
    files: u64,
    #[serde(flatten)]
    census: Census,
    /// What wouldn't be shown, or can't be read.
    findings: Vec<Finding>,
    mount: String,
}

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    // LMCache's lists may come as one word.
    let words = args.dirs.iter().flat_map(|dir| {
        let text = dir.to_string_lossy().into_owned();
        text.split(',')
            .map(|word| PathBuf::from(word.strip_prefix("file://").unwrap_or(word)))
            .collect::<Vec<_>>()
    });
    let paths = distinct(&words.filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>())?;
    let open = |(n, path): (usize, &PathBuf)| {
        Ok(Root { slot: Slot(n as u8), path: path.clone(), dir: open_root(path)? })
    };
    let roots: Vec<Root> = paths.iter().enumerate().map(open).collect::<Result<_, Failure>>()?;
    let reading = read(&roots, |_| {}).map_err(Failure::other)?;
    let census = census(&roots, &reading, args.sizes);
    let list = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",");
    let report = Report {
        files: reading.counts().0,
        directories: paths,
        census,
        findings: reading.found,
        mount: format!("kvfs mount MOUNTPOINT --backing {}", quoted(&list)),
    };
    let mut out = io::stdout().lock();
    let written = match args.json {
        true => serde_json::to_string_pretty(&report)
            .map_err(io::Error::other)
            .and_then(|text| writeln!(out, "{text}")),
        false => show(&mut out, &report),
    };
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("the report can't be written: {e}")))
        }
        _ => Ok(()),
    }
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/,._-+:@%".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn show(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for (n, dir) in report.directories.iter().enumerate() {
        writeln!(out, "{n}  {}", dir.display())?;
    }
    writeln!(out, "{} files", report.files)?;
    for (name, group) in &report.census.groups {
        show_group(out, name, group)?;
    }
    let c = &report.census;
    let mut tell = |n: u64, what: &str| if n > 0 { writeln!(out, "{n} {what}") } else { Ok(()) };
    tell(
        c.duplicates,
        "paths are in several directories: the newest copy would be the file (kvfs fsck tells them)",
    )?;
    tell(c.without_metadata, "data files of gds_path have no .metadata: LMCache doesn't find them")?;
    tell(c.without_data, ".metadata files of gds_path have no data")?;
    tell(c.apart, "pairs of gds_path are in two directories each, which works")?;
    tell(report.findings.len() as u64, "more that can't be read or wouldn't be shown:")?;
    for finding in report.findings.iter().take(20) {
        writeln!(
            out,
            "  {} {} ({}): {}",
            finding.backing.display(),
            finding.path,
            finding.kind.name(),
            finding.detail
        )?;
    }
    writeln!(
        out,
        "To import them is to mount them; no file is changed or moved, and without kvfs all is as it was:\n  {}",
        report.mount
    )
}

fn show_group(out: &mut impl Write, name: &str, group: &Group) -> io::Result<()> {
    let size = group.bytes.map(|n| format!(", {}", bytes(n))).unwrap_or_default();
    let each = |counts: &std::collections::BTreeMap<u8, u64>| {
        counts.iter().map(|(dir, n)| format!("{n} in {dir}")).collect::<Vec<_>>().join(", ")
    };
    writeln!(out, "  {name:<24} {} files{size}: {}", group.files, each(&group.per_directory))?;
    for (rank, counts) in &group.ranks {
        writeln!(out, "    rank {rank:<3} {}", each(counts))?;
    }
    if group.in_place + group.elsewhere > 0 {
        writeln!(
            out,
            "    {} are where by_gpu puts new files of their rank, {} elsewhere (all are found)",
            group.in_place, group.elsewhere
        )?;
    }
    if name == UNKNOWN {
        writeln!(
            out,
            "    served like any other file, by_gpu goes by who writes: {}",
            group.examples.join(", ")
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_for_a_shell() {
        assert_eq!(quoted("/a,/b-c_1"), "/a,/b-c_1");
        assert_eq!(quoted("/my kv's"), r"'/my kv'\''s'");
    }
}
