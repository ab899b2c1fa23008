//! What mount(8) and umount(8) call: `mount.kvfs SPEC DIR [-fnsv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` and
//! `umount.kvfs DIR [-flnrv] [-N NAMESPACE] [-t TYPE]` (mount-helpers/ has the scripts of these names).
//!
//! What always holds: options are those of `kvfs mount`, taken by the same table; SPEC is what the list of mounts
//! shows, so that `mount -a` knows what is mounted; and the exit status is mount(8)'s, 32 for whatever fails.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::job::mount_of;
use super::settings::{self, Generic, Resolved, Unknown, generic};
use super::umount::{self, UmountArgs};
use super::{Failure, config, exit, takeover};
use crate::control::{Question, Running, ask};
use crate::fuse::remount_read_only;

/// mount(8), "EXIT STATUS": mount failure.
const MOUNT_FAILURE: u8 = 32;
/// How long a daemon that has been unmounted may have the backings still.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often that's looked at.
const TICK: Duration = Duration::from_millis(20);

/// Mount as mount(8) asks for it
#[derive(Debug, clap::Args)]
pub(super) struct MountHelperArgs {
    /// The backings, separated by commas; or a file with options, if it ends with .toml; or `kvfs`, where OPTIONS
    /// have the backings or name the file
    spec: OsString,

    /// Where to mount
    dir: PathBuf,

    /// Only look whether it could be mounted
    #[arg(short)]
    fake: bool,

    /// There's no list of mounts but the kernel's
    #[arg(short)]
    no_mtab: bool,

    /// Leave out options that aren't known
    #[arg(short)]
    sloppy: bool,

    /// Say what is done
    #[arg(short)]
    verbose: bool,

    /// In this mount namespace: a process's number, or a file
    #[arg(short = 'N')]
    namespace: Option<PathBuf>,

    /// As fstab(5) has them
    #[arg(short)]
    options: Vec<String>,

    /// kvfs
    #[arg(short = 't')]
    fs_type: Option<String>,
}

/// Unmount as umount(8) asks for it
#[derive(Debug, clap::Args)]
pub(super) struct UmountHelperArgs {
    /// Where it's mounted
    dir: PathBuf,

    /// Though the daemon doesn't answer any more
    #[arg(short)]
    force: bool,

    /// Detach it
    #[arg(short)]
    lazy: bool,

    /// There's no list of mounts but the kernel's
    #[arg(short)]
    no_mtab: bool,

    /// One that is in use is remounted read-only instead
    #[arg(short)]
    read_only: bool,

    /// Say what is done
    #[arg(short)]
    verbose: bool,

    /// In this mount namespace: a process's number, or a file
    #[arg(short = 'N')]
    namespace: Option<PathBuf>,

    /// kvfs
    #[arg(short = 't')]
    fs_type: Option<String>,
}

pub(super) fn mount(args: &MountHelperArgs) -> Result<(), Failure> {
    mount_or_remount(args).map_err(as_mount_says)
}

pub(super) fn umount(args: &UmountHelperArgs) -> Result<(), Failure> {
    let unmounted = enter(args.namespace.as_deref()).and_then(|()| {
        umount::run(&UmountArgs {
            mount_point: Some(args.dir.clone()),
            config: None,
            lazy: args.lazy,
            force: args.force,
        })
    });
    let done = match unmounted {
        Err(failure) if args.read_only && failure.status == exit::BUSY => {
            mount_of(&args.dir).and_then(|mount| Ok(remount_read_only(&mount)?)).map(|()| "read-only")
        }
        unmounted => unmounted.map(|()| "unmounted"),
    };
    if args.verbose
        && let Ok(what) = done
    {
        println!("{}: {what}", args.dir.display());
    }
    done.map(drop).map_err(as_mount_says)
}

fn as_mount_says(failure: Failure) -> Failure {
    Failure { status: MOUNT_FAILURE, ..failure }
}

/// mount(8) starts its helper where it stands itself, and leaves the namespace to it.
fn enter(namespace: Option<&Path>) -> Result<(), Failure> {
    let Some(named) = namespace else { return Ok(()) };
    let is_number = named.as_os_str().as_bytes().iter().all(u8::is_ascii_digit);
    let path = match is_number {
        true => Path::new("/proc").join(named).join("ns/mnt"),
        false => named.to_owned(),
    };
    let entered = File::open(&path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNS)?));
    entered.map_err(|e| {
        Failure::other(format!("-N {}: the mount namespace can't be entered: {e}", named.display()))
    })
}

