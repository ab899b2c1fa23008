//! Clients at work on everything, who look at each answer, each byte and each name.
//!
//! KVFS_TEST_SEED repeats a run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::direct::Transfers;
use crate::common::{Mount, pattern, ranked, sys};

const CLIENTS: usize = 4;
/// Clients of the ioctl fast path beside them, who keep their files open.
pub(crate) const MOVERS: usize = 2;
const SIZES: [usize; 4] = [0, 1000, 70_000, 1 << 20];

pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A file that has to be there, and with what in it.
struct Owned {
    path: PathBuf,
    seed: u64,
    size: usize,
}

impl Owned {
    fn check(&self, story: &str) {
        let data =
            std::fs::read(&self.path).unwrap_or_else(|e| panic!("{story}: {}: {e}", self.path.display()));
        assert!(data == pattern(self.seed, self.size), "{story}: {} has other bytes", self.path.display());
    }
}

struct Client {
    dir: PathBuf,
    dice: Dice,
    files: Vec<Owned>,
    made: u64,
}

impl Client {
    fn name(&mut self) -> PathBuf {
        self.made += 1;
        self.dir.join(ranked(self.dice.below(4), self.made as usize))
    }

    fn write(&mut self, path: &Path) -> Owned {
        let (seed, size) = (self.made, SIZES[self.dice.below(SIZES.len())]);
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let fd = sys::open(path, flags, 0o644).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        let data = pattern(seed, size);
        assert_eq!(sys::write(&fd, &data), Ok(size), "write");
        assert_eq!(sys::fsync(&fd), Ok(()), "fsync");
        assert_eq!(sys::fstat(&fd).unwrap().st_size as usize, size, "size");
        Owned { path: path.to_owned(), seed, size }
    }

    fn step(&mut self) {
        let some = if self.files.is_empty() { 0 } else { self.dice.below(self.files.len()) };
        match self.dice.below(12) {
            0..=2 => {
                let path = self.name();
                let owned = self.write(&path);
                self.files.push(owned);
            }
            _ if self.files.is_empty() => {}
            3 | 4 => self.files[some].check("read"),
            5 => {
                let to = self.name();
                sys::rename(&self.files[some].path, &to).unwrap_or_else(|e| panic!("rename: {e}"));
                assert!(sys::stat(&self.files[some].path).is_err(), "the old name is gone");
                self.files[some].path = to;
            }
            6 => {
                // Over another of the same client.
                let gone = self.files.swap_remove(some);
                let path = gone.path.clone();
                let new = self.name();
                let owned = self.write(&new);
                sys::rename(&new, &path).unwrap_or_else(|e| panic!("rename over: {e}"));
                self.files.push(Owned { path, ..owned });
            }
            7 => {
                let gone = self.files.swap_remove(some);
                sys::unlink(&gone.path).unwrap_or_else(|e| panic!("unlink: {e}"));
                assert!(sys::stat(&gone.path).is_err());
            }
            8 => {
                let mut names: Vec<_> =
                    std::fs::read_dir(&self.dir).unwrap().map(|e| e.expect("readdir").path()).collect();
                names.sort();
                let mut mine: Vec<_> = self.files.iter().map(|f| f.path.clone()).collect();
                mine.sort();
                assert_eq!(names, mine, "readdir");
            }
            9 => {
                let file = &self.files[some];
                if file.size > 0 {
                    let fd = sys::open(&file.path, libc::O_RDWR, 0).expect("open");
                    let map = sys::Map::new(&fd, file.size, libc::PROT_READ, libc::MAP_SHARED).expect("mmap");
                    drop(fd);
                    assert!(map.get(0, file.size) == pattern(file.seed, file.size), "mapped");
                }
            }
            10 => {
                let dir = self.dir.with_extension(format!("d{}", self.made));
                self.made += 1;
                sys::mkdir(&dir, 0o755).unwrap_or_else(|e| panic!("mkdir: {e}"));
                sys::symlink("x", dir.join("s")).unwrap_or_else(|e| panic!("symlink: {e}"));
                let moved = dir.with_extension(format!("m{}", self.made));
                sys::rename(&dir, &moved).unwrap_or_else(|e| panic!("rename of a directory: {e}"));
                sys::unlink(moved.join("s")).unwrap_or_else(|e| panic!("unlink of a link: {e}"));
                sys::rmdir(&moved).unwrap_or_else(|e| panic!("rmdir: {e}"));
            }
            _ => {
                let file = &mut self.files[some];
                let link = file.path.with_extension(format!("link{}", self.made));
                self.made += 1;
                sys::link(&file.path, &link).unwrap_or_else(|e| panic!("link: {e}"));
                sys::unlink(&file.path).unwrap_or_else(|e| panic!("unlink of one name: {e}"));
                file.path = link;
            }
        }
        if self.files.len() > 200 {
            let gone = self.files.swap_remove(0);
            sys::unlink(&gone.path).expect("unlink");
        }
    }
}

