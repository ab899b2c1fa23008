//! Bytes that the kernel passes through, as the kernel counts them.
//!
//! What clients read and write in passthrough never comes to the daemon, and FUSE counts none of it. So small programs (BPF)
//! are attached to the kernel's functions that do it, `backing_file_read_iter` and its like in fs/backing-file.c, and add what
//! these return to a table in memory that the daemon reads.
//!
//! What always holds:
//!
//! - What is counted is what clients were told: the bytes that a read or write returned or was completed with,
//!   buffered or not, by whatever calls (read, pread, readv, sendfile, splice, libaio, io_uring). A call counts once, when it's done.
//! - Only calls by this mount count. They're told apart by the mount's device number, and the drives by that of their file system
//!   (`s_dev` of their superblocks, as in `/proc/self/mountinfo`).
//! - Mappings (mmap) aren't counted: they have page faults, not calls, which happen in the backing's file system alone.
//! - Counters start at 0 in each daemon, and with it the programs go, however it ends. Nothing is left in the kernel.
//! - Reading is loads from memory: no thread and no system call. bpf(2) is needed only to attach, with CAP_SYS_ADMIN, or
//!   CAP_BPF and CAP_PERFMON; nothing of that is needed afterwards.
//!
//! The kernel doesn't run a program on a processor where it's running already: interrupted by the completion of a request, or with
//! `preempt=full` by another thread. Such a call isn't counted, but [`PassthroughBytes::uncounted`] says how many there were. Of 160,000
//! reads by eight threads on two processors that was none with `preempt=voluntary`, and 1 in 100 with `preempt=full`.
//!
//! A call takes about 280 instructions more, most of them the kernel's way to a program and back (counted in an emulated machine). The same functions serve overlayfs, whose calls meet the programs too and leave them at once: 250.
//!
//! Tracepoints are no other way: those that files have tell nothing of the mount, and those of all system calls would slow down
//! everything on the machine. Seen to work with Linux 6.12 and 7.3.

mod btf;
mod layout;
mod program;
mod sys;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use nix::unistd::{SysconfVar, sysconf};
use parking_lot::Mutex;

use crate::backing::mountinfo;
use crate::index::{MAX_BACKINGS, Slot};

use btf::Btf;
use layout::Layout;
use program::{HOOKS, Hook, Plan};
use sys::Table;

pub use btf::Unexpected;

/// Major and minor number of a file system's superblock, as mountinfo has them.
pub type Device = (u32, u32);

/// The number of the file system that an open file is in. It's `st_dev`, but for file systems such as btrfs, whose subvolumes have
/// numbers of their own there.
pub fn device_of(file: impl AsFd) -> io::Result<Device> {
    if let Some(mount) = mountinfo::of(&file) {
        return Ok(mount.device);
    }
    let st_dev = rustix::fs::fstat(file)?.st_dev;
    Ok((libc::major(st_dev), libc::minor(st_dev)))
}

/// Why bytes in passthrough can't be counted. The mount works as well without.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No BTF.
    #[error(
        "the kernel doesn't show its types ({path}: {0}): a kernel with CONFIG_DEBUG_INFO_BTF and /sys are needed",
        path = btf::PATH
    )]
    NoTypes(io::Error),
    /// Other types than those that kvfs knows.
    #[error("{path} isn't as expected: {0}; please report it with `uname -r`", path = btf::PATH)]
    OtherTypes(#[from] Unexpected),
    /// A function isn't in BTF.
    #[error("the kernel has no {0}: Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH is needed")]
    NoFunction(&'static str),
    /// EPERM of bpf(2).
    #[error(
        "bpf(2) isn't permitted: CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON, are needed outside of a user namespace, and a container's \
         seccomp profile has to allow it; some hardened kernels let nobody attach to their functions"
    )]
    NotPermitted,
    /// ENOSYS of bpf(2).
    #[error("the kernel has no bpf(2): CONFIG_BPF_SYSCALL is needed")]
    NoBpf,
    /// No room for the table, or no descriptor.
    #[error("there's no memory for the counters: {0}")]
    NoTable(io::Error),
    /// The verifier says no.
    #[error(
        "the kernel refuses the program for {function} ({error}): {verdict}; please report it with `uname -r`",
        verdict = if verdict.is_empty() { "it doesn't say why" } else { verdict }
    )]
    Refused {
        /// What it was to be attached to.
        function: &'static str,
        /// What bpf(2) said.
        error: io::Error,
        /// The end of the verifier's log.
        verdict: String,
    },
    /// It's loaded, but can't run.
    #[error(
        "the program for {function} can't be attached ({error}): CONFIG_BPF_JIT and CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS are needed, \
         and the sysctl kernel.ftrace_enabled has to be 1"
    )]
    NotAttached {
        /// What it was to be attached to.
        function: &'static str,
        /// What bpf(2) said.
        error: io::Error,
    },
}

/// What was passed through to and from one file system, since the counting began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The backings that are on it, in the order in which they were named; none for all file systems that weren't named.
    pub slots: Vec<Slot>,
    /// Bytes that clients have read.
    pub read: u64,
    /// Bytes that clients have written.
    pub written: u64,
}

