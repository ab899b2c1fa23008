//! What the tests of retention stand on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::common::process::Process;
use crate::common::{Builder, Errno, Lab, Mount, Outcome, cli, kvfs, lab, ns, pattern, sys};

pub(super) const MIB: u64 = 1 << 20;

/// A mount of these backings that evicts by this rule, with any more arguments.
pub(super) fn mount(lab: &Lab, backings: &[PathBuf], evict: &str, args: &[&str]) -> Builder {
    args.iter().fold(lab.mount(backings).arg("--evict").arg(evict), |builder, arg| builder.arg(arg))
}

/// Free room of a file system, in bytes.
pub(super) fn free(path: &Path) -> u64 {
    let st = sys::statvfs(path).unwrap();
    st.f_bavail * st.f_frsize
}

/// Writes a whole file as LMCache does: created, one write, closed.
pub(super) fn store(path: &Path, data: &[u8]) -> Result<(), String> {
    let fd = sys::open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644)
        .map_err(|e| format!("{}: open: {e}", path.display()))?;
    match sys::write(&fd, data) {
        Ok(n) if n == data.len() => Ok(()),
        short => Err(format!("{}: write of {}: {short:?}", path.display(), data.len())),
    }
}

/// The same, of a file that has to fit.
#[track_caller]
pub(super) fn put(path: &Path, seed: u64, len: u64) {
    store(path, &pattern(seed, len as usize)).unwrap();
}

/// Opens a file, reads it, closes it.
#[track_caller]
pub(super) fn read(path: &Path, seed: u64, len: u64) {
    let data = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(data == pattern(seed, len as usize), "{} has other bytes", path.display());
}

/// A file of a backing from before the mount, last used so many seconds ago.
pub(super) fn old(backing: &Path, name: &str, len: u64, ago: i64) {
    let path = backing.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, pattern(7, len as usize)).unwrap();
    used_ago(&path, ago);
}

/// Says that a file was last used so many seconds ago.
pub(super) fn used_ago(path: &Path, ago: i64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let time = (now.as_secs() as i64 - ago, 0);
    sys::utimens(path, time, time, 0).unwrap();
}

