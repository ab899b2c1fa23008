//! What the tests of drives have in common: a mount over volumes with clients at work on all of them.

mod dead;
#[path = "../direct/frozen.rs"]
mod frozen;
mod full;
mod gone;
mod hung;
mod killed;
mod load;
mod missing;
mod readonly;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::common::lab::run;
use crate::common::{FsKind, Lab, Mount, Outcome, kvfs, ns, pattern, ranked, sys};
use load::Load;

/// Three volumes, each with a backing on it, mounted.
struct Server {
    mount: Mount,
    volumes: Vec<PathBuf>,
    lab: Lab,
}

/// The size of the files that stay.
const LEN: usize = 200_000;

impl Server {
    fn new(kind: FsKind) -> Server {
        Server::with(kind, |mount| mount)
    }

    fn with(kind: FsKind, options: impl FnOnce(crate::common::Builder) -> crate::common::Builder) -> Server {
        let lab = Lab::new();
        let volumes: Vec<_> = (0..3).map(|_| lab.volume(kind, 512)).collect();
        let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = options(lab.mount(&backings)).start();
        Server { mount, volumes, lab }
    }

    /// Mounted anew: the daemon has nothing open for writing.
    fn restarted(self) -> Server {
        Server { mount: self.mount.restart(), ..self }
    }

    fn backing(&self, rank: usize) -> PathBuf {
        self.volumes[rank].join("kv")
    }

    /// What status says of a backing.
    #[track_caller]
    fn status(&self, rank: usize) -> Value {
        let status = self.mount.status();
        let all = status["backings"].as_array().unwrap();
        all.iter().find(|b| b["slot"] == rank).unwrap_or_else(|| panic!("no slot {rank}: {status:#}")).clone()
    }

    /// Waits until status says this of a backing.
    #[track_caller]
    fn until(&self, rank: usize, state: &str) -> Value {
        let deadline = Instant::now() + ns::HANG;
        loop {
            let now = self.status(rank);
            if now["state"] == state {
                return now;
            }
            assert!(Instant::now() < deadline, "not {state}: {now:#}\n{}", self.mount.story());
            std::thread::yield_now();
        }
    }

    /// `kvfs backing set MOUNTPOINT DIR rw`
    fn set_rw(&self, rank: usize) -> Outcome {
        let (point, backing) = (self.mount.point(), self.backing(rank));
        kvfs(["backing".as_ref(), "set".as_ref(), point.as_os_str(), backing.as_os_str(), "rw".as_ref()])
    }

    /// Lines of the log with all of these words.
    fn logged(&self, words: &[&str]) -> usize {
        let log = std::fs::read_to_string(&self.mount.log).unwrap();
        log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    fn image(&self, rank: usize) -> PathBuf {
        self.lab.path(&format!("vol{rank}.img"))
    }

    /// Mounts a volume again, at its place or elsewhere.
    fn attach(&self, rank: usize, at: &Path) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image(rank)).arg(at));
    }

    /// New files that would go to a drive go elsewhere, and can be used.
    #[track_caller]
    fn new_files_go_elsewhere(&self, rank: usize) {
        for i in 900..905 {
            let name = format!("d/{}", ranked(rank, i));
            put(&self.mount.path(&name), i as u64, 5000);
            check(&self.mount.path(&name), i as u64, 5000);
            let holders: Vec<usize> =
                (0..3).filter(|n| *n != rank && sys::lstat(self.backing(*n).join(&name)).is_ok()).collect();
            assert_eq!(holders.len(), 1, "{name}");
            sys::unlink(self.mount.path(&name)).unwrap();
        }
    }

    /// Files `d/kept*` on each drive, known to the kernel.
    #[track_caller]
    fn fill(&self) {
        std::fs::create_dir_all(self.mount.path("d")).unwrap();
        for rank in 0..3 {
            for i in 0..4 {
                let path = self.kept(rank, i);
                put(&path, (rank * 10 + i) as u64, LEN);
                check(&path, (rank * 10 + i) as u64, LEN);
                assert_eq!(self.mount.holder(path.strip_prefix(self.mount.point()).unwrap()), rank);
            }
        }
    }

    fn kept(&self, rank: usize, i: usize) -> PathBuf {
        self.mount.path(format!("d/{}", ranked(rank, 100 + i)))
    }

    #[track_caller]
    fn others_are_as_before(&self, rank: usize) {
        for other in (0..3).filter(|n| *n != rank) {
            (0..4).for_each(|i| check(&self.kept(other, i), (other * 10 + i) as u64, LEN));
        }
    }
}

#[track_caller]
fn put(path: &Path, seed: u64, len: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, pattern(seed, len)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[track_caller]
fn check(path: &Path, seed: u64, len: usize) {
    let data = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(data == pattern(seed, len), "{} has another content ({} bytes)", path.display(), data.len());
}

/// The errno of reading a file anew.
fn read_errno(path: &Path) -> Option<i32> {
    std::fs::read(path).err().and_then(|e| e.raw_os_error())
}

/// Puts on a volume's device what is to be there.
fn flush(volume: &Path) {
    run(Command::new("sync").arg("-f").arg(volume));
}

/// Shuts a file system down as a dead device would: every access to it fails from now on.
fn kill_device(path: &Path) {
    use std::os::fd::AsRawFd;
    let fd = sys::open(path, libc::O_RDONLY, 0).unwrap();
    let mut how: u32 = 2;
    // SAFETY: XFS_IOC_GOINGDOWN (ext4 has the same) reads one u32, which outlives the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), 0x8004_587d, &mut how) };
    assert_eq!(done, 0, "shut the file system down: {}", crate::common::Errno::last());
}

/// A drive that failed is mounted anew at its place.
#[track_caller]
fn attached_again(server: &Server, rank: usize) {
    unmount(server, &server.volumes[rank]);
    server.attach(rank, &server.volumes[rank]);
}

/// Unmounts as soon as nobody uses it.
#[track_caller]
fn unmount(server: &Server, point: &Path) {
    let deadline = Instant::now() + ns::HANG;
    while !Command::new("umount").arg(point).output().unwrap().status.success() {
        assert!(Instant::now() < deadline, "{} stays in use\n{}", point.display(), server.mount.story());
    }
}