/// A running count, until it's dropped.
pub struct PassthroughBytes {
    table: Table,
    layout: Layout,
    /// Which file system has which place in the table, and the backings on it.
    places: Mutex<Vec<(Device, Vec<Slot>)>>,
    /// Kept to be asked for what they missed.
    programs: Vec<OwnedFd>,
    /// What keeps them running.
    links: Vec<OwnedFd>,
}

impl PassthroughBytes {
    /// Counts from now on what is passed through of the mount with this device number, by the file systems of its backings.
    /// Before the sandbox is entered: it forbids bpf(2).
    pub fn attach(mount: Device, backings: &[(Slot, Device)]) -> Result<PassthroughBytes, Unavailable> {
        let btf = Btf::parse(std::fs::read(btf::PATH).map_err(Unavailable::NoTypes)?)?;
        let layout = Layout::new(possible_processors());
        let (table, map) =
            Table::new(layout.len()).map_err(|e| refusal(e).unwrap_or_else(Unavailable::NoTable))?;
        let function = |name| btf.function(name).ok_or(Unavailable::NoFunction(name));
        let plan = Plan {
            btf: &btf,
            mount: packed(mount),
            map: map.as_raw_fd(),
            layout,
            cast: function("bpf_rdonly_cast")?.id,
        };
        let mut counts = PassthroughBytes {
            table,
            layout,
            places: Mutex::new(Vec::new()),
            programs: Vec::new(),
            links: Vec::new(),
        };
        for (slot, device) in backings {
            counts.add(*slot, *device);
        }
        // All are loaded before the first one runs.
        for hook in HOOKS {
            let function = function(hook.function)?;
            let code = plan.program(hook, &function)?;
            counts.programs.push(load(hook, &code, function.id)?);
        }
        for (hook, program) in HOOKS.into_iter().zip(&counts.programs) {
            let not_attached = |error| Unavailable::NotAttached { function: hook.function, error };
            let link =
                sys::attach(program, hook.when).map_err(|e| refusal(e).unwrap_or_else(not_attached))?;
            counts.links.push(link);
        }
        Ok(counts)
    }

    /// A backing that the mount has got since. What came before is counted with the file systems that weren't named. With more than
    /// 64 file systems in a mount's life the further ones stay there.
    pub fn add(&self, slot: Slot, device: Device) {
        let mut places = self.places.lock();
        if let Some((_, slots)) = places.iter_mut().find(|(known, _)| *known == device) {
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        } else if places.len() < MAX_BACKINGS {
            let at = self.layout.device(places.len());
            places.push((device, vec![slot]));
            self.table.u32(at).store(packed(device), Ordering::Relaxed);
        }
    }

    /// What was passed through, for each file system that backings are on; and for all others together, if there was any.
    /// Backings on one file system can't be told apart.
    pub fn read(&self) -> Vec<Passed> {
        let slots: Vec<_> = self.places.lock().iter().map(|(_, slots)| slots.clone()).collect();
        let sum = |place, written| {
            self.layout.all(place, written).map(|at| self.table.u64(at).load(Ordering::Relaxed)).sum()
        };
        let passed = |place, slots| Passed { slots, read: sum(place, false), written: sum(place, true) };
        let others = passed(MAX_BACKINGS, Vec::new());
        let others = (others.read > 0 || others.written > 0).then_some(others);
        slots.into_iter().enumerate().map(|(place, slots)| passed(place, slots)).chain(others).collect()
    }

    /// How many calls weren't counted because another was being counted on the same processor, at most: those of other mounts
    /// and of overlayfs are among them. `None` where `/proc` doesn't tell.
    pub fn uncounted(&self) -> Option<u64> {
        self.programs.iter().map(missed).sum()
    }
}

fn load(hook: Hook, code: &[u64], function: u32) -> Result<OwnedFd, Unavailable> {
    sys::load(code, hook.name, hook.when, function).map_err(|sys::NotLoaded { error, verdict }| {
        refusal(error).unwrap_or_else(|error| Unavailable::Refused {
            function: hook.function,
            error,
            verdict,
        })
    })
}

/// What any command of bpf(2) may say.
fn refusal(error: io::Error) -> Result<Unavailable, io::Error> {
    match error.raw_os_error() {
        Some(libc::EPERM) => Ok(Unavailable::NotPermitted),
        Some(libc::ENOSYS) => Ok(Unavailable::NoBpf),
        _ => Err(error),
    }
}

/// As the kernel has it in `s_dev` (`MKDEV`, include/linux/kdev_t.h).
fn packed((major, minor): Device) -> u32 {
    major << 20 | minor
}

fn possible_processors() -> usize {
    let number = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten();
    number.and_then(|number| number.try_into().ok()).unwrap_or(1)
}

/// How often a program should have run and hasn't, as the kernel tells of its descriptor (`bpf_prog_show_fdinfo`).
fn missed(program: &OwnedFd) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}
