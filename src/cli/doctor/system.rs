//! The machine as the checks see it: a file tree, and the few things that only trying tells.
//!
//! What always holds: a check asks nothing but this. Nearly all it wants to know is in /proc, /sys and /dev,
//! so a test is a directory with some files.

use crate::direct::gpu::executable::Executable;
use crate::direct::gpu::probe::{self, Finding};
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A machine to be checked.
pub(super) struct System {
    root: PathBuf,
    /// The directories that commands are looked for in, below the root.
    commands: Vec<PathBuf>,
    trials: Box<dyn Trials>,
}

/// What can't be read from a file.
pub(super) trait Trials {
    /// Sets up an io_uring and takes it down again.
    fn io_uring(&self) -> io::Result<()>;

    /// Loads the shared library called `name`, and says why that's impossible.
    fn library(&self, name: &str) -> Result<(), String>;

    /// Finds out, in another process, how data moves between GPU memory and each directory.
    fn gpu_paths(&self, dirs: &[PathBuf]) -> Vec<Finding>;
}

/// The numbers of the capabilities that checks ask for (`linux/capability.h`).
pub(super) mod capability {
    pub(in super::super) const IPC_LOCK: u32 = 14;
    pub(in super::super) const SYS_ADMIN: u32 = 21;
    pub(in super::super) const SYS_RESOURCE: u32 = 24;
}

/// A version of the kernel, as far as features depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl System {
    /// The machine that this runs on.
    pub(super) fn this_machine() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // An ordinary user's PATH may lack the directories of the commands that mount.
        let usual = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        Self {
            root: PathBuf::from("/"),
            commands: std::env::split_paths(&path).chain(usual).collect(),
            trials: Box::new(Real),
        }
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A file's content without the white space around it; `None` when it can't be read as text.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok().map(|text| text.trim().to_owned())
    }

    /// A file that holds one number.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// The names in a directory, sorted; none when it can't be read.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// Opens a file for reading and writing, and closes it again.
    pub(super) fn open(&self, path: &str) -> io::Result<()> {
        OpenOptions::new().read(true).write(true).open(self.at(path)).map(drop)
    }

    /// Where the command `name` is, and whether it's set-user-ID.
    pub(super) fn command(&self, name: &str) -> Option<(PathBuf, bool)> {
        self.commands.iter().map(|directory| directory.join(name)).find_map(|path| {
            let metadata = fs::metadata(self.at(&path)).ok().filter(fs::Metadata::is_file)?;
            Some((path, metadata.permissions().mode() & 0o4000 != 0))
        })
    }

    /// The value of `field` in the lines `{field}:{value}` of a file.
    pub(super) fn field(&self, path: &str, field: &str) -> Option<String> {
        let text = self.read(path)?;
        let mut values = text.lines().filter_map(|line| line.split_once(':'));
        values.find(|(name, _)| name.trim() == field).map(|(_, value)| value.trim().to_owned())
    }

    /// The kernel's version.
    pub(super) fn release(&self) -> Option<Release> {
        let text = self.read("/proc/sys/kernel/osrelease")?;
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Release { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }

    /// Whether the kernel is of this version or newer; an unknown one is not.
    pub(super) fn has_release(&self, major: u32, minor: u32) -> bool {
        self.release() >= Some(Release { major, minor })
    }

    /// Whether this process has one of the [`capability`]s in effect, in the user namespace that it's in.
    pub(super) fn has_capability(&self, number: u32) -> bool {
        let effective = self.field("/proc/self/status", "CapEff");
        effective.and_then(|set| u64::from_str_radix(&set, 16).ok()).is_some_and(|set| set >> number & 1 == 1)
    }

    /// Whether it counts for the whole machine as well: the process is in the initial user namespace, whose
    /// map names every user.
    pub(super) fn is_privileged(&self, capability: u32) -> bool {
        let map = self.read("/proc/self/uid_map").unwrap_or_default();
        self.has_capability(capability) && map.split_whitespace().eq(["0", "0", "4294967295"])
    }

    /// Whether this process may do what the kernel reserves for the administrator of the whole machine.
    pub(super) fn is_admin(&self) -> bool {
        self.is_privileged(capability::SYS_ADMIN)
    }

    /// Sets up an io_uring and takes it down again.
    pub(super) fn io_uring(&self) -> io::Result<()> {
        self.trials.io_uring()
    }

    /// How data moves between GPU memory and each of these directories.
    pub(super) fn gpu_paths(&self, dirs: &[PathBuf]) -> Vec<Finding> {
        self.trials.gpu_paths(dirs)
    }

    /// The first of these shared libraries that loads, or why the first of them doesn't.
    pub(super) fn library<'a>(&self, names: &[&'a str]) -> Result<&'a str, String> {
        let mut reason = None;
        for &name in names {
            match self.trials.library(name) {
                Ok(()) => return Ok(name),
                Err(e) => reason = reason.or(Some(e)),
            }
        }
        Err(reason.unwrap_or_default())
    }
}

/// Trying it on this machine.
struct Real;

impl Trials for Real {
    fn io_uring(&self) -> io::Result<()> {
        io_uring::IoUring::new(8).map(drop)
    }

