//! The options of `kvfs mount`, and what they come to: a configuration whose values have been checked, before anything
//! is touched.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::settings::{self, Origins};
use super::supervised::SupervisedArgs;
use super::{Failure, logging};
use crate::backing::{Defaults, MinFree, Missing, Spec, parse_bytes};
use crate::config::{
    Capacity, DirectMode, KernelOption, LogFormat, LogTo, MountConfig, PassthroughMode, Publish, Supervise,
    Transport, Xattrs, backing_specs, default_threads,
};
use crate::direct::DirectOptions;
use crate::fuse::{check_mount_point, where_mounted};
use crate::metrics;
use crate::placement::{self, GpuMap};
use crate::retention::{Evict, Marks, RetentionOptions};
use crate::sandbox::SandboxMode;

/// Mount backing directories as one
#[derive(Debug, clap::Args)]
pub(super) struct MountArgs {
    /// Where to mount: an empty directory outside the backings. Needed where a file (--config) doesn't name it
    mount_point: Option<PathBuf>,

    /// A TOML file with options: its keys are the long names of the options, and `mount-point`. Flags and -o count before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Options as mount(8) takes them: NAME or NAME=VALUE, separated by commas; a value with commas in double quotes.
    /// All of these options but -f by their long names, and ro, noexec, noatime and their like. Flags count before them
    #[arg(short, long, value_name = "OPTION,...")]
    options: Vec<String>,

    /// Where the options that aren't flags were said
    #[arg(skip)]
    pub(super) origins: Origins,

    /// The backing directories, separated by commas; may be given several times. Missing ones are made, and
    /// `file://` in front is accepted. Their order is the order of `by_gpu`
    #[arg(long, value_name = "DIR,DIR,...")]
    pub(super) backing: Vec<String>,

    /// Mount though backings are missing, without them: their files are absent, and they are taken in as soon as
    /// they are there
    #[arg(long)]
    degraded: bool,

    /// Seconds after which a drive that doesn't answer counts as hung, 1 to 3600: what's asked of it then gives EIO
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    drive_timeout: u64,

    /// Stay in the foreground; the log goes to standard error unless --log says otherwise
    #[arg(short, long)]
    pub(super) foreground: bool,

    /// Where the log goes: a file, `journal` or `stderr` [default in the background: the journal; where there
    /// is none /var/log/kvfs.log, or an ordinary user's $XDG_RUNTIME_DIR/kvfs/kvfs.log]
    #[arg(long, value_name = "DEST")]
    log: Option<LogTo>,

    /// What lines of the log are: text, or json (an object each; not for the journal, which has fields anyway)
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    pub(super) log_format: LogFormat,

    /// Where new files go. by_gpu: to the backing with the number of the GPU that the file belongs to, modulo
    /// the number of backings; by a hash of the name where the GPU isn't known. hash: by a hash of the name,
    /// weighted by capacity. round-robin: to the next backing. most-free: to the one with the most room.
    /// nearest: to the one closest to the GPU by PCIe and NUMA
    #[arg(long, default_value = "by_gpu", value_name = "POLICY")]
    placement: String,

    /// Sends the files of these GPUs to the backings given here, whatever their numbers. A GPU by its UUID
    /// (GPU-..., MIG-...) or PCI address, a backing by its path or its number in the list, from 0; may be given
    /// several times
    #[arg(long, value_name = "GPU=BACKING,...")]
    gpu_map: Vec<String>,

    /// Whether the kernel reads and writes backing files itself. auto: where it can. off: all data goes
    /// through the daemon. require: fail if it can't on every backing
    #[arg(long, default_value = "auto", value_name = "MODE")]
    passthrough: PassthroughMode,

    /// How the kernel's requests come to the daemon. dev-fuse: by /dev/fuse. io-uring: each is answered on the
    /// processor where it was made, which is quicker; it needs Linux 6.14 with fuse.enable_uring=1, and --supervise
    /// off. auto: io-uring where that's possible
    #[arg(long, default_value = "dev-fuse", value_name = "HOW")]
    transport: Transport,

    /// When other processes see a new file. on-close: when its writer has closed it; one whose writer was killed
    /// before is removed. on-create: at once
    #[arg(long, default_value = "on-close", value_name = "WHEN")]
    publish: Publish,

    /// Whether files have extended attributes. off: the kernel then doesn't ask for one before the first write to each
    /// file, which saves small files a round trip
    #[arg(long, default_value = "on", value_name = "MODE")]
    xattrs: Xattrs,

    /// Nobody but this mount changes the backings: names that it doesn't know are absent, without asking the
    /// backings, and the kernel remembers that
    #[arg(long)]
    exclusive: bool,

