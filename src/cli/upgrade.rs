//! `kvfs upgrade`: the daemon of a mount makes way for another executable, and clients wait a moment.
//!
//! What always holds: the new executable has been asked before anything happens, so a refusal costs clients
//! nothing; and this command says what came of it, by the word of the daemon that serves in the end.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use super::Failure;
use super::job::mount_of;
use super::settings::{self, Resolved};
use super::takeover::{self, Inquiry, Suitability};
use crate::backing::mountinfo::{Mount, mounted_at};
use crate::control::{AskError, Question, Running, Status, Successor, ask, ask_with};
use crate::supervise::{BY_SYSTEMD, Handover, HandoverOutcome};

/// How long an executable may take to say that it's kvfs.
const PATIENCE: Duration = Duration::from_secs(10);
/// A longer answer is none of ours.
const LONGEST: u64 = 64 << 10;
/// How often the daemon is asked what came of it.
const TICK: Duration = Duration::from_millis(20);

/// Hand a mount over to this kvfs, or to another, while it's in use: clients wait a moment
///
/// The executable is asked first whether it understands the mount's options and what the running daemon hands over;
/// if not, nothing happens. If the new daemon ends before it's ready, the former executable goes on serving.
#[derive(Debug, clap::Args)]
pub(super) struct UpgradeArgs {
    /// Where the kvfs is mounted
    #[arg(required_unless_present = "config")]
    mount_point: Option<PathBuf>,

    /// The file that it was mounted by, which says where. Refused if it has other options than the mount by now; which
    /// backings the mount has doesn't count
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mount_point", "options"])]
    config: Option<PathBuf>,

    /// The executable that takes over [default: the one that runs this command]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,

    /// Seconds to wait for the new daemon; after that it goes on, and `kvfs status` tells what came of it
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,

    /// Options of `kvfs mount`, to be sure: the upgrade is refused if the mount has others [default: the mount's own]
    #[arg(last = true, value_name = "MOUNT OPTIONS")]
    options: Vec<OsString>,
}

pub(super) fn run(args: &UpgradeArgs) -> Result<(), Failure> {
    let (point, said) = match (&args.mount_point, &args.config) {
        (Some(point), _) => (point.clone(), None),
        (None, Some(file)) => {
            let said = settings::resolve(&settings::line_of(file))?;
            (said.args.mount_point()?.to_owned(), Some(said))
        }
        // clap has refused that.
        (None, None) => return Err(Failure::other("no mount point was given")),
    };
    let mount = mount_of(&point)?;
    let running: Running = ask(mount.device, &Question::Running).map_err(|e| asked(&mount, e))?;
    if let Some(said) = said {
        agrees(&said, &running)?;
    }
    let restarter_waits = restarter_waits(&mount);
    let path = match &args.binary {
        Some(path) => std::path::absolute(path).map_err(Failure::other)?,
        None => std::env::current_exe().map_err(Failure::other)?,
    };
    let opened: &Path = args.binary.as_ref().map_or(Path::new("/proc/self/exe"), |_| &path);
    let executable = rustix::fs::open(opened, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| refused(format!("{} can't be opened: {}", path.display(), io::Error::from(e))))?;
    let version = examined(&executable, &path, inquiry(args, &point, &running)?)?;
    let to = Successor { id: uuid::Uuid::new_v4(), version: version.clone(), path };
    match ask_with::<()>(mount.device, &Question::Upgrade(to.clone()), Some(executable.as_fd())) {
        // It may have gone before it could answer.
        Ok(()) | Err(AskError::Io(_)) => {}
        Err(AskError::Refused(why)) => return Err(refused(why)),
    }
    if restarter_waits {
        let point = mount.point.display();
        println!("{point}: kvfs {version} is to take over; `kvfs status {point}` tells when it has");
        return Ok(());
    }
    let handover = came_of_it(&mount, to.id, Duration::from_secs(args.timeout))?;
    match handover.outcome {
        HandoverOutcome::Failed(why) => Err(Failure {
            status: 71,
            message: format!("{} goes on with kvfs {}: {why}", mount.point.display(), handover.from),
        }),
        _ => {
            println!(
                "{}: kvfs {} took over from {}; requests waited {} ms",
                mount.point.display(),
                handover.to,
                handover.from,
                handover.pause_ms
            );
            Ok(())
        }
    }
}

/// Refuses where the mount's file has come to say what the mount hasn't: an upgrade doesn't change it.
fn agrees(said: &Resolved, running: &Running) -> Result<(), Failure> {
    let mut names = said.own_names();
    names.extend(settings::resolve(&running.words)?.own_names());
    // Backings come and go while it's mounted, and the file is changed for the next time.
    names.retain(|name| name != "backing");
    let differing = takeover::differing(&running.words, &said.words, &names).map_err(refused)?;
    match differing.is_empty() {
        true => Ok(()),
        false => Err(refused(format!(
            "the file doesn't say what the mount has ({}); to change that unmount it and mount it anew",
            differing.join("; ")
        ))),
    }
}