/// Waits for the next second: uses within one are not told apart.
pub(super) fn next_second() {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let start = now();
    while now() == start {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// `kvfs evict` with these arguments; what it said.
#[track_caller]
pub(super) fn evict(mount: &Mount, args: &[&str]) -> Outcome {
    let words = ["evict".into(), mount.point().into()].into_iter().chain(args.iter().map(OsString::from));
    kvfs(words)
}

/// Evicts so many bytes from each backing, and waits until that's done.
#[track_caller]
pub(super) fn evict_bytes(mount: &Mount, bytes: u64) {
    evict(mount, &["--bytes", &bytes.to_string()]).code(0);
}

/// Evicts whatever may go until it's as wanted: the daemon hears a moment later that a file was closed.
#[track_caller]
pub(super) fn evict_until(mount: &Mount, what: &str, wanted: impl Fn() -> bool) {
    until(mount, what, |_| {
        evict_bytes(mount, 1 << 30);
        wanted()
    });
}

/// The names in a directory of the mount.
pub(super) fn names(dir: &Path) -> BTreeSet<String> {
    lab::names(dir).into_iter().collect()
}

/// Numbers, as names.
pub(super) fn set<I: IntoIterator<Item = S>, S: ToString>(names: I) -> BTreeSet<String> {
    names.into_iter().map(|name| name.to_string()).collect()
}

/// A number of the status of retention.
#[track_caller]
pub(super) fn number(mount: &Mount, name: &str) -> u64 {
    let status = mount.status();
    status["retention"][name].as_u64().unwrap_or_else(|| panic!("no retention.{name}: {status:#}"))
}

/// Asks for the status until it's as wanted; the daemon's end, or nothing for long, fails the test.
#[track_caller]
pub(super) fn until(mount: &Mount, what: &str, wanted: impl Fn(&Value) -> bool) {
    let pidfd = sys::pidfd(mount.pid()).unwrap();
    let deadline = std::time::Instant::now() + ns::HANG;
    loop {
        let status = mount.status();
        if wanted(&status) {
            return;
        }
        let ended = cli::wait_fd(&pidfd, std::time::Duration::from_millis(5));
        let late = std::time::Instant::now() > deadline;
        assert!(!ended && !late, "not seen: {what}\n{status:#}\n{}", mount.story());
    }
}

/// A process that makes files in a mount, and says so; then it lives on until it's killed, or goes out of scope.
pub(super) fn living(work: impl FnOnce()) -> Process {
    let mut process = Process::start(|say| {
        work();
        say("made");
        loop {
            nix::unistd::pause();
        }
    });
    assert_eq!(process.hear(), "made", "a client couldn't make its files");
    process
}

/// A process that makes files in a mount, and ends.
pub(super) fn passing(work: impl FnOnce()) {
    Process::start(|_| work()).finish();
}

/// Samples the free room of file systems all the time, until it's asked for the least.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u64>>,
}

impl Watch {
    pub(super) fn new(volumes: &[PathBuf]) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let volumes = volumes.to_vec();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut least = vec![u64::MAX; volumes.len()];
            while !stopped.load(Relaxed) {
                for (least, volume) in least.iter_mut().zip(&volumes) {
                    *least = free(volume).min(*least);
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            least
        });
        Watch { stop, thread }
    }

    pub(super) fn least(self) -> Vec<u64> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

/// What went wrong in threads or processes.
#[derive(Default)]
pub(super) struct Faults(Mutex<Vec<String>>);

impl Faults {
    pub(super) fn add(&self, fault: String) {
        self.0.lock().unwrap().push(fault);
    }

    pub(super) fn seen(&self) -> bool {
        !self.0.lock().unwrap().is_empty()
    }

    #[track_caller]
    pub(super) fn none(self, mount: &Mount) {
        let faults = self.0.into_inner().unwrap();
        assert!(
            faults.is_empty(),
            "{} faults: {:#?}\n{}",
            faults.len(),
            &faults[..faults.len().min(10)],
            mount.story()
        );
    }
}

/// What the files of a backing take, as the daemon has to count it: their blocks, in units of 4 KiB, but no
/// more than their size. Blocks behind the end, and those by which the file system finds the others, don't count.
pub(super) fn counted(backing: &Path) -> u64 {
    let (mut bytes, mut seen) = (0, BTreeSet::new());
    let mut todo = vec![backing.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // It may have been evicted just now.
            let Ok(st) = sys::lstat(&path) else { continue };
            match st.st_mode & libc::S_IFMT {
                libc::S_IFDIR => todo.push(path),
                libc::S_IFREG if !path.file_name().unwrap().to_string_lossy().starts_with(".kvfs-") => {
                    let (size, blocks) = (st.st_size as u64, st.st_blocks as u64 * 512);
                    let taken = blocks.min(size.next_multiple_of(4096)).next_multiple_of(4096);
                    bytes += if seen.insert(st.st_ino) { taken } else { 0 };
                }
                _ => {}
            }
        }
    }
    bytes
}

/// ENOENT, whatever else it would be.
#[track_caller]
pub(super) fn absent<T: std::fmt::Debug>(what: &str, result: Result<T, Errno>) {
    assert_eq!(result.map(|_| ()), Err(Errno::ENOENT), "{what}");
}

/// What the daemon's descriptors are of.
pub(super) fn descriptors(mount: &Mount) -> Vec<String> {
    let dir = format!("/proc/{}/fd", mount.pid());
    let entries = std::fs::read_dir(dir).unwrap();
    let targets = entries.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok());
    targets.map(|t| t.to_string_lossy().into_owned()).collect()
}
