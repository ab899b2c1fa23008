//! The options of `kvfs mount`, and what they come to: a configuration whose values have been checked, before anything
//! is touched.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::supervised::SupervisedArgs;
use super::{Failure, logging};
use crate::backing::{Defaults, MinFree, Missing, Spec};
use crate::config::{
    Capacity, DirectMode, LogTo, MountConfig, PassthroughMode, Publish, Supervise, Transport, backing_specs,
    default_threads,
};
use crate::direct::DirectOptions;
use crate::fuse::{check_mount_point, where_mounted};
use crate::placement::{self, GpuMap};
use crate::retention::{Evict, Marks, RetentionOptions};
use crate::sandbox::SandboxMode;

/// Mount backing directories as one
#[derive(Debug, clap::Args)]
pub(super) struct MountArgs {
    /// Where to mount: an empty directory outside the backings
    mount_point: PathBuf,

    /// The backing directories, separated by commas; may be given several times. Missing ones are made, and
    /// `file://` in front is accepted. Their order is the order of `by_gpu`
    #[arg(long, value_name = "DIR,DIR,...")]
    backing: Vec<String>,

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
    min_free: Option<String>,

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
    #[arg(long, default_value = "1T", value_name = "SIZE")]
    direct_buffer_bytes: String,

    /// Who starts the daemon again when it dies, so that clients wait a moment instead of failing. auto: in the
    /// background a small parent process; in the foreground systemd, if the unit has a store for descriptors
    /// (FileDescriptorStoreMax=), else nobody. on: the parent in any case. off: nobody
    #[arg(long, default_value = "auto", value_name = "MODE")]
    pub(super) supervise: Supervise,

    #[command(flatten)]
    pub(super) supervised: SupervisedArgs,

    /// Let other users in, for a mount by an ordinary user (needs user_allow_other in /etc/fuse.conf); root's
    /// mounts always do
    #[arg(long)]
    allow_other: bool,

    /// Whether the daemon gives up capabilities and system calls that it doesn't need. auto: as far as the system
    /// lets it. off: it keeps them
    #[arg(long, default_value = "auto", value_name = "MODE")]
    sandbox: SandboxMode,
}

impl MountArgs {
    fn direct_options(&self) -> Result<DirectOptions, Failure> {
        let bytes = crate::backing::parse_bytes(&self.direct_buffer_bytes)
            .map_err(|e| Failure::bad_value(format!("--direct-buffer-bytes: {e}")))?;
        Ok(DirectOptions {
            enabled: self.direct != DirectMode::Off,
            gpu: self.direct == DirectMode::Auto,
            hipfile: self.hipfile,
            locate: self.allow_locate,
            deadline: Duration::from_secs(self.direct_timeout),
            buffers: self.direct_buffers,
            buffer_bytes: bytes,
        })
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
            return Err(Failure::bad_value(format!(
                "--low-water {}% is not below --high-water {}%; files are removed from the high mark down to the low one",
                self.low_water, self.high_water
            )));
        }
        let marks = Marks { high: self.high_water, low: self.low_water };
        let (evict, total) = (self.evict, self.capacity.total);
        Ok(RetentionOptions { evict, marks, total, keeps_content: self.allow_locate })
    }

    /// Whether a daemon that takes over could be started so.
    pub(super) fn check_serving(&self) -> Result<(), Failure> {
        self.config(true).map(drop)
    }

    /// `serving`: a daemon before is mounted there.
    pub(super) fn config(&self, serving: bool) -> Result<MountConfig, Failure> {
        // An unknown policy is found before anything is touched.
        placement::check_name(&self.placement)?;
        let min_free = match &self.min_free {
            Some(text) => text.parse().map_err(|e| Failure::bad_value(format!("--min-free: {e}")))?,
            None => MinFree::Default,
        };
        let mount_point = match serving {
            true => where_mounted(&self.mount_point)?,
            false => check_mount_point(&self.mount_point)?,
        };
        let backings: Vec<Spec> = self
            .backing
            .iter()
            .flat_map(|value| backing_specs(value))
            .collect::<Result<_, _>>()
            .map_err(|e| Failure::bad_value(format!("--backing {e}")))?;
        let paths: Vec<PathBuf> = backings.iter().map(|spec| spec.path.clone()).collect();
        let gpu_map = GpuMap::parse(&self.gpu_map, &paths).map_err(Failure::bad_value)?;
        Ok(MountConfig {
            mount_point,
            backings,
            placement: self.placement.clone(),
            gpu_map,
            passthrough: self.passthrough,
            transport: self.transport,
            publish: self.publish,
            exclusive: self.exclusive,
            defaults: Defaults { min_free, capacity: self.capacity.each },
            retention: self.retention()?,
            shared_ttl: self.shared_ttl,
            threads: self.threads.unwrap_or_else(default_threads),
            allow_other: self.allow_other,
            direct: self.direct_options()?,
            sandbox: self.sandbox,
            missing: if self.degraded { Missing::LeftOut } else { Missing::Refused },
            drive_timeout: Duration::from_secs(self.drive_timeout),
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
