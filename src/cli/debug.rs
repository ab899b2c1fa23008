//! `kvfs debug`: a support bundle.
//!
//! What always holds: everything in it has been through the redactor; what can't be had is left out, and the bundle says
//! why; it's told what is in it before it's written, and it's readable by its owner alone.

mod collect;
mod redact;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::Failure;
use super::job::mount_of;
use collect::{Entry, collect};

/// Collect what helps to find a fault into one file: versions, options, status, what this machine can do, the end of the
/// log. Names of files, users and hosts, addresses and all other words that aren't kvfs's own are replaced by hashes
#[derive(Debug, clap::Args)]
pub(super) struct DebugArgs {
    /// Where it's mounted
    mount_point: PathBuf,

    /// The file to be written; there mustn't be one [default: kvfs-debug-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE.tar.gz")]
    output: Option<PathBuf>,

    /// Only tell what it would hold, and write nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &DebugArgs) -> Result<(), Failure> {
    let mount = mount_of(&args.mount_point)?;
    let entries = collect(&mount);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let path = args.output.clone().unwrap_or_else(|| format!("kvfs-debug-{now}.tar.gz").into());
    let mut out = io::stdout().lock();
    let told = entries
        .iter()
        .try_for_each(|entry| writeln!(out, "{:>9} B  {:<16} {}", entry.text.len(), entry.name, entry.what));
    if let Err(e) = told
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(Failure::other(e));
    }
    if args.dry_run {
        return Ok(());
    }
    write(&path, &entries, now)
        .map_err(|e| Failure::other(format!("{}: {e}; name another file with -o", path.display())))?;
    let _ = writeln!(out, "written to {}; look into it before you send it", path.display());
    Ok(())
}

fn write(path: &Path, entries: &[Entry], now: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = (|| {
        let mut archive = tar::Builder::new(GzEncoder::new(&file, Compression::default()));
        for entry in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(entry.text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            archive.append_data(
                &mut header,
                Path::new("kvfs-debug").join(entry.name),
                entry.text.as_bytes(),
            )?;
        }
        archive.into_inner()?.finish()?;
        file.sync_all()
    })();
    written.inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}
