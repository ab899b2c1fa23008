//! A machine on which kvfs is installed, as far as the test's own mount namespace goes: the helpers in /sbin, kvfs where
//! they look for it, an fstab, and a list of mounts of its own for mount(8).

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::cli::{self, BINARY, Outcome};
use crate::common::lab::{list, run};
use crate::common::mount::status_of;
use crate::common::{Lab, ns, sys};

pub(crate) struct System {
    pub(crate) lab: Lab,
    pub(crate) point: PathBuf,
    pub(crate) backings: Vec<PathBuf>,
}

impl System {
    pub(crate) fn new() -> System {
        let lab = Lab::new();
        let helpers = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers");
        let (sbin, local, run_mount) = (lab.dir("sbin"), lab.dir("local"), lab.dir("run"));
        for name in ["mount", "umount"] {
            let own = sbin.join(format!("{name}.kvfs"));
            fs::copy(helpers.join(format!("{name}.kvfs")), &own).unwrap();
            sys::symlink(own.file_name().unwrap().to_str().unwrap(), sbin.join(format!("{name}.fuse.kvfs")))
                .unwrap();
        }
        sys::symlink(BINARY, local.join("kvfs")).unwrap();
        let real = fs::canonicalize("/sbin").unwrap();
        let layers = format!("lowerdir={}:{}", sbin.display(), real.display());
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(&real));
        run(Command::new("mount").arg("--bind").arg(&local).arg("/usr/local/sbin"));
        fs::create_dir_all("/run/mount").unwrap();
        run(Command::new("mount").arg("--bind").arg(&run_mount).arg("/run/mount"));
        let (point, backings) = (lab.dir("mnt"), lab.dirs(2));
        System { lab, point, backings }
    }

    /// The list of backings.
    pub(crate) fn spec(&self) -> String {
        list(&self.backings)
    }

    /// A word for `-o` that keeps the log in the test's own place.
    pub(crate) fn log(&self) -> String {
        format!("log={}", self.lab.path("log").display())
    }

    /// Gives this namespace an fstab.
    pub(crate) fn fstab(&self, text: &str) {
        let path = self.lab.path("fstab");
        fs::write(&path, text).unwrap();
        let there = Path::new("/etc/fstab");
        if !there.exists() {
            // Of an image that has none: it stays, empty.
            fs::write(there, "").unwrap();
        }
        run(Command::new("mount").arg("--bind").arg(&path).arg(there));
    }

    /// `mount -t kvfs SPEC point -o options,log=...`
    pub(crate) fn mount(&self, spec: &str, options: &str) -> Outcome {
        let options = format!("{options},{}", self.log());
        tool(&["mount", "-t", "kvfs", spec, text(&self.point), "-o", &options])
    }

    /// What serves the mount.
    pub(crate) fn daemon(&self) -> Daemon {
        Daemon::of(&self.point)
    }

    /// A line of findmnt.
    pub(crate) fn findmnt(&self, columns: &str) -> String {
        tool(&["findmnt", "-n", "-o", columns, text(&self.point)]).code(0).stdout.trim().to_owned()
    }

    /// Asserts that a refused mount has left nothing.
    #[track_caller]
    pub(crate) fn nothing_mounted(&self) {
        assert_eq!(ns::mounts_at(&self.point).len(), 0);
    }
}

/// Runs a tool of the system.
pub(crate) fn tool(words: &[&str]) -> Outcome {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    cli::finish(command)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A daemon in the background, and its parent, if it has one; they end with the test.
pub(crate) struct Daemon {
    processes: Vec<OwnedFd>,
    point: PathBuf,
}

impl Daemon {
    pub(crate) fn of(point: &Path) -> Daemon {
        let status = status_of(point);
        let pid = status["pid"].as_u64().unwrap() as u32;
        let mut processes = vec![sys::pidfd(pid).unwrap()];
        if status["supervised"]["by"] == "its parent process" {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let parent = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
            // First: it would start another daemon.
            processes.insert(0, sys::pidfd(parent).unwrap());
        }
        Daemon { processes, point: point.to_owned() }
    }

    pub(crate) fn signal(&self, signal: i32) {
        self.processes.iter().for_each(|process| sys::signal(process, signal).unwrap());
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn ended(&self) {
        assert!(self.processes.iter().all(|process| cli::wait_fd(process, ns::HANG)), "it doesn't end");
    }

    /// Whether what serves the mount has ended by now.
    pub(crate) fn is_gone(&self) -> bool {
        self.processes.last().is_some_and(|daemon| cli::wait_fd(daemon, Duration::ZERO))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for process in &self.processes {
            let _ = sys::signal(process, libc::SIGKILL);
        }
        ns::unmount_below(&self.point);
    }
}