    fn library(&self, name: &str) -> Result<(), String> {
        // SAFETY: the libraries asked for are the GPU vendors' own, which are made to be loaded like this;
        // their initialisers start nothing. None of their functions is called.
        match unsafe { libloading::Library::new(name) } {
            // Some can't be unloaded safely, and this process ends soon anyway.
            Ok(library) => {
                std::mem::forget(library);
                Ok(())
            }
            // What dlerror(3) says is in the source.
            Err(e) => Err(e.source().map_or_else(|| e.to_string(), ToString::to_string)),
        }
    }

    fn gpu_paths(&self, dirs: &[PathBuf]) -> Vec<Finding> {
        probe::run(&Executable::default(), false, dirs, probe::DEADLINE).dirs
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A machine made of files.
    pub(in super::super) struct Machine {
        root: TempDir,
        io_uring: bool,
        libraries: Vec<&'static str>,
        gpu_paths: Vec<Finding>,
    }

    impl Machine {
        /// A machine on which nothing can be found out.
        pub(in super::super) fn bare() -> Self {
            let root = TempDir::new().expect("a temporary directory");
            Self { root, io_uring: false, libraries: Vec::new(), gpu_paths: Vec::new() }
        }

        /// A new kernel, and root in its initial user namespace; no GPU.
        pub(in super::super) fn server() -> Self {
            let mut machine = Self { io_uring: true, ..Self::bare() };
            machine
                .file("proc/sys/kernel/osrelease", "6.18.44\n")
                .file("proc/self/status", "Name:\tkvfs\nCapEff:\t000001ffffffffff\n")
                .file("proc/self/uid_map", "         0          0 4294967295\n")
                .file("proc/self/limits", "Max open files            1024                 1048576              files\nMax locked memory         8388608              8388608              bytes\n")
                .file("proc/filesystems", "nodev\tproc\nnodev\tfuse\n\text4\n")
                .file("proc/sys/kernel/io_uring_disabled", "0\n")
                .file("proc/sys/fs/fuse/max_pages_limit", "256\n")
                .file("sys/module/fuse/parameters/max_user_bgreq", "12000\n")
                .file("sys/module/fuse/parameters/enable_uring", "Y\n")
                .file("dev/fuse", "");
            machine
        }

        /// The same for somebody who isn't root, with `fusermount3` installed.
        pub(in super::super) fn of_a_user() -> Self {
            let mut machine = Self::server();
            machine.file("proc/self/status", "CapEff:\t0000000000000000\n").command("fusermount3", 0o4755);
            machine
        }

        pub(in super::super) fn file(&mut self, path: &str, content: &str) -> &mut Self {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().expect("a file's path")).expect("a directory");
            fs::write(path, content).expect("a file");
            self
        }

        pub(in super::super) fn without(&mut self, path: &str) -> &mut Self {
            fs::remove_file(self.root.path().join(path)).expect("it was there");
            self
        }

        pub(in super::super) fn command(&mut self, name: &str, mode: u32) -> &mut Self {
            self.file(&format!("usr/bin/{name}"), "");
            let path = self.root.path().join("usr/bin").join(name);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it's our own");
            self
        }

        pub(in super::super) fn library(&mut self, name: &'static str) -> &mut Self {
            self.libraries.push(name);
            self
        }

        pub(in super::super) fn gpu_paths(&mut self, found: Vec<Finding>) -> &mut Self {
            self.gpu_paths = found;
            self
        }

        pub(in super::super) fn without_io_uring(&mut self) -> &mut Self {
            self.io_uring = false;
            self
        }

        pub(in super::super) fn system(&self) -> System {
            System {
                root: self.root.path().to_owned(),
                commands: vec![PathBuf::from("/usr/bin")],
                trials: Box::new(Fake {
                    io_uring: self.io_uring,
                    libraries: self.libraries.clone(),
                    gpu_paths: self.gpu_paths.clone(),
                }),
            }
        }
    }

    struct Fake {
        io_uring: bool,
        libraries: Vec<&'static str>,
        gpu_paths: Vec<Finding>,
    }

    impl Trials for Fake {
        fn io_uring(&self) -> io::Result<()> {
            if self.io_uring { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
        }

        fn library(&self, name: &str) -> Result<(), String> {
            if self.libraries.contains(&name) { Ok(()) } else { Err(format!("{name}: no such file")) }
        }

        fn gpu_paths(&self, _: &[PathBuf]) -> Vec<Finding> {
            self.gpu_paths.clone()
        }
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        let mut machine = Machine::bare();
        assert!(!machine.system().has_release(0, 0));
        for (text, has) in
            [("6.18.44\n", true), ("6.9-rc1", true), ("6.8.0-31-generic", false), ("7.0", true), ("x", false)]
        {
            machine.file("proc/sys/kernel/osrelease", text);
            assert_eq!(machine.system().has_release(6, 9), has, "{text}");
        }
    }

    #[test]
    fn root_of_a_container_is_not_the_admin() {
        let mut machine = Machine::server();
        assert!(machine.system().is_admin());
        machine.file("proc/self/uid_map", "0 100000 65536\n");
        assert!(!machine.system().is_admin());
        assert!(machine.system().has_capability(capability::SYS_ADMIN));
        assert!(!Machine::of_a_user().system().is_admin());
    }
}
