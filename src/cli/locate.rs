//! `kvfs locate`: where files are, and why, asked of the mount by its `user.kvfs.*` attributes: so everybody
//! who may read a file may ask.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

use super::Failure;

/// Tell where files are: the backing, the real path, and why they were placed there
#[derive(Debug, clap::Args)]
pub(super) struct LocateArgs {
    /// Files in a kvfs mount
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Write a JSON array
    #[arg(long)]
    json: bool,
}

/// Where a file is.
#[derive(Debug, Serialize)]
struct Located {
    file: PathBuf,
    backing: PathBuf,
    slot: u8,
    path: PathBuf,
    placement: String,
}

pub(super) fn run(args: &LocateArgs) -> Result<(), Failure> {
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for file in &args.files {
        match locate(file) {
            Ok(located) => found.push(located),
            Err(failure) => failures.push(failure),
        }
    }
    let mut out = io::stdout().lock();
    let written = if args.json {
        serde_json::to_string_pretty(&found)
            .map_err(io::Error::other)
            .and_then(|text| writeln!(out, "{text}"))
    } else {
        found.iter().try_for_each(|l| {
            let (file, path, backing) = (l.file.display(), l.path.display(), l.backing.display());
            writeln!(
                out,
                "{file}\n  backing    {} {backing}\n  path       {path}\n  placement  {}",
                l.slot, l.placement
            )
        })
    };
    if let Err(e) = written
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(Failure::other(format!("the answer can't be written: {e}")));
    }
    match failures.split_first() {
        None => Ok(()),
        Some((first, rest)) => Err(rest.iter().fold(first.clone(), |all, next| Failure {
            message: format!("{}\nkvfs: {}", all.message, next.message),
            ..all
        })),
    }
}

fn locate(file: &Path) -> Result<Located, Failure> {
    let get = |name: &str| {
        let mut value = Vec::with_capacity(65536);
        let got = rustix::fs::lgetxattr(file, name, rustix::buffer::spare_capacity(&mut value));
        match got {
            Ok(_) => Ok(value),
            Err(Errno::NODATA | Errno::OPNOTSUPP) if file.is_dir() => Err(Failure::other(format!(
                "{} is a directory, which may be on several backings (getfattr -n user.kvfs.backings tells)",
                file.display()
            ))),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Err(Failure {
                status: 50,
                message: format!(
                    "{} is not a regular file in a kvfs mount, or in one with --xattrs off",
                    file.display()
                ),
            }),
            Err(e) => Err(Failure::other(format!("{}: {e}", file.display()))),
        }
    };
    let path = |name| get(name).map(|value| PathBuf::from(OsString::from_vec(value)));
    let text = |name| get(name).map(|value| String::from_utf8_lossy(&value).into_owned());
    Ok(Located {
        file: file.to_owned(),
        backing: path("user.kvfs.backing")?,
        slot: text("user.kvfs.slot")?.parse().unwrap_or_default(),
        path: path("user.kvfs.path")?,
        placement: text("user.kvfs.placement")?,
    })
}
