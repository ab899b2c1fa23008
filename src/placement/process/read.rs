//! Reads `/proc`.
//!
//! What always holds: nothing but the kernel's own text is read. No path that a process can choose is walked
//! before it's known to end in memory: a file system that it mounted, this one among them, could keep us waiting.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Container, Process};
use crate::placement::evidence::title::Title;
use crate::placement::evidence::visible::{Environ, Environment};

/// PROC_SUPER_MAGIC (include/uapi/linux/magic.h).
const PROC_MAGIC: i64 = 0x9fa0;

/// The initial pid namespace's number (PROC_PID_INIT_INO in include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// So far up is looked for an environment: a worker, its engine, an API server, and the shells around them.
const GENERATIONS: usize = 8;

/// More than any environment that the kernel lets a program start with in practice.
const LONGEST_ENVIRONMENT: u64 = 1 << 20;

/// A `/proc`.
pub(super) struct Reader {
    root: PathBuf,
    kernels: bool,
    /// Our own mount namespace, and which mount our own `/dev` is.
    namespace: Option<PathBuf>,
    dev: Option<Device>,
    #[cfg(test)]
    pub(super) accesses: std::sync::atomic::AtomicUsize,
}

/// Which of the threads that had an id in turn: the inode of its directory in `/proc`.
///
/// The kernel makes a new inode, with a new number and time, for each thread it gives an id to, and finds the
/// old one again only while that lives. It may make a second one for the same thread when memory is short,
/// which costs one more reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Incarnation {
    inode: u64,
    made: (i64, i64),
}

/// The device that a mount is of, as `/proc/PID/mountinfo` writes it.
type Device = Box<str>;

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: u32,
    pub(super) start: u64,
    pub(super) lives: bool,
}

impl Reader {
    pub(super) fn new(root: PathBuf) -> Self {
        let mut reader = Self {
            kernels: false,
            namespace: None,
            dev: None,
            root,
            #[cfg(test)]
            accesses: 0.into(),
        };
        // Our own, and of the pid namespace whose ids we are told.
        reader.kernels = rustix::fs::statfs(&reader.root).is_ok_and(|stat| stat.f_type == PROC_MAGIC)
            && fs::read_link(reader.root.join("self"))
                .is_ok_and(|pid| pid.as_os_str() == std::process::id().to_string().as_str());
        reader.namespace = fs::read_link(reader.root.join("self/ns/mnt")).ok();
        reader.dev = reader.mounted_on_dev("self").map(|(device, _)| device);
        reader
    }

    /// Whether the kernel's answers about ids are about the same ids.
    pub(super) fn is_the_kernels(&self) -> bool {
        self.kernels
    }

    pub(super) fn is_of_initial_namespace(&self) -> bool {
        fs::read_link(self.root.join("self/ns/pid"))
            .is_ok_and(|namespace| namespace.as_os_str() == INITIAL_PID_NAMESPACE)
    }

    fn path(&self, id: u32, file: &str) -> PathBuf {
        #[cfg(test)]
        self.accesses.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut path = self.root.join(id.to_string());
        path.push(file);
        path
    }

    pub(super) fn incarnation(&self, id: u32) -> Option<Incarnation> {
        let metadata = fs::metadata(self.path(id, "")).ok()?;
        Some(Incarnation { inode: metadata.ino(), made: (metadata.ctime(), metadata.ctime_nsec()) })
    }

    /// The id of the process that the thread belongs to.
    pub(super) fn process_of(&self, tid: u32) -> Option<u32> {
        self.status(tid, "Tgid:")?.parse().ok()
    }