    /// How long the kernel may keep names and attributes that others may change (backings with `:shared`):
    /// seconds, 0 to 3600, with a fraction if need be
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = shared_ttl)]
    shared_ttl: Duration,

    /// What must stay free on each backing: below it, new files go to another. Bytes with K, M, G or T, or a
    /// share such as 2% [default: the larger of 2G and 2%, but no more than 5%]
    #[arg(long, value_name = "SIZE")]
    min_free: Option<MinFree>,

    /// The most that files may take: on each backing, or (total=SIZE) on all together. Bytes with K, M, G or T,
    /// or a share of each backing such as 50% [default: what the file systems have]
    #[arg(long, value_name = "[total=]SIZE", default_value = "", hide_default_value = true)]
    capacity: Capacity,

    /// What may be removed to make room. never: nothing. orphans: files that only the process that wrote them
    /// could have found again, and that is gone. lru: these first, then what was used least recently
    #[arg(long, default_value = "orphans", value_name = "WHAT")]
    evict: Evict,

    /// Above this share of what may be used of a backing, files are removed
    #[arg(long, default_value = "95%", value_name = "PERCENT", value_parser = percent)]
    high_water: f64,

    /// Until this share is left
    #[arg(long, default_value = "90%", value_name = "PERCENT", value_parser = percent)]
    low_water: f64,

    /// Threads that answer the kernel, 1 to 64 [default: one per core, 2 to 8]
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<NonZeroUsize>,

    /// Whether files answer the ioctls of the fast path. auto: with buffers in host and in GPU memory. host:
    /// in host memory alone. off: not at all
    #[arg(long, default_value = "auto", value_name = "MODE")]
    direct: DirectMode,

    /// Use AMD's GPUs through HIP and hipFile where there is none of NVIDIA's. Never tried on one
    #[arg(long)]
    hipfile: bool,

    /// Tell clients of the fast path where a file really is, if they could open it there themselves
    #[arg(long)]
    allow_locate: bool,

    /// Seconds after which a transfer of the fast path is answered with an error, 1 to 3600
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    direct_timeout: u64,

    /// Buffers that one user may have registered
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    direct_buffers: u32,

    /// Bytes in all buffers of one user, with K, M, G or T
    #[arg(long, default_value = "1T", value_name = "SIZE", value_parser = parse_bytes)]
    direct_buffer_bytes: u64,

    /// Who starts the daemon again when it dies, so that clients wait a moment instead of failing. auto: in the
    /// background a small parent process; in the foreground, for systemd, systemd itself, if the unit has a store for
    /// descriptors (FileDescriptorStoreMax=), else the parent; else nobody. on: the parent in any case. off: nobody
    #[arg(long, default_value = "auto", value_name = "MODE")]
    pub(super) supervise: Supervise,

    #[command(flatten)]
    pub(super) supervised: SupervisedArgs,

    /// Serve metrics for Prometheus over HTTP: at a port of this machine (127.0.0.1:9464, or the port alone), at another
    /// address for all who can reach it (0.0.0.0:9464), or at a socket (unix:/PATH)
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<metrics::Address>,

    /// Let other users in, for a mount by an ordinary user (needs user_allow_other in /etc/fuse.conf); root's
    /// mounts always do
    #[arg(long)]
    allow_other: bool,

    /// What the list of mounts (findmnt, df) shows as the source [default: the backings]
    #[arg(long, value_name = "NAME", value_parser = fsname)]
    fsname: Option<String>,

    /// Whether the daemon gives up capabilities and system calls that it doesn't need. auto: as far as the system
    /// lets it. off: it keeps them
    #[arg(long, default_value = "auto", value_name = "MODE")]
    sandbox: SandboxMode,
}

impl MountArgs {
    fn direct_options(&self) -> DirectOptions {
        DirectOptions {
            enabled: self.direct != DirectMode::Off,
            gpu: self.direct == DirectMode::Auto,
            hipfile: self.hipfile,
            locate: self.allow_locate,
            deadline: Duration::from_secs(self.direct_timeout),
            buffers: self.direct_buffers,
            buffer_bytes: self.direct_buffer_bytes,
        }
    }

    pub(super) fn log_to(&self) -> Result<LogTo, Failure> {
        Ok(match (&self.log, self.foreground) {
            (Some(LogTo::File(path)), _) => LogTo::File(std::path::absolute(path).unwrap_or(path.clone())),
            (Some(log), _) => log.clone(),
            (None, true) => LogTo::Stderr,
            (None, false) => logging::default_in_background()?,
        })
    }

    fn retention(&self) -> Result<RetentionOptions, Failure> {
        if self.low_water >= self.high_water {
            return Err(self.said_of(&["low-water", "high-water"], Failure::bad_value(format!(
                "--low-water {}% is not below --high-water {}%; files are removed from the high mark down to the low one",
                self.low_water, self.high_water
            ))));
        }
        let marks = Marks { high: self.high_water, low: self.low_water };
        let (evict, total) = (self.evict, self.capacity.total);
        Ok(RetentionOptions { evict, marks, total, keeps_content: self.allow_locate })
    }