fn mount_or_remount(args: &MountHelperArgs) -> Result<(), Failure> {
    enter(args.namespace.as_deref())?;
    let words = settings::split_all(&args.options)?;
    let is_remount = |word: &String| generic(word) == Some(Generic::Remount);
    if words.iter().any(is_remount) {
        // What the kernel shows of the mount itself (fs/fuse/inode.c, fuse_show_options) comes back with the rest.
        let is_shown = |word: &String| {
            ["user_id=", "group_id=", "max_read=", "blksize="].iter().any(|name| word.starts_with(name))
                || word == "allow_other"
        };
        let others: Vec<String> =
            words.into_iter().filter(|word| !is_remount(word) && !is_shown(word)).collect();
        return remount(args, &others);
    }
    let resolved = || settings::resolve_with(&line(args, &words), unknown(args));
    let done = match (resolved(), args.fake) {
        (Err(failure), _) => Err(failure),
        (Ok(said), true) => config::check_quietly(&said).map(drop),
        (Ok(said), false) => {
            if args.verbose {
                let words: Vec<_> = said.words.iter().map(|word| word.to_string_lossy()).collect();
                println!("{}: {}", args.dir.display(), words.join(" "));
            }
            patiently(said, resolved)
        }
    };
    match done {
        // As mount(8) has it for devices, and only for that: what isn't there isn't missed.
        Err(failure) if words.iter().any(|word| word == "nofail") && is_absent(args, &failure) => {
            eprintln!("kvfs: not mounted (nofail): {failure}");
            Ok(())
        }
        done => done,
    }
}

/// Mounts. umount(8) doesn't wait for the daemon, so one that is on its way out may have the backings for a moment.
fn patiently(said: Resolved, again: impl Fn() -> Result<Resolved, Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut done = super::mount::mount(said);
    while matches!(&done, Err(failure) if failure.status == exit::IN_USE) && Instant::now() < deadline {
        std::thread::sleep(TICK);
        done = again().and_then(super::mount::mount);
    }
    done
}

/// Whether it can't be mounted because a backing or the file isn't there.
fn is_absent(args: &MountHelperArgs, failure: &Failure) -> bool {
    let no_file = settings::is_file(&args.spec) && !Path::new(&args.spec).exists();
    no_file || failure.status == exit::MISSING
}

fn unknown(args: &MountHelperArgs) -> Unknown {
    if args.sloppy { Unknown::LeftOut } else { Unknown::Refused }
}

/// The `kvfs mount` line that says the same.
fn line(args: &MountHelperArgs, options: &[String]) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["kvfs".into(), "mount".into()];
    match args.spec.as_bytes() {
        // What people write where there's nothing to name.
        b"kvfs" | b"none" => {}
        _ if settings::is_file(&args.spec) => line.push(settings::flag(settings::CONFIG, &args.spec)),
        _ => line.push(settings::flag("backing", &args.spec)),
    }
    if !options.iter().any(|word| word.starts_with("fsname=")) {
        // As a list of options: one in a file doesn't count before SPEC, which `mount -a` looks for.
        line.push(settings::flag("fsname", &args.spec));
    }
    if !options.is_empty() {
        line.extend(["-o".into(), settings::join(options).into()]);
    }
    line.extend(["--".into(), args.dir.clone().into()]);
    line
}

/// Gives a mount others of the kernel's options; kvfs's own, which stand in fstab, have to be those that it has.
fn remount(args: &MountHelperArgs, options: &[String]) -> Result<(), Failure> {
    let mount = mount_of(&args.dir)?;
    let line = ["kvfs", "mount", "-o", &settings::join(options), "--"].map(OsString::from);
    let line: Vec<OsString> = line.into_iter().chain([args.dir.clone().into()]).collect();
    let said = settings::resolve_with(&line, unknown(args))?;
    let own = said.own_names();
    if !own.is_empty() {
        let running: Running = ask(mount.device, &Question::Running).map_err(|e| {
            Failure::other(format!(
                "of {} only ro, rw, noexec and their like can be changed: {e}",
                mount.point.display()
            ))
        })?;
        let differing = takeover::differing(&running.words, &said.words, &own).map_err(Failure::other)?;
        if !differing.is_empty() {
            return Err(Failure::other(format!(
                "{} has other options ({}); these can't be changed by a remount: unmount it and mount it anew, or see `kvfs backing`",
                mount.point.display(),
                differing.join("; ")
            )));
        }
    }
    if args.fake {
        return Ok(());
    }
    Ok(crate::fuse::remount(&mount.point, &said.args.kernel_options()?)?)
}
