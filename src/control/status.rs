//! What a mount says of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::JobStatus;
use crate::backing::{Backing, Condition, Health, Passthrough, State};
use crate::direct::{Direct, DirectStatus};
use crate::fs::{Fs, PublishStatus};
use crate::fuse::ChosenTransport;
use crate::printable::printable;
use crate::retention::RetentionStatus;
use crate::supervise::Handover;
use crate::version;

/// How long a drive may take to be looked at before its status is told.
const SETTLED: Duration = Duration::from_secs(1);

/// A mount, as `kvfs status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// What tells builds of that version apart, if it's known.
    #[serde(default)]
    pub build: Option<String>,
    /// The daemon's executable.
    #[serde(default)]
    pub executable: PathBuf,
    /// The daemon's process.
    pub pid: u32,
    /// Where it's mounted.
    pub mountpoint: PathBuf,
    /// Seconds since then.
    pub uptime_s: u64,
    /// Where the daemon's log goes.
    pub log: String,
    /// Whether the daemon has given up what it doesn't need: `on`, or `off` and why.
    #[serde(default)]
    pub sandbox: String,
    /// Whether the kernel moves the data by itself.
    pub passthrough: PassthroughStatus,
    /// How the kernel's requests come: `/dev/fuse`, or `io_uring`.
    #[serde(default)]
    pub transport: String,
    /// Why they don't come by io_uring, where `--transport auto` asked for it.
    #[serde(default)]
    pub transport_why: Option<String>,
    /// What moves data that the kernel doesn't: `io_uring`, or `psync`.
    pub io_engine: String,
    /// Why it isn't io_uring.
    pub io_engine_why: Option<String>,
    /// The placement policy.
    pub placement: String,
    /// Whether a miss in the index is final.
    pub exclusive: bool,
    /// The backings, by slot.
    pub backings: Vec<BackingStatus>,
    /// The index.
    pub index: IndexStatus,
    /// Directories with a placement policy or a quota of their own.
    #[serde(default)]
    pub rules: Vec<RuleStatus>,
    /// Files open now.
    pub open_files: u64,
    /// When other processes see a new file, and what came of it.
    #[serde(default)]
    pub publish: PublishStatus,
    /// How much may stay, and what went.
    pub retention: RetentionStatus,
    /// Work on the backings: what is under way, or what was last.
    #[serde(default)]
    pub job: Option<JobStatus>,
    /// The ioctl fast path.
    pub direct: DirectStatus,
    /// Who starts the daemon again when it dies.
    #[serde(default)]
    pub supervised: Supervised,
    /// The last upgrade.
    #[serde(default)]
    pub last_upgrade: Option<Handover>,
    /// What an operator should know of its clients.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Requests so far, by operation, and `panics`.
    pub ops: BTreeMap<String, u64>,
}

/// Who starts the daemon again when it dies, and what came of it so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervised {
    /// `its parent process`, `systemd` or `nobody`.
    pub by: String,
    /// Daemons of this mount so far: 1 is the first.
    pub daemons: u32,
    /// How the one before ended, if there was one.
    pub last_end: Option<String>,
    /// Open files that this one took over.
    pub files: usize,
    /// Open files that it couldn't find.
    pub lost: usize,
    /// Buffers of the ioctl fast path that it took over.
    pub buffers: usize,
    /// Buffers that it couldn't have again, those of processes that have ended among them.
    pub lost_buffers: usize,
}

/// On or off, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassthroughStatus {
    /// Whether it's on.
    pub on: bool,
    /// Why it isn't, or what that means.
    pub why: String,
}

/// A backing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackingStatus {
    /// Its place in the `--backing` list.
    pub slot: u8,
    /// Its identity.
    pub id: String,
    /// Its path.
    pub path: PathBuf,
    /// Its file system's type.
    pub fs: String,
    /// `rw`, or what the operator has set (`ro`, `no-create`, `draining`); `full` when new files go
    /// elsewhere; else what's wrong with the drive: `read-only`, `failed`, `hung`, `gone`, `absent`.
    pub state: String,
    /// What's wrong with the drive, if something is.
    #[serde(default)]
    pub health: Option<HealthStatus>,
    /// Whether others change it too.
    #[serde(default)]
    pub shared: bool,
    /// Names of files on it.
    pub files: u64,
    /// Size of its file system in bytes.
    pub bytes_total: u64,
    /// Used of it, by whatever.
    pub bytes_used: u64,
    /// Free for ordinary users.
    pub bytes_free: u64,
    /// What must stay free.
    pub min_free: u64,
    /// Whether the kernel moves its data.
    pub passthrough: PassthroughStatus,
}

/// What's wrong with a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// `read-only`, `failed`, `hung`, `gone` or `absent`.
    pub state: String,
    /// The same for people.
    pub what: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// What's to be done.
    pub advice: String,
    /// Why it couldn't be taken in again when that was last tried.
    pub hindrance: Option<String>,
    /// Files of it that clients have open: its file system stays in use until they're closed.
    pub open_files: u64,
}

impl HealthStatus {
    /// Whether the drive answers, be it that it takes no changes.
    pub fn answers(&self) -> bool {
        self.state == Health::ReadOnly.name()
    }

    fn of(backing: &Backing, open_files: u64) -> Option<HealthStatus> {
        let Condition { health, since, hindrance } = backing.health.condition();
        let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        (health != Health::Well).then(|| HealthStatus {
            state: health.name().into(),
            what: health.to_string(),
            since,
            advice: health.advice().into(),
            hindrance,
            open_files,
        })
    }
}

