//! `kvfs backing`: the set of a mount's backings, while it's mounted.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use super::Failure;
use super::job::{backing_name, bandwidth, follow, mount_of, order, text};
use super::status::bytes;
use crate::backing::Spec;
use crate::control::{JobStatus, Order, Question, Removal, Status, ask};

/// Add, drain, remove and set the backings of a mount that is in use
#[derive(Debug, clap::Args)]
pub(super) struct BackingArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Add a directory: its files become visible, and new files go there too
    Add {
        /// Where the kvfs is mounted
        mount_point: PathBuf,
        /// The directory, perhaps with flags as in --backing: /nvme8/kv:min-free=10G
        #[arg(value_name = "DIR[:FLAGS]")]
        dir: String,
        /// Return at once
        #[arg(long)]
        detach: bool,
    },
    /// Move all files of a backing to the others; it gets no new ones. Goes on after a crash or a remount
    Drain {
        /// Where the kvfs is mounted
        mount_point: PathBuf,
        /// The backing: its path or its slot's number
        backing: String,
        /// The most to copy in a second: 500M [default: no limit]
        #[arg(long, value_name = "SIZE")]
        bandwidth: Option<String>,
        /// Return at once
        #[arg(long)]
        detach: bool,
        /// Call the drain off: files that were moved stay where they are, and new ones go there again
        #[arg(long, conflicts_with_all = ["bandwidth", "detach"])]
        cancel: bool,
    },
    /// Take a backing out of the mount. It must have been drained
    Remove {
        /// Where the kvfs is mounted
        mount_point: PathBuf,
        /// The backing: its path or its slot's number
        backing: String,
        /// Though it has files: they disappear from the mount (and stay on the drive)
        #[arg(long)]
        force: bool,
        /// Don't ask
        #[arg(long, requires = "force")]
        yes: bool,
    },
    /// Say what a backing takes: rw (all), no-create (no new files) or ro (no changes)
    Set {
        /// Where the kvfs is mounted
        mount_point: PathBuf,
        /// The backing: its path or its slot's number
        backing: String,
        /// rw, ro or no-create
        state: String,
    },
    /// List the backings
    List {
        /// Where the kvfs is mounted
        mount_point: PathBuf,
        /// Write a JSON array
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &BackingArgs) -> Result<(), Failure> {
    match &args.what {
        What::Add { mount_point, dir, detach } => add(mount_point, dir, *detach),
        What::Drain { mount_point, backing, cancel: true, .. } => {
            let mount = mount_of(mount_point)?;
            let said: String = order(&mount, Order::CancelDrain { backing: backing_name(backing)? })?;
            println!("{said}");
            Ok(())
        }
        What::Drain { mount_point, backing, bandwidth: limit, detach, .. } => {
            let bandwidth = bandwidth(limit.as_deref())?;
            let mount = mount_of(mount_point)?;
            let backing = backing_name(backing)?;
            let job: JobStatus = order(&mount, Order::Drain { backing, bandwidth })?;
            if *detach { Ok(()) } else { follow(&mount, &job) }
        }
        What::Remove { mount_point, backing, force, yes } => remove(mount_point, backing, *force, *yes),
        What::Set { mount_point, backing, state } => {
            state.parse::<crate::backing::State>().map_err(Failure::bad_value)?;
            let mount = mount_of(mount_point)?;
            let (backing, state) = (backing_name(backing)?, state.clone());
            let said: String = order(&mount, Order::Set { backing, state })?;
            println!("{said}");
            Ok(())
        }
        What::List { mount_point, json } => list(mount_point, *json),
    }
}

fn add(mount_point: &std::path::Path, dir: &str, detach: bool) -> Result<(), Failure> {
    let spec: Spec = dir.parse().map_err(Failure::bad_value)?;
    // The flags, with the path as it's called from the daemon's working directory too.
    let dir = dir.strip_prefix("file://").unwrap_or(dir);
    let flags = dir.get(spec.path.as_os_str().len()..).unwrap_or_default();
    let absolute = std::path::absolute(&spec.path).map_err(Failure::other)?;
    let mut spec = text(absolute)?;
    if dir[..dir.len() - flags.len()].ends_with('/') && !spec.ends_with('/') {
        // What says that a colon before it is part of the path.
        spec.push('/');
    }
    spec.push_str(flags);
    let mount = mount_of(mount_point)?;
    let job: JobStatus = order(&mount, Order::Add { spec })?;
    if detach { Ok(()) } else { follow(&mount, &job) }
}

fn remove(mount_point: &std::path::Path, backing: &str, force: bool, yes: bool) -> Result<(), Failure> {
    let mount = mount_of(mount_point)?;
    let backing = backing_name(backing)?;
    if force {
        let removal: Removal = order(&mount, Order::PreviewRemoval { backing: backing.clone() })?;
        eprintln!("{}", what_goes(&removal));
        if !yes && !asked()? {
            return Err(Failure { status: 52, message: "nothing was removed".into() });
        }
    }
    let job: JobStatus = order(&mount, Order::Remove { backing, force })?;
    follow(&mount, &job)
}

/// What would disappear, in one sentence.
fn what_goes(removal: &Removal) -> String {
    let size = removal.bytes.map(|n| format!(" of {}", bytes(n))).unwrap_or_default();
    let mut text =
        format!("without {}, {} files{size} disappear from the mount", removal.path.display(), removal.files);
    if removal.dirs > 0 {
        text += &format!(", and {} directories", removal.dirs);
    }
    if removal.shadows > 0 {
        text += &format!("; of {} files an older copy on another backing appears instead", removal.shadows);
    }
    if removal.open > 0 {
        text += &format!("; {} files of it are open, and go on working until they're closed", removal.open);
    }
    text + "; all of them stay on the drive"
}

fn asked() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure {
            status: 52,
            message: "there is no terminal to ask on; --yes says that it's meant".into(),
        });
    }
    eprint!("remove it? [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::other)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn list(mount_point: &std::path::Path, json: bool) -> Result<(), Failure> {
    let mount = mount_of(mount_point)?;
    let status: Status = ask(mount.device, &Question::Status).map_err(|e| {
        Failure::no_answer(format!("the daemon of {} doesn't answer ({e})", mount.point.display()))
    })?;
    let mut out = io::stdout().lock();
    let written = if json {
        serde_json::to_string_pretty(&status.backings)
            .map_err(io::Error::other)
            .and_then(|text| writeln!(out, "{text}"))
    } else {
        super::status::backings(&mut out, &status)
    };
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("the list can't be written: {e}")))
        }
        _ => Ok(()),
    }
}