    /// The first word of a line of `/proc/ID/status`.
    fn status(&self, id: u32, name: &str) -> Option<String> {
        let status = fs::read(self.path(id, "status")).ok()?;
        // The first line is a name that the thread chose; the kernel writes a newline in it as `\n`.
        let status = String::from_utf8_lossy(&status);
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.to_owned())
    }

    pub(super) fn name(&self, pid: u32) -> Option<String> {
        let name = fs::read(self.path(pid, "comm")).ok()?;
        Some(crate::printable::printable(name.trim_ascii_end()))
    }

    pub(super) fn stat(&self, pid: u32) -> Option<Stat> {
        let text = fs::read(self.path(pid, "stat")).ok()?;
        // The second field is a name in parentheses, with anything in it. Numbered as in proc(5), from 3 on.
        let after = text.iter().rposition(|&b| b == b')')? + 1;
        let text = std::str::from_utf8(&text[after..]).ok()?;
        let field = |number: usize| text.split_whitespace().nth(number - 3);
        let threads: u32 = field(20)?.parse().ok()?;
        let lives = match field(3)? {
            "X" | "x" => false,
            // The first thread may end before the others.
            "Z" => threads > 1,
            _ => true,
        };
        Some(Stat { parent: field(4)?.parse().ok()?, start: field(22)?.parse().ok()?, lives })
    }

    /// Reads all of a process; `before` is what was read of it the last time.
    pub(super) fn look(&self, pid: u32, before: Option<&Process>) -> Option<Process> {
        let stat = self.stat(pid)?;
        let title = first_argument(&self.path(pid, "cmdline"), Title::parse).ok()?;
        Some(Process {
            pid,
            start: stat.start,
            title,
            environment: self.environment(pid, stat, before),
            container: self.container(pid),
            open_device: self.open_device(pid),
        })
    }

    /// The environment of the process, or that of the nearest ancestor that still has one: setproctitle wipes it,
    /// and what a server is started with its workers have inherited.
    ///
    /// It ends at a process of another user, or whose environment we mustn't read: `su` and the like begin a new
    /// one.
    fn environment(&self, pid: u32, stat: Stat, before: Option<&Process>) -> Option<Environment> {
        let (mut at, mut stat) = (pid, stat);
        let mut user = None;
        for _ in 0..GENERATIONS {
            match Environ::parse(at, &read_up_to(&self.path(at, "environ"), LONGEST_ENVIRONMENT).ok()?) {
                Environ::Readable(environment) => return Some(environment),
                Environ::Wiped => {}
            }
            // It was there the last time: the title has been set since.
            let own = before.filter(|process| at == pid && process.start == stat.start);
            if let Some(own) = own.and_then(|own| own.environment.as_ref()).filter(|own| own.pid == pid) {
                return Some(own.clone());
            }
            if stat.parent <= 1 {
                return None;
            }
            let of_child = user.take().or_else(|| self.status(at, "Uid:"))?;
            let parent = self.stat(stat.parent)?;
            let of_parent = self.status(stat.parent, "Uid:")?;
            // An id that has been given to another since is of a process that started later.
            if of_parent != of_child || parent.start > stat.start {
                return None;
            }
            (at, stat, user) = (stat.parent, parent, Some(of_parent));
        }
        None
    }

    /// The device that is mounted on the `/dev` of a process (a number, or `self`), and its file system.
    fn mounted_on_dev(&self, process: &str) -> Option<(Device, String)> {
        #[cfg(test)]
        self.accesses.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mounts = fs::read_to_string(self.root.join(process).join("mountinfo")).ok()?;
        // 36 35 98:0 /root /mount/point options fields - type source options; the last one is on top.
        let on_dev = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some("/dev"))?;
        let kind = on_dev.split(" - ").nth(1)?.split(' ').next()?;
        Some((on_dev.split(' ').nth(2)?.into(), kind.to_owned()))
    }

    /// The GPU devices in the container of the process. A process that has our own `/dev` is in none.
    fn container(&self, pid: u32) -> Container {
        let Some(ours) = &self.dev else { return Container::None };
        // Most are in our own namespace, whose mounts may be thousands.
        if self.namespace.is_some()
            && fs::read_link(self.path(pid, "ns/mnt")).ok() == self.namespace
            && fs::read_link(self.path(pid, "root")).is_ok_and(|root| root == Path::new("/"))
        {
            return Container::None;
        }
        match self.mounted_on_dev(&pid.to_string()) {
            Some((device, _)) if device == *ours => Container::None,
            Some((_, kind)) if matches!(kind.as_str(), "tmpfs" | "devtmpfs") => {
                self.devices(pid).map_or(Container::Unknown, Container::Devices)
            }
            _ => Container::Unknown,
        }
    }

    /// The minors of `/dev/nvidiaN` in the `/dev` of the process, which is in memory.
    ///
    /// The way to it isn't, where the container's root is a FUSE mount: then the kernel must know it already.
    fn devices(&self, pid: u32) -> Option<Box<[u32]>> {
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.path(pid, "root"), path, Mode::empty()).ok()?;
        let how = if self.kernels { ResolveFlags::CACHED } else { ResolveFlags::empty() };
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dev = rustix::fs::openat2(root, "dev", directory, Mode::empty(), how).ok()?;
        let entries = rustix::fs::Dir::new(dev).ok()?.flatten();
        let minors = entries.filter_map(|entry| minor(entry.file_name().to_str().ok()?));
        let mut minors: Vec<u32> = minors.take(256).collect();
        minors.sort_unstable();
        Some(minors.into())
    }

    /// The minor of the only `/dev/nvidiaN` that the process has open, if it has `/dev/nvidia-uvm` open too.
    ///
    /// CUDA opens that one always, for its memory. What only looks at GPUs (NVML, in vLLM's engine for instance)
    /// doesn't: it may have any of them open, and that says nothing.
    fn open_device(&self, pid: u32) -> Option<u32> {
        // Cheaper than a look at all that a server has open, where there is no such driver.
        fs::metadata(self.root.join("driver/nvidia")).ok()?;
        let (mut only, mut memory) = (None, false);
        for entry in fs::read_dir(self.path(pid, "fd")).ok()?.flatten().take(16384) {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let Some(name) = target.to_str().and_then(|target| target.strip_prefix("/dev/")) else {
                continue;
            };
            memory |= name == "nvidia-uvm";
            match minor(name) {
                Some(minor) if only.is_some_and(|only| only != minor) => return None,
                Some(minor) => only = Some(minor),
                None => {}
            }
        }
        only.filter(|_| memory)
    }
}

/// The N of `nvidiaN`.
fn minor(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("nvidia")?;
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Reads the first argument of the command line, which is where a title is written to.
fn first_argument<T>(path: &Path, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    // Longer than any title with a rank; the rest of a long command line isn't looked at.
    let mut buffer = [0; 256];
    let length = File::open(path)?.read(&mut buffer)?;
    let first = buffer[..length].split(|&b| b == 0).next().unwrap_or_default();
    Ok(read(first.trim_ascii_end()))
}

fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