/// Whether this is ExecReload= of a unit whose daemon systemd itself starts again: it does nothing for the unit
/// until this command has ended. It names the daemon to such commands (systemd.exec(5), MAINPID).
fn restarter_waits(mount: &Mount) -> bool {
    let Some(main) = std::env::var("MAINPID").ok().and_then(|pid| pid.parse::<u32>().ok()) else {
        return false;
    };
    let status = ask::<Status>(mount.device, &Question::Status).ok();
    status.is_some_and(|status| status.pid == main && status.supervised.by == BY_SYSTEMD)
}

fn refused(why: impl ToString) -> Failure {
    Failure { status: 70, message: format!("not upgraded: {}", why.to_string()) }
}

fn asked(mount: &Mount, e: AskError) -> Failure {
    match e {
        AskError::Refused(why) => refused(why),
        AskError::Io(e) => Failure::no_answer(format!(
            "the daemon of {} doesn't answer ({e}); run this as the user whose mount it is",
            mount.point.display()
        )),
    }
}

fn inquiry(args: &UpgradeArgs, point: &Path, running: &Running) -> Result<Inquiry, Failure> {
    let options = match args.options.is_empty() {
        true => None,
        false => {
            let line = [OsStr::new("kvfs"), OsStr::new("mount"), point.as_os_str()];
            let words = line.into_iter().chain(args.options.iter().map(OsString::as_os_str));
            let here = std::env::current_dir().map_err(Failure::other)?;
            Some((words.map(OsStr::to_owned).collect(), here))
        }
    };
    Ok(Inquiry {
        state_version: running.state_version,
        words: running.words.clone(),
        dir: running.dir.clone(),
        options,
    })
}

/// Asks an executable whether it can take over: its version.
fn examined(executable: &OwnedFd, path: &Path, inquiry: Inquiry) -> Result<String, Failure> {
    let no_kvfs =
        |why: &str| refused(format!("{} {why}; name a kvfs that can be executed (--binary)", path.display()));
    // By its descriptor: the file that was asked is the file that will serve.
    let mut child = Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()))
        .arg(takeover::NAME)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| no_kvfs(&format!("can't be executed ({e})")))?;
    if let Some(mut stdin) = child.stdin.take() {
        let question = serde_json::to_vec(&inquiry).map_err(Failure::other)?;
        // If it doesn't listen it has no answer either.
        let _ = stdin.write_all(&question);
    }
    let answer = child.stdout.take().and_then(|out| within(PATIENCE, out));
    let _ = child.kill();
    let _ = child.wait();
    let answer: Option<Suitability> = answer.and_then(|text| serde_json::from_slice(&text).ok());
    let Some(answer) = answer.filter(|answer| answer.program == "kvfs") else {
        return Err(no_kvfs("doesn't answer as a kvfs that can take over"));
    };
    match answer.refusal {
        Some(why) => Err(refused(why)),
        None => Ok(answer.version),
    }
}

/// All that comes out of a pipe until it's closed, if that isn't too long and doesn't take too long.
fn within(patience: Duration, mut out: impl Read + AsFd) -> Option<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        if poll(&mut [PollFd::new(&out, PollFlags::IN)], Some(&left)) != Ok(1) {
            return None;
        }
        let mut bytes = [0; 4096];
        match out.read(&mut bytes).ok()? {
            0 => return Some(text),
            n => text.extend(&bytes[..n]),
        }
        if text.len() as u64 > LONGEST {
            return None;
        }
    }
}

/// Waits until a daemon says what came of it.
fn came_of_it(mount: &Mount, id: uuid::Uuid, patience: Duration) -> Result<Handover, Failure> {
    let deadline = Instant::now() + patience;
    let point = mount.point.display();
    loop {
        let status = ask::<Status>(mount.device, &Question::Status).ok();
        let last = status.and_then(|status| status.last_upgrade).filter(|last| last.id == id);
        if let Some(last) = last.filter(|last| last.outcome != HandoverOutcome::Begun) {
            return Ok(last);
        }
        let there = mounted_at(&mount.point).map_err(Failure::other)?;
        if there.is_none_or(|there| there.device != mount.device) {
            return Err(Failure { status: 71, message: format!("{point} was unmounted meanwhile") });
        }
        if Instant::now() > deadline {
            return Err(Failure {
                status: 71,
                message: format!(
                    "no daemon of {point} has been ready for {} s; it may be reading the backings still (`kvfs status {point}`). If it's killed the former kvfs goes on",
                    patience.as_secs()
                ),
            });
        }
        std::thread::sleep(TICK);
    }
}