    /// What the kernel is told.
    pub(super) fn kernel_options(&self) -> Result<Vec<KernelOption>, Failure> {
        settings::kernel_options(&self.options)
    }

    /// Where it's to be mounted.
    pub(super) fn mount_point(&self) -> Result<&Path, Failure> {
        self.mount_point.as_deref().ok_or_else(|| Failure {
            status: 2,
            message: "no mount point was given: name a directory, or write mount-point = \"...\" in the file"
                .into(),
        })
    }

    /// The failure, with where the first of these options that wasn't a flag was said.
    fn said_of(&self, options: &[&str], failure: Failure) -> Failure {
        match options.iter().find_map(|option| self.origins.of(option)) {
            Some(origin) => Failure { message: format!("{origin}: {}", failure.message), ..failure },
            None => failure,
        }
    }

    /// Where metrics are served: not in the mount, which its daemon must never touch.
    fn metrics_at(&self, mount_point: &Path, serving: bool) -> Result<Option<metrics::Address>, Failure> {
        let is_inside = |path: &Path| {
            // Nothing is asked of paths when it's mounted already.
            let dir = path.parent().filter(|_| !serving).and_then(|dir| dir.canonicalize().ok());
            path.starts_with(mount_point) || dir.is_some_and(|dir| dir.starts_with(mount_point))
        };
        match &self.metrics {
            Some(metrics::Address::Unix(path)) if is_inside(path) => {
                let message = format!(
                    "--metrics unix:{} is in the mount itself; choose a path outside of it, /run/kvfs.metrics for instance",
                    path.display()
                );
                Err(self.said_of(&["metrics"], Failure::bad_value(message)))
            }
            address => Ok(address.clone()),
        }
    }

    /// Whether a daemon that takes over could be started so.
    pub(super) fn check_serving(&self) -> Result<(), Failure> {
        self.config(true).map(drop)
    }

    /// `serving`: a daemon before is mounted there.
    pub(super) fn config(&self, serving: bool) -> Result<MountConfig, Failure> {
        // An unknown policy is found before anything is touched.
        placement::check_name(&self.placement).map_err(|e| self.said_of(&["placement"], e.into()))?;
        let min_free = self.min_free.unwrap_or(MinFree::Default);
        let mount_point = self.mount_point()?;
        let mount_point = match serving {
            true => where_mounted(mount_point),
            false => check_mount_point(mount_point),
        }
        .map_err(|e| self.said_of(&["mount-point"], e.into()))?;
        let backings: Vec<Spec> = self
            .backing
            .iter()
            .flat_map(|value| backing_specs(value))
            .collect::<Result<_, _>>()
            .map_err(|e| self.said_of(&["backing"], Failure::bad_value(format!("--backing {e}"))))?;
        let paths: Vec<PathBuf> = backings.iter().map(|spec| spec.path.clone()).collect();
        let gpu_map = GpuMap::parse(&self.gpu_map, &paths)
            .map_err(|e| self.said_of(&["gpu-map"], Failure::bad_value(e)))?;
        Ok(MountConfig {
            metrics: self.metrics_at(&mount_point, serving)?,
            mount_point,
            backings,
            placement: self.placement.clone(),
            gpu_map,
            passthrough: self.passthrough,
            transport: self.transport,
            publish: self.publish,
            xattrs: self.xattrs,
            exclusive: self.exclusive,
            defaults: Defaults { min_free, capacity: self.capacity.each },
            retention: self.retention()?,
            shared_ttl: self.shared_ttl,
            threads: self.threads.unwrap_or_else(default_threads),
            allow_other: self.allow_other,
            direct: self.direct_options(),
            sandbox: self.sandbox,
            missing: if self.degraded { Missing::LeftOut } else { Missing::Refused },
            drive_timeout: Duration::from_secs(self.drive_timeout),
            source: self.fsname.clone(),
            kernel: self.kernel_options()?,
        })
    }
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse() {
        Ok(n @ 1..=64) => NonZeroUsize::new(n).ok_or_else(String::new),
        _ => Err("a number from 1 to 64".into()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).trim().parse() {
        Ok(n) if (1.0..=100.0).contains(&n) => Ok(n),
        _ => Err("a share from 1% to 100%".into()),
    }
}

fn shared_ttl(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds @ 0.0..=3600.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0 to 3600".into()),
    }
}

/// The kernel takes a source of one page, and lists of mounts are read line by line.
fn fsname(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a name that isn't empty".into()),
        _ if text.len() > 1024 || text.contains(char::is_control) => {
            Err("a name of at most 1024 bytes, in one line".into())
        }
        _ => Ok(text.into()),
    }
}
