//! Clients at work while files move under them: no call of theirs fails, no byte is another's.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::{backing, ended, files, text, until};
use crate::common::{Errno, FsKind, Lab, Mount, Passthrough, kvfs, ns, ranked, sys, tree};

const OWNERS: usize = 4;
const NAMES: usize = 40;
const BLOCK: usize = 8192;

/// The same sequence for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// What a version of a file contains: every word says which file and version it is.
fn content(owner: usize, n: usize, version: u64, len: usize) -> Vec<u8> {
    let word = (owner as u64) << 56 | (n as u64) << 40 | version;
    word.to_le_bytes().iter().copied().cycle().take(len).collect()
}

fn length(n: usize, version: u64) -> usize {
    // Some through the page cache, some by direct I/O.
    (1 + (n + version as usize) % 5) * BLOCK * if n.is_multiple_of(7) { 16 } else { 1 }
}

fn path(dir: &Path, owner: usize, n: usize) -> std::path::PathBuf {
    dir.join(format!("d{}", n % 3)).join(format!("{owner}-{}", ranked(n % 3, n)))
}

/// One owner's files: it alone changes them, and knows what they have to be.
fn owner(dir: &Path, me: usize, stop: &AtomicBool, ops: &AtomicU64) {
    let mut versions: Vec<Option<u64>> = vec![None; NAMES];
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (me as u64 + 1));
    let mut next = 1;
    let write = |n: usize, version: u64, flags: i32| {
        let fd = sys::open(path(dir, me, n), flags | libc::O_WRONLY, 0o644)
            .unwrap_or_else(|e| panic!("open {n}: {e}"));
        let data = content(me, n, version, length(n, version));
        assert_eq!(sys::write(&fd, &data), Ok(data.len()));
    };
    while !stop.load(Relaxed) {
        let n = dice.roll(NAMES);
        ops.fetch_add(1, Relaxed);
        next += 1;
        match (dice.roll(8), versions[n]) {
            (_, None) => {
                write(n, next, libc::O_CREAT | libc::O_EXCL);
                versions[n] = Some(next);
            }
            (0, Some(_)) => {
                write(n, next, libc::O_TRUNC);
                versions[n] = Some(next);
            }
            (1, Some(_)) => {
                // Published as the clients do it.
                let tmp = dir.join(format!("tmp-{me}"));
                let data = content(me, n, next, length(n, next));
                std::fs::write(&tmp, &data).unwrap();
                sys::rename(&tmp, path(dir, me, n)).unwrap();
                versions[n] = Some(next);
            }
            (2, Some(_)) => {
                sys::unlink(path(dir, me, n)).unwrap_or_else(|e| panic!("unlink {n}: {e}"));
                versions[n] = None;
            }
            (3, Some(version)) => {
                let st = sys::stat(path(dir, me, n)).unwrap_or_else(|e| panic!("stat {n}: {e}"));
                assert_eq!(st.st_size as usize, length(n, version));
            }
            (4, Some(_)) => {
                let away = dir.join(format!("away-{me}"));
                sys::rename(path(dir, me, n), &away).unwrap_or_else(|e| panic!("rename {n}: {e}"));
                sys::rename(&away, path(dir, me, n)).unwrap();
            }
            (5, Some(_)) => {
                sys::chmod(path(dir, me, n), 0o640).unwrap_or_else(|e| panic!("chmod {n}: {e}"));
                sys::setxattr(path(dir, me, n), "user.owner", me.to_string().as_bytes(), 0)
                    .unwrap_or_else(|e| panic!("setxattr {n}: {e}"));
            }
            (_, Some(version)) => {
                let fd = sys::open(path(dir, me, n), libc::O_RDONLY, 0)
                    .unwrap_or_else(|e| panic!("open {n}: {e}"));
                let want = content(me, n, version, length(n, version));
                let got = sys::pread(&fd, want.len() + 1, 0).unwrap();
                assert!(got == want, "owner {me}, file {n}: {} bytes, not version {version}", got.len());
            }
        }
    }
    for (n, version) in versions.iter().enumerate() {
        match version {
            Some(version) => {
                let want = content(me, n, *version, length(n, *version));
                assert!(std::fs::read(path(dir, me, n)).unwrap() == want, "at the end: owner {me}, file {n}");
            }
            None => assert_eq!(sys::lstat(path(dir, me, n)).map(drop), Err(Errno::ENOENT)),
        }
    }
}