/// Runs clients, and so many that move data by ioctls, while `disturb` does what they are not to notice: it's told a seed, and whether all still work.
/// Then looks at all that they have made. How many steps they made.
#[track_caller]
pub(crate) fn under_load(mount: &Mount, movers: usize, disturb: impl FnOnce(u64, &dyn Fn() -> bool)) -> u64 {
    let seed = number("KVFS_TEST_SEED", std::process::id().into());
    println!("KVFS_TEST_SEED={seed} repeats the random choices of this run");
    let over = AtomicBool::new(false);
    let (clients, movers) = std::thread::scope(|scope| {
        let movers: Vec<_> = (0..movers)
            .map(|n| {
                let over = &over;
                scope.spawn(move || {
                    let mut transfers = Transfers::new(mount, &format!("transfers{n}"));
                    let mut steps = 0u64;
                    while !over.load(Relaxed) {
                        transfers.step();
                        steps += 1;
                    }
                    steps
                })
            })
            .collect();
        let running: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let dir = mount.path(format!("client{n}"));
                std::fs::create_dir_all(&dir).unwrap();
                let over = &over;
                scope.spawn(move || {
                    let dice = Dice(seed.wrapping_add(n as u64));
                    let mut client = Client { dir, dice, files: Vec::new(), made: 0 };
                    let (mut steps, mut longest) = (0u64, Duration::ZERO);
                    while !over.load(Relaxed) {
                        let begun = Instant::now();
                        client.step();
                        longest = longest.max(begun.elapsed());
                        steps += 1;
                    }
                    (client, steps, longest)
                })
            })
            .collect();
        // However it ends: the clients end with it.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let ends = Over(&over);
        let failed = || {
            running.iter().any(|client| client.is_finished())
                || movers.iter().any(|client| client.is_finished())
        };
        disturb(seed, &|| !failed());
        drop(ends);
        let movers: Vec<_> = movers.into_iter().map(|client| client.join()).collect();
        (running.into_iter().map(|client| client.join()).collect::<Vec<_>>(), movers)
    });
    for client in movers {
        let steps = client.unwrap_or_else(|_| panic!("a client of the ioctls failed:\n{}", mount.story()));
        println!("{steps} steps by ioctls");
    }
    let mut all = 0;
    for client in clients {
        let (client, steps, longest) =
            client.unwrap_or_else(|_| panic!("a client failed:\n{}", mount.story()));
        client.files.iter().for_each(|file| file.check("at the end"));
        println!("{steps} steps, the longest {} ms", longest.as_millis());
        all += steps;
    }
    assert_eq!(mount.status()["open_files"], 0, "no handle is left over");
    assert_eq!(mount.status()["direct"]["buffers"], 0, "no buffer is left over");
    all
}

/// Ends the mount: what was in it is on the backings, once.
#[track_caller]
pub(crate) fn finished(mount: Mount) {
    let backings = mount.backings().to_vec();
    finished_on(mount, &backings);
}

/// The same with other backings than it was started with.
#[track_caller]
pub(crate) fn finished_on(mount: Mount, backings: &[PathBuf]) {
    let shown = walk(mount.point());
    mount.stop();
    let mut there: Vec<PathBuf> = backings.iter().flat_map(|backing| walk(backing)).collect();
    there.retain(|path| !path.to_string_lossy().contains(".kvfs"));
    there.sort();
    assert_eq!(there, shown);
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if sys::lstat(&path).unwrap().st_mode & libc::S_IFMT == libc::S_IFDIR {
                todo.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
