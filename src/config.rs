//! What a mount is told.
//!
//! What always holds: a [`MountConfig`] is complete and doesn't change while the mount lives; what can be
//! checked without touching a disk has been checked.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::backing::{Defaults, Limit, Missing, Spec, parse_bytes};
use crate::direct::DirectOptions;
use crate::metrics;
use crate::placement::GpuMap;
use crate::retention::RetentionOptions;
use crate::sandbox::SandboxMode;

/// Whether file data may be left to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PassthroughMode {
    /// Where the kernel and the backing allow it; else through the daemon.
    #[default]
    Auto,
    /// Always through the daemon.
    Off,
    /// On every backing, or the mount fails.
    Require,
}

/// How the kernel's requests come to the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// By io_uring where the kernel allows it and no daemon is to go on after this one; else by `/dev/fuse`.
    Auto,
    /// By `/dev/fuse`.
    #[default]
    DevFuse,
    /// By io_uring, or the mount fails.
    IoUring,
}

/// When other processes see a new file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Publish {
    /// At once, as in any file system.
    OnCreate,
    /// When it's closed; one that never is, because its writer was killed, is removed.
    #[default]
    OnClose,
}

/// Whether clients' extended attributes are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Xattrs {
    /// The backing files' own.
    #[default]
    On,
    /// There are none, and the kernel doesn't ask for one before each file's first write.
    Off,
}

/// Whether files answer the ioctls of the fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DirectMode {
    /// With buffers in host and in GPU memory.
    #[default]
    Auto,
    /// With buffers in host memory.
    Host,
    /// Not at all.
    Off,
}

/// Who starts the daemon again when it dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Supervise {
    /// In the background a parent; in the foreground systemd, where it keeps descriptors, else a parent; without
    /// systemd nobody.
    #[default]
    Auto,
    /// A parent.
    On,
    /// Nobody.
    Off,
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error.
    Stderr,
    /// The systemd journal.
    Journal,
    /// A file, appended to.
    File(PathBuf),
}

/// What lines of the log are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object each, for programs.
    Json,
}

impl FromStr for LogTo {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stderr" | "-" => LogTo::Stderr,
            "journal" => LogTo::Journal,
            path => LogTo::File(PathBuf::from(path)),
        })
    }
}

/// The most that files may take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Capacity {
    /// On each backing of which nothing else was said.
    pub each: Option<Limit>,
    /// On all together, in bytes.
    pub total: Option<u64>,
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("total=") {
            _ if text.is_empty() => Ok(Capacity::default()),
            Some(total) => Ok(Capacity { total: Some(parse_bytes(total)?), each: None }),
            None => Ok(Capacity { each: Some(text.parse()?), total: None }),
        }
    }
}

/// What mount(2) is told of a mount, beside nosuid and nodev: mount(8)'s options that aren't kvfs's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelOption {
    /// Clients change nothing.
    ReadOnly,
    /// Nothing is executed.
    NoExec,
    /// Reading sets no access times (of FUSE's own inodes: those of the files are the backings' matter).
    NoAtime,
    /// The same of directories.
    NoDirAtime,
    /// Reading sets them now and then: the kernel's default.
    RelAtime,
    /// Each time.
    StrictAtime,
    /// Symbolic links aren't followed (Linux 5.10).
    NoSymFollow,
}

impl KernelOption {
    /// All of them.
    pub const ALL: [KernelOption; 7] = [
        KernelOption::ReadOnly,
        KernelOption::NoExec,
        KernelOption::NoAtime,
        KernelOption::NoDirAtime,
        KernelOption::RelAtime,
        KernelOption::StrictAtime,
        KernelOption::NoSymFollow,
    ];

    /// Its name in mount(8).
    pub fn name(self) -> &'static str {
        match self {
            KernelOption::ReadOnly => "ro",
            KernelOption::NoExec => "noexec",
            KernelOption::NoAtime => "noatime",
            KernelOption::NoDirAtime => "nodiratime",
            KernelOption::RelAtime => "relatime",
            KernelOption::StrictAtime => "strictatime",
            KernelOption::NoSymFollow => "nosymfollow",
        }
    }
}

/// Everything that a mount needs to know.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Where to mount: absolute, without symbolic links.
    pub mount_point: PathBuf,
    /// The backings in their order, as the operator named them.
    pub backings: Vec<Spec>,
    /// The placement policy's name.
    pub placement: String,
    /// Which backing the operator gives to which GPU.
    pub gpu_map: GpuMap,
    /// Whether the kernel may pass data through.
    pub passthrough: PassthroughMode,
    /// How requests come.
    pub transport: Transport,
    /// When other processes see a new file.
    pub publish: Publish,
    /// Whether clients' extended attributes are carried.
    pub xattrs: Xattrs,
    /// A miss in the index is final: nobody else changes the backings.
    pub exclusive: bool,
    /// How long the kernel may keep what others may change.
    pub shared_ttl: Duration,
    /// What holds for each backing of which nothing else was said.
    pub defaults: Defaults,
    /// How much may stay.
    pub retention: RetentionOptions,
    /// Threads that answer the kernel.
    pub threads: NonZeroUsize,
    /// Let other users in, where that has to be said (an ordinary user's mount).
    pub allow_other: bool,
    /// The ioctl fast path.
    pub direct: DirectOptions,
    /// Where metrics are served over HTTP, if anywhere.
    pub metrics: Option<metrics::Address>,
    /// Whether the daemon gives up what it doesn't need.
    pub sandbox: SandboxMode,
    /// What is done about backings that aren't there.
    pub missing: Missing,
    /// A drive that takes longer to answer hangs.
    pub drive_timeout: Duration,
    /// What the list of mounts shows as its source; `None`: the backings.
    pub source: Option<String>,
    /// What else mount(2) is told.
    pub kernel: Vec<KernelOption>,
}

/// The backings in a `--backing` value: separated by commas, each perhaps with `file://` in front as LMCache
/// accepts it, and with flags behind colons.
pub fn backing_specs(value: &str) -> impl Iterator<Item = Result<Spec, String>> {
    value.split(',').map(str::trim).filter(|text| !text.is_empty()).map(|text| {
        let mut spec: Spec = text.parse()?;
        spec.path = std::path::absolute(&spec.path).unwrap_or(spec.path);
        Ok(spec)
    })
}

/// One thread a core, 2 to 8: more threads answer in parallel but wake each other up more often.
pub fn default_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    NonZeroUsize::new(cores.clamp(2, 8)).unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_lists() {
        let paths = |value| {
            backing_specs(value).map(|s| s.unwrap().path.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(paths("/a,/b"), ["/a", "/b"]);
        assert_eq!(paths("file:///a, file:///b ,"), ["/a", "/b"]);
        assert_eq!(paths(""), Vec::<String>::new());
    }
}