/// Somebody who only reads: a file is of its owner's making, or not there. Where data goes through the daemon,
/// the kernel's page cache may show zeros while a file is cut off and written anew, moved or not.
fn reader(dir: &Path, seed: u64, mode: Passthrough, stop: &AtomicBool, odd: &Mutex<Vec<String>>) {
    let mut dice = Dice(0x1234_5678_9abc ^ seed);
    while !stop.load(Relaxed) {
        let (who, n) = (dice.roll(OWNERS), dice.roll(NAMES));
        match sys::open(path(dir, who, n), libc::O_RDONLY, 0) {
            Ok(fd) => {
                let data = sys::pread(&fd, 1 << 20, 0).unwrap();
                let word = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().unwrap());
                let is_theirs = |c: &[u8]| {
                    word(c) >> 40 == (who as u64) << 16 | n as u64
                        || (word(c) == 0 && mode == Passthrough::Off)
                };
                if let Some(at) = data.chunks_exact(8).position(|c| !is_theirs(c)) {
                    let (wrong, len) = (word(&data[at * 8..at * 8 + 8]), data.len());
                    let before = data[..at * 8].chunks_exact(8).last().map(word);
                    let text =
                        format!("file {n} of {who}: {wrong:#x} at {} of {len}, {before:x?} before", at * 8);
                    odd.lock().unwrap().push(text);
                }
            }
            Err(Errno::ENOENT) => {}
            Err(e) => odd.lock().unwrap().push(format!("open of file {n} of {who}: {e}")),
        }
        let _ = crate::common::dir::list(dir.join("d0"));
    }
}

fn storm(mount: &Mount, mode: Passthrough, work: impl FnOnce()) {
    let dir = mount.path("storm");
    for n in 0..3 {
        std::fs::create_dir_all(dir.join(format!("d{n}"))).unwrap();
    }
    let (stop, ops, odd) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for me in 0..OWNERS {
            let (dir, stop, ops) = (&dir, &stop, &ops);
            threads.push(scope.spawn(move || owner(dir, me, stop, ops)));
        }
        for seed in 0..2 {
            let (dir, stop, odd) = (&dir, &stop, &odd);
            threads.push(scope.spawn(move || reader(dir, seed, mode, stop, odd)));
        }
        // The owners are well under way before anything moves, and after.
        let busy = |more: u64| {
            let until = ops.load(Relaxed) + more;
            let deadline = std::time::Instant::now() + ns::HANG;
            while ops.load(Relaxed) < until
                && threads.iter().all(|t| !t.is_finished())
                && std::time::Instant::now() < deadline
            {
                std::thread::yield_now();
            }
        };
        busy(500);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            work();
            busy(500);
        }));
        stop.store(true, Relaxed);
        let failed = threads.into_iter().filter_map(|t| t.join().err()).count();
        assert_eq!(failed, 0, "clients failed:\n{}", mount.story());
        done.unwrap();
    });
    let odd = odd.into_inner().unwrap();
    assert!(odd.is_empty(), "{odd:#?}\n{}", mount.story());
}

#[test]
fn clients_at_work_while_files_move() {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let volumes =
            [lab.volume(FsKind::Xfs, 400), lab.volume(FsKind::Ext4, 256), lab.volume(FsKind::Xfs, 400)];
        let b: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
        let mount = lab.mount(&b).passthrough(mode).arg("--min-free").arg("1M").start();
        let mut moved = 0;
        storm(&mount, mode, || {
            for n in [0, 1, 2, 0] {
                backing(&mount, "drain", &[text(&b[n])]).code(0);
                moved += mount.status()["job"]["moved"].as_u64().unwrap();
                assert!(files(&b[n]).is_empty(), "{mode:?}: left on {n}: {:?}", files(&b[n]));
                backing(&mount, "set", &[text(&b[n]), "rw"]).code(0);
            }
            // While all is changing, they are never quite equal.
            kvfs(["rebalance", text(mount.point()), "--tolerance", "0.01", "--detach"]).code(0);
            let job =
                until(&mount, "moving", |job| job["state"] != "running" || job["moved"].as_u64() > Some(20));
            if job["state"] == "running" {
                kvfs(["rebalance", text(mount.point()), "--cancel"]).code(0);
                ended(&mount, "cancelled");
            }
            moved += job["moved"].as_u64().unwrap();
            backing(&mount, "drain", &[text(&b[2])]).code(0);
            backing(&mount, "remove", &[text(&b[2])]).code(0);
            backing(&mount, "add", &[text(&b[2])]).code(0);
        });
        assert!(moved > 50, "{mode:?}: {moved} files moved");
        let before = tree::snapshot(mount.point());
        for (name, state) in before.iter().filter(|(_, s)| !s.contains("type=40000 ")) {
            let plain = tree::line(&b[mount.holder(name)].join(name));
            assert!(state.ends_with(&plain), "{name:?}: mount {state}, backing {plain}");
        }
        assert_eq!(mount.status()["index"]["shadows"], 0);
        let again = mount.restart();
        assert_eq!(tree::snapshot(again.point()), before, "a restart finds the same");
    }
}