/// The rules of a directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleStatus {
    /// The directory, below the mount point.
    pub path: PathBuf,
    /// The policy that places files there.
    pub placement: Option<String>,
    /// What its files may take together, in bytes.
    pub quota: Option<u64>,
    /// What they take, where there is a quota.
    pub used: Option<u64>,
}

impl From<crate::fs::DirRule> for RuleStatus {
    fn from(rule: crate::fs::DirRule) -> RuleStatus {
        RuleStatus {
            path: path_of(&rule.path).to_owned(),
            placement: rule.placement.map(str::to_owned),
            quota: rule.quota.map(|(limit, _)| limit),
            used: rule.quota.map(|(_, used)| used),
        }
    }
}

/// The index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IndexStatus {
    /// Names of files.
    pub files: u64,
    /// Directories, the root included.
    pub dirs: u64,
    /// Copies behind another backing's file.
    pub shadows: u64,
    /// What the scan at the start could not read or does not show.
    pub unreadable: u64,
    /// The first of these.
    pub problems: Vec<String>,
    /// How long the scan took, in milliseconds.
    pub scan_ms: u64,
}

/// What doesn't come from the filesystem itself.
#[derive(Clone, Debug)]
pub struct About {
    /// Where it's mounted.
    pub mountpoint: PathBuf,
    /// Since when.
    pub since: Instant,
    /// Where the log goes.
    pub log: String,
    /// What has come of the sandbox.
    pub sandbox: String,
    /// How requests come.
    pub transport: ChosenTransport,
    /// Why the engine isn't io_uring.
    pub io_engine_why: Option<String>,
    /// Who starts it again.
    pub supervised: Supervised,
}

impl Status {
    /// Asks the filesystem.
    pub fn of(fs: &Fs, direct: &Direct, about: &About) -> Status {
        let counts = fs.index_counts();
        let report = fs.scan_report();
        let list = fs.backings();
        // What a request has just met is looked into first.
        list.iter().for_each(|b| b.health.settle(SETTLED));
        let status =
            |b: &Arc<Backing>| backing(b, counts.per_backing[b.slot.index()], fs.opens_on(b.slot).0 as u64);
        let list = fs.backings();
        let backings: Vec<BackingStatus> = list.iter().map(status).collect();
        let problem = |p: &crate::index::Problem| {
            let path = list.get(p.slot).map_or_else(PathBuf::new, |b| b.path.join(path_of(&p.path)));
            format!("{}: {}", printable(path.as_os_str().as_encoded_bytes()), p.what)
        };
        Status {
            version: version::version(),
            build: version::BUILD.map(str::to_owned),
            executable: std::fs::read_link("/proc/self/exe").unwrap_or_default(),
            pid: std::process::id(),
            mountpoint: about.mountpoint.clone(),
            uptime_s: about.since.elapsed().as_secs(),
            log: about.log.clone(),
            sandbox: about.sandbox.clone(),
            passthrough: overall(&backings),
            transport: if about.transport.uring { "io_uring" } else { "/dev/fuse" }.into(),
            transport_why: about.transport.why.clone(),
            io_engine: fs.engine().name().into(),
            io_engine_why: about.io_engine_why.clone(),
            placement: fs.policy().name().into(),
            exclusive: fs.exclusive(),
            backings,
            index: IndexStatus {
                files: counts.files,
                dirs: counts.dirs,
                shadows: counts.shadows,
                unreadable: report.unreadable(),
                problems: report.problems.iter().map(problem).collect(),
                scan_ms: report.elapsed.as_millis() as u64,
            },
            rules: fs.rules().into_iter().map(RuleStatus::from).collect(),
            open_files: fs.handles_open() as u64,
            publish: fs.publish_status(),
            retention: fs.retention.status(fs),
            job: None,
            last_upgrade: None,
            direct: direct.status(),
            supervised: about.supervised.clone(),
            warnings: fs.metrics.random_names.warnings(),
            ops: fs.counters.all().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }
}

fn path_of(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn overall(backings: &[BackingStatus]) -> PassthroughStatus {
    match backings.iter().filter(|b| !is_out(b)).find(|b| !b.passthrough.on) {
        None => {
            PassthroughStatus { on: true, why: "the kernel reads and writes the backing files itself".into() }
        }
        Some(off) if backings.iter().all(|b| is_out(b) || b.passthrough == off.passthrough) => {
            off.passthrough.clone()
        }
        Some(off) => PassthroughStatus {
            on: false,
            why: format!("not on every backing: {}: {}", off.path.display(), off.passthrough.why),
        },
    }
}

/// Whether nothing is known of how its data would move.
fn is_out(backing: &BackingStatus) -> bool {
    backing.health.as_ref().is_some_and(|health| !health.answers())
}

fn backing(backing: &Backing, files: u64, open_files: u64) -> BackingStatus {
    let health = HealthStatus::of(backing, open_files);
    let room = backing.room();
    let state = match &room {
        _ if health.is_some() => backing.health.get().name(),
        Err(_) => "failed",
        Ok(_) if backing.state() != State::ReadWrite => backing.state().name(),
        Ok(_) if !backing.takes_new_files() => "full",
        Ok(_) => "rw",
    };
    let room = room.unwrap_or_default();
    let passthrough = match backing.passthrough() {
        Passthrough::On => PassthroughStatus { on: true, why: String::new() },
        Passthrough::Off(why) => PassthroughStatus { on: false, why: why.clone() },
    };
    BackingStatus {
        slot: backing.slot.0,
        id: backing.id().to_string(),
        path: backing.path.clone(),
        fs: backing.fs_type.clone(),
        state: state.into(),
        health,
        shared: backing.shared,
        files,
        bytes_total: room.total,
        bytes_used: room.total.saturating_sub(room.free),
        bytes_free: room.available,
        min_free: backing.space.min_free,
        passthrough,
    }
}
