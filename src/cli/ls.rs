//! `kvfs ls`: what is in a mount, and where.
//!
//! What always holds: names come from the daemon's index, as it has them (they aren't sorted), and nothing is kept of
//! what was told; sizes and times, with `-l` alone, are asked of the mount.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Failure;
use super::job::failure;
use super::status::bytes;
use crate::backing::mountinfo::{Mount, inside};
use crate::control::{AskError, Listed, ListedKind, Wanted, each_listed};
use crate::fuse::FS_TYPE;
use crate::printable::printable;

const FLAGS: &str = "\
With -l each line has: type (- file, d directory, l symbolic link, ? other), flags (o open,
s other backings have older copies, w being written and not visible to others yet), size, time of
change (UTC), backing (all of a directory), path, why it's there. The daemon answers its owner and
root alone; others have kvfs locate.";

/// List files with their backings
#[derive(Debug, clap::Args)]
#[command(after_help = FLAGS)]
pub(super) struct LsArgs {
    /// Files and directories in kvfs mounts
    #[arg(required = true)]
    paths: Vec<PathBuf>,

    /// With flags, size, time, backing, and why it's there
    #[arg(short)]
    long: bool,

    /// And all that is below directories
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Write JSON: one object per line
    #[arg(long)]
    json: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    listed: &'a Listed,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime: Option<i64>,
}

pub(super) fn run(args: &LsArgs) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut first = None;
    for path in &args.paths {
        match list(args, path, &mut out) {
            Ok(true) => {}
            // Nobody reads any more.
            Ok(false) => return Ok(()),
            Err(failure) => {
                let _ = out.flush();
                if first.is_some() {
                    eprintln!("kvfs: {failure}");
                } else {
                    first = Some(failure);
                }
            }
        }
    }
    match out.flush() {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("the listing can't be written: {e}")))
        }
        _ => first.map_or(Ok(()), Err),
    }
}

/// The mount that a path is in, and the path there.
fn place(path: &Path) -> Result<(Mount, PathBuf), Failure> {
    let other = |e: io::Error| Failure::other(format!("{}: {e}", path.display()));
    let real = match std::fs::symlink_metadata(path).map_err(other)?.is_symlink() {
        // The link itself is meant.
        true => {
            let (parent, name) = (path.parent().unwrap_or(Path::new(".")), path.file_name());
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::canonicalize(parent).map(|parent| parent.join(name.unwrap_or_default()))
        }
        false => std::fs::canonicalize(path),
    };
    match inside(&real.map_err(other)?).map_err(other)? {
        Some((mount, inner)) if mount.fs_type == FS_TYPE => {
            Ok((mount, inner.strip_prefix("/").map(Path::to_owned).unwrap_or(inner)))
        }
        _ => Err(Failure { status: 50, message: format!("{} is not in a kvfs mount", path.display()) }),
    }
}

fn list(args: &LsArgs, path: &Path, out: &mut impl Write) -> Result<bool, Failure> {
    let (mount, inner) = place(path)?;
    let wanted = Wanted { shadowed_only: false, placement: args.long || args.json };
    let mut written = Ok(());
    let asked =
        each_listed(mount.device, inner.as_os_str().as_bytes(), args.recursive, wanted, |listed| match show(
            args, &mount, &inner, &listed, out,
        ) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                written = Err(e);
                ControlFlow::Break(())
            }
        });
    match (written, asked) {
        (Err(e), _) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        (Err(e), _) => Err(Failure::other(format!("the listing can't be written: {e}"))),
        (Ok(()), Ok(())) => Ok(true),
        (Ok(()), Err(AskError::Refused(why))) => Err(Failure::other(format!("{}: {why}", path.display()))),
        (Ok(()), Err(e)) => Err(failure(&mount, e)),
    }
}

fn show(
    args: &LsArgs,
    mount: &Mount,
    listed_dir: &Path,
    listed: &Listed,
    out: &mut impl Write,
) -> io::Result<()> {
    let path = Path::new(std::ffi::OsStr::from_bytes(listed.path.as_bytes()));
    // A bind mount shows a part of the tree.
    let inner = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    let in_mount = path.strip_prefix(inner).unwrap_or(path);
    let stat = if args.long { std::fs::symlink_metadata(mount.point.join(in_mount)).ok() } else { None };
    if args.json {
        let (size, mtime) = (stat.as_ref().map(MetadataExt::size), stat.as_ref().map(MetadataExt::mtime));
        return writeln!(out, "{}", serde_json::to_string(&Line { listed, size, mtime })?);
    }
    let shown = match path.strip_prefix(listed_dir) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest,
        _ => path,
    };
    let shown = printable(shown.as_os_str().as_bytes());
    if !args.long {
        return writeln!(out, "{shown}");
    }
    let kind = match listed.kind {
        ListedKind::File => '-',
        ListedKind::Directory => 'd',
        ListedKind::Symlink => 'l',
        ListedKind::Other => '?',
    };
    let flag = |is: bool, letter: char| if is { letter } else { '-' };
    let flags: String =
        [flag(listed.open, 'o'), flag(!listed.shadows.is_empty(), 's'), flag(listed.unpublished, 'w')]
            .into_iter()
            .collect();
    let size = stat.as_ref().map_or_else(|| "?".into(), |stat| bytes(stat.size()));
    let time = stat.as_ref().map_or_else(|| "?".into(), |stat| utc(stat.mtime()));
    let backings = listed.slots.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
    let why = listed.placement.as_deref().map(|why| format!("  ({why})")).unwrap_or_default();
    writeln!(out, "{kind}{flags} {size:>10}  {time:<16}  {backings:<3} {shown}{why}")
}

/// `2026-11-22 12:03`.
fn utc(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the Gregorian calendar, by eras of 400 years that begin in March (Hinnant,
    // "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01 00:00");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00");
        assert_eq!(utc(1_795_349_036), "2026-11-22 12:03");
        assert_eq!(utc(-1), "1969-12-31 23:59");
    }
}
