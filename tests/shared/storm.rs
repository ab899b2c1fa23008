//! Both do everything at once; in the end both see what is on the backings.

use std::path::{Path, PathBuf};

use crate::common::{Errno, Lab, Mount, Passthrough, pattern, sys};
use crate::{mount_at, shared, soon, tree};

const STEPS: u64 = 1500;
const FILE: usize = 20_000;

/// What may be said to a client when somebody else was faster.
const FASTER: [Errno; 6] =
    [Errno::ENOENT, Errno::EEXIST, Errno::ENOTEMPTY, Errno::ESTALE, Errno::ENOTDIR, Errno::EINVAL];

struct Client<'a> {
    mount: &'a Mount,
    random: u64,
    me: u64,
}

impl Client<'_> {
    fn next(&mut self, n: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    fn dir(&mut self) -> PathBuf {
        let mut path = self.mount.point().to_owned();
        for _ in 0..self.next(4) {
            path.push(format!("d{}", self.next(3)));
        }
        path
    }

    fn subdir(&mut self) -> PathBuf {
        let dir = self.dir();
        dir.join(format!("d{}", self.next(3)))
    }

    fn file(&mut self) -> PathBuf {
        let dir = self.dir();
        dir.join(format!("f{}", self.next(5)))
    }

    fn step(&mut self, n: u64) -> Result<(), Errno> {
        match self.next(20) {
            0..=5 => self.store(n),
            6..=9 => self.load(),
            10..=12 => sys::mkdir(self.subdir(), 0o755),
            13 => sys::rmdir(self.subdir()),
            14 => {
                let (from, to) = (self.subdir(), self.subdir());
                sys::rename(from, to)
            }
            15 | 16 => {
                let (from, to) = (self.file(), self.file());
                sys::rename(from, to)
            }
            17 => sys::unlink(self.file()),
            18 => {
                tree(&self.dir());
                Ok(())
            }
            _ => sys::lstat(self.file()).map(drop),
        }
    }

    /// A file appears whole, or not at all.
    fn store(&mut self, n: u64) -> Result<(), Errno> {
        let to = self.file();
        let tmp = to.with_file_name(format!("t-{}-{n}", self.me));
        let seed = self.me << 32 | n;
        let mut data = seed.to_le_bytes().to_vec();
        data.extend(pattern(seed, FILE));
        let fd = sys::open(&tmp, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o644)?;
        assert_eq!(sys::write(&fd, &data), Ok(data.len()));
        drop(fd);
        sys::rename(&tmp, &to).inspect_err(|_| {
            let _ = sys::unlink(&tmp);
        })
    }

    fn load(&mut self) -> Result<(), Errno> {
        let path = self.file();
        let fd = sys::open(&path, libc::O_RDONLY, 0)?;
        check(&path, &sys::pread(&fd, 2 * FILE, 0)?);
        Ok(())
    }
}

fn check(path: &Path, data: &[u8]) {
    assert_eq!(data.len(), FILE + 8, "{}: not whole", path.display());
    let seed = u64::from_le_bytes(data[..8].try_into().unwrap());
    assert!(data[8..] == pattern(seed, FILE), "{}: wrong bytes", path.display());
}

#[test]
fn all_at_once_and_in_the_end_the_same() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let b = lab.dirs(3);
        let start = |point| {
            mount_at(&lab, point, &shared(&b)).passthrough(mode).arg("--shared-ttl").arg("0.05").start()
        };
        let (one, two) = (start("one"), start("two"));
        std::thread::scope(|scope| {
            for me in 0..4 {
                let mount = if me % 2 == 0 { &one } else { &two };
                scope.spawn(move || {
                    let mut client = Client { mount, random: 77 + me, me };
                    for n in 0..STEPS {
                        if let Err(e) = client.step(n) {
                            assert!(FASTER.contains(&e), "step {n} of {me}: {e}");
                        }
                    }
                });
            }
        });
        let raw = || {
            let mut all: Vec<String> = b.iter().flat_map(|b| tree(b)).collect();
            all.sort();
            all.dedup();
            all
        };
        assert!(raw().len() > 5, "the storm left something: {:?}", raw());
        for mount in [&one, &two] {
            soon(raw(), "the whole tree", || tree(mount.point()));
            for name in raw().iter().filter(|name| !name.ends_with('/')) {
                soon(true, "a file that can be read", || std::fs::read(mount.path(name)).is_ok());
                let data = std::fs::read(mount.path(name)).unwrap();
                if !name.contains("t-") {
                    check(Path::new(name), &data);
                }
                let copies =
                    b.iter().filter_map(|b| std::fs::read(b.join(name)).ok()).any(|copy| copy == data);
                assert!(copies, "{name}: what is read is on a backing");
            }
        }
    }
}
