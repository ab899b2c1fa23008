//! Many threads on few names, in both modes: only errnos a raw directory can give, no lost or
//! mixed content, and a daemon and backings that agree with each other afterwards.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};

use common::{Errno, FsKind, Lab, Mount, Passthrough, R, ranked, sys, tree};
use libc::*;

const THREADS: usize = 50;
const ROUNDS: usize = 120;
const NAMES: usize = 6;
const BLOCK: usize = 4096;

/// Errors seen, as (operation, errno).
type Seen = Mutex<BTreeSet<(&'static str, i32)>>;

/// The errors these operations can meet on any local file system when names come and go.
const ALLOWED: &[(&str, Errno)] = &[
    ("open", Errno::ENOENT),
    ("exclusive", Errno::EEXIST),
    ("unlink", Errno::ENOENT),
    ("rename", Errno::ENOENT),
    ("link", Errno::ENOENT),
    ("link", Errno::EEXIST),
    ("stat", Errno::ENOENT),
    ("truncate", Errno::ENOENT),
];

/// The same sequence for the same seed, different for each thread.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn together(threads: usize, work: impl Fn(usize) + Sync) {
    let gate = Barrier::new(threads);
    std::thread::scope(|scope| {
        for t in 0..threads {
            let (gate, work) = (&gate, &work);
            scope.spawn(move || {
                gate.wait();
                work(t);
            });
        }
    });
}

/// A published file is whole: two blocks of one writer, whoever that was.
fn whole(data: &[u8]) -> bool {
    data.len() == 2 * BLOCK && data.iter().all(|b| *b == data[0]) && data[0] != 0
}

fn storm(dir: &Path, seen: &Seen) {
    let name = |i: usize| dir.join(ranked(i % 3, i));
    together(THREADS, |t| {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (t as u64 + 1));
        let note = |op: &'static str, e: Errno| {
            seen.lock().unwrap().insert((op, e as i32));
        };
        for round in 0..ROUNDS {
            let (a, b) = (name(dice.roll(NAMES)), name(dice.roll(NAMES)));
            match dice.roll(8) {
                0 | 1 => {
                    // Published as the clients do it: whole under a name of its own, then renamed.
                    let tmp = dir.join(format!("tmp-{t}-{round}"));
                    let fd =
                        sys::open(&tmp, O_WRONLY | O_CREAT | O_EXCL, 0o644).map_err(|e| note("publish", e));
                    if let Ok(fd) = fd {
                        match sys::write(&fd, &[t as u8 + 1; 2 * BLOCK]) {
                            Ok(n) => assert_eq!(n, 2 * BLOCK),
                            Err(e) => note("write", e),
                        }
                        drop(fd);
                        let _ = sys::rename(&tmp, &a).map_err(|e| note("publish", e));
                    }
                }
                2 => {
                    let read = sys::open(&a, O_RDONLY, 0).map_err(|e| note("open", e));
                    if let Ok(fd) = read {
                        match sys::pread(&fd, 3 * BLOCK, 0) {
                            Ok(data) => assert!(whole(&data), "a mixed file of {} bytes", data.len()),
                            Err(e) => note("read", e),
                        }
                        let _ = sys::fstat(&fd).map_err(|e| note("fstat", e));
                    }
                }
                3 => {
                    let _ = sys::unlink(&a).map_err(|e| note("unlink", e));
                }
                4 => {
                    let _ = sys::rename(&a, &b).map_err(|e| note("rename", e));
                }
                5 => {
                    let _ = sys::lstat(&a).map_err(|e| note("stat", e));
                }
                6 => {
                    let _ = sys::link(&a, &b).map_err(|e| note("link", e));
                }
                _ => {
                    let _ = common::dir::list(dir).map_err(|e| note("list", e));
                }
            }
        }
    });
}

fn all(seen: Seen) -> Vec<(&'static str, Errno)> {
    seen.into_inner().unwrap().into_iter().map(|(op, e)| (op, Errno::from_raw(e))).collect()
}

fn unexpected(seen: Seen) -> Vec<(&'static str, Errno)> {
    all(seen).into_iter().filter(|e| !ALLOWED.contains(e)).collect()
}

/// The mount, its backings and a fresh scan of them tell the same.
fn settled(mount: Mount) {
    let before = tree::snapshot(mount.point());
    for (name, state) in before.iter().filter(|(_, s)| !s.contains("type=40000 ")) {
        let holder = mount.holder(name);
        let plain = tree::line(&mount.backings()[holder].join(name));
        assert!(state.ends_with(&plain), "{name:?}: mount {state}, backing {plain}");
    }
    let index = mount.status()["index"].clone();
    let again = mount.restart();
    assert_eq!(tree::snapshot(again.point()), before, "a restart finds the same");
    for key in ["files", "dirs", "shadows"] {
        assert_eq!(again.status()["index"][key], index[key], "index.{key}");
    }
}

fn publish_storm(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).passthrough(mode).start();
    let dir = mount.path("d");
    std::fs::create_dir(&dir).unwrap();
    let seen = Seen::default();
    storm(&dir, &seen);
    assert_eq!(unexpected(seen), [], "errors no raw directory gives");
    for (name, _) in common::dir::list(&dir).unwrap() {
        assert!(whole(&std::fs::read(dir.join(&name)).unwrap()), "{name:?} is not whole");
    }
    settled(mount);
}

#[test]
fn publish_storm_auto() {
    publish_storm(Passthrough::Auto);
}

#[test]
fn publish_storm_off() {
    publish_storm(Passthrough::Off);
}

/// The list of allowed errors is that of real file systems, not one made to fit.
#[test]
fn publish_storm_raw() {
    let lab = Lab::new();
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Tmpfs] {
        let dir = lab.volume(kind, 512).join("d");
        std::fs::create_dir(&dir).unwrap();
        let seen = Seen::default();
        storm(&dir, &seen);
        assert_eq!(unexpected(seen), [], "on a raw {kind:?}");
    }
}

/// Files written in place while they are opened, truncated and removed in every mode.
fn in_place_storm(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).passthrough(mode).start();
    let name = |i: usize| mount.path(ranked(i % 3, i));
    let seen = Seen::default();
    together(THREADS, |t| {
        let mut dice = Dice(77 + t as u64);
        let note = |op: &'static str, e: Errno| {
            seen.lock().unwrap().insert((op, e as i32));
        };
        let mut kept: Vec<OwnedFd> = Vec::new();
        for _ in 0..ROUNDS {
            let p = name(dice.roll(NAMES));
            let flags = [O_RDONLY, O_RDWR, O_WRONLY, O_RDWR | O_DIRECT, O_RDONLY | O_DIRECT][dice.roll(5)];
            let opened: R<OwnedFd> = match dice.roll(6) {
                0 => sys::open(&p, O_RDWR | O_CREAT | O_EXCL, 0o644).inspect_err(|&e| {
                    note("exclusive", e);
                }),
                1 => sys::open(&p, flags | O_CREAT, 0o644).inspect_err(|&e| {
                    note("create", e);
                }),
                2 => {
                    let _ = sys::unlink(&p).map_err(|e| note("unlink", e));
                    continue;
                }
                3 => {
                    let _ = sys::truncate(&p, 8192).map_err(|e| note("truncate", e));
                    continue;
                }
                4 => {
                    kept.clear();
                    continue;
                }
                _ => sys::open(&p, flags, 0).inspect_err(|&e| {
                    note("open", e);
                }),
            };
            let Ok(fd) = opened else { continue };
            let access = sys::fcntl(&fd, F_GETFL, 0).unwrap() & O_ACCMODE;
            if access != O_RDONLY {
                let _ = sys::pwrite_at_skew(&fd, &[t as u8; BLOCK], 0, 0).map_err(|e| note("write", e));
            }
            if access != O_WRONLY {
                let _ = sys::pread_at_skew(&fd, BLOCK, 0, 0).map_err(|e| note("read", e));
            }
            let _ = sys::fstat(&fd).map_err(|e| note("fstat", e));
            if kept.len() < 4 {
                kept.push(fd);
            }
        }
    });
    assert_eq!(unexpected(seen), [], "errors no raw directory gives");
    settled(mount);
}

#[test]
fn in_place_storm_auto() {
    in_place_storm(Passthrough::Auto);
}

#[test]
fn in_place_storm_off() {
    in_place_storm(Passthrough::Off);
}

/// Every open of one file at one moment works, whatever mixture of modes.
fn parallel_opens(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).passthrough(mode).start();
    let data = common::pattern(1, 64 << 10);
    for round in 0..30 {
        let f = mount.path(format!("f{round}"));
        std::fs::write(&f, &data).unwrap();
        together(THREADS, |t| {
            let flags =
                [O_RDONLY, O_RDWR, O_RDONLY | O_DIRECT, O_RDWR | O_DIRECT, O_WRONLY, O_RDWR | O_APPEND]
                    [t % 6];
            for _ in 0..4 {
                let fd = sys::open(&f, flags, 0).unwrap_or_else(|e| panic!("open with {flags:#o}: {e}"));
                if flags & O_ACCMODE != O_WRONLY {
                    let got = sys::pread_at_skew(&fd, 8192, 4096, 0)
                        .unwrap_or_else(|e| panic!("read with {flags:#o}: {e}"));
                    assert!(got == data[4096..12_288], "wrong bytes with {flags:#o}");
                }
                if flags & O_ACCMODE != O_RDONLY && flags & O_APPEND == 0 {
                    let n = sys::pwrite_at_skew(&fd, &data[..4096], 0, 0);
                    assert_eq!(n, Ok(4096), "write with {flags:#o}");
                }
            }
        });
        assert!(std::fs::read(&f).unwrap() == data, "round {round}");
    }
}

#[test]
fn parallel_opens_auto() {
    parallel_opens(Passthrough::Auto);
}

#[test]
fn parallel_opens_off() {
    parallel_opens(Passthrough::Off);
}

/// One wins, the others are told.
fn one_winner(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).passthrough(mode).start();
    for round in 0..40 {
        let won = Mutex::new([0usize; 5]);
        let p = |what: &str| mount.path(format!("{what}{round}"));
        std::fs::write(p("source"), "x").unwrap();
        std::fs::write(p("doomed"), "x").unwrap();
        let count = |i: usize, r: R<()>, lost: Errno| match r {
            Ok(()) => won.lock().unwrap()[i] += 1,
            Err(e) => assert_eq!(e, lost, "contest {i}"),
        };
        together(THREADS / 2, |t| {
            count(0, sys::open(p("file"), O_RDWR | O_CREAT | O_EXCL, 0o644).map(drop), Errno::EEXIST);
            count(1, sys::mkdir(p("dir"), 0o755), Errno::EEXIST);
            count(2, sys::unlink(p("doomed")), Errno::ENOENT);
            count(3, sys::rename(p("source"), mount.path(format!("mine-{round}-{t}"))), Errno::ENOENT);
            count(4, sys::symlink(format!("{t}"), p("link")), Errno::EEXIST);
        });
        assert_eq!(won.into_inner().unwrap(), [1; 5], "round {round}");
        assert_eq!(mount.holders(format!("file{round}")).len(), 1);
    }
    settled(mount);
}

#[test]
fn one_winner_auto() {
    one_winner(Passthrough::Auto);
}

#[test]
fn one_winner_off() {
    one_winner(Passthrough::Off);
}

/// Appends of many writers are all there, none torn.
fn appends(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).passthrough(mode).start();
    let f = mount.path("log");
    std::fs::write(&f, "").unwrap();
    together(16, |t| {
        let fd = sys::open(&f, O_WRONLY | O_APPEND, 0).unwrap();
        for _ in 0..50 {
            assert_eq!(sys::write(&fd, &[b'a' + t as u8; 100]), Ok(100));
        }
    });
    let data = std::fs::read(&f).unwrap();
    assert_eq!(data.len(), 16 * 50 * 100);
    assert!(data.chunks(100).all(|c| c.iter().all(|b| *b == c[0])), "a torn record");
}

#[test]
fn appends_auto() {
    appends(Passthrough::Auto);
}

#[test]
fn appends_off() {
    appends(Passthrough::Off);
}

/// Directories made, filled, renamed and removed under each other's hands.
#[test]
fn directory_storm() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).start();
    let seen = Seen::default();
    let dir = |i: usize| mount.path(format!("d{i}"));
    together(20, |t| {
        let mut dice = Dice(1234 + t as u64);
        let note = |op: &'static str, e: Errno| {
            seen.lock().unwrap().insert((op, e as i32));
        };
        for _ in 0..ROUNDS {
            let (a, b) = (dir(dice.roll(4)), dir(dice.roll(4)));
            let file = ranked(dice.roll(3), dice.roll(5));
            match dice.roll(6) {
                0 => drop(sys::mkdir(&a, 0o755).map_err(|e| note("mkdir", e))),
                1 => drop(sys::rmdir(&a).map_err(|e| note("rmdir", e))),
                2 => drop(sys::create(a.join(&file)).map_err(|e| note("create", e))),
                3 => drop(sys::unlink(a.join(&file)).map_err(|e| note("unlink", e))),
                4 => drop(sys::rename(&a, &b).map_err(|e| note("rename", e))),
                _ => drop(sys::rename(a.join(&file), b.join(&file)).map_err(|e| note("move", e))),
            }
        }
    });
    let allowed = |(op, e): &(&str, Errno)| match *op {
        "mkdir" => *e == Errno::EEXIST,
        "rmdir" | "rename" => matches!(*e, Errno::ENOENT | Errno::ENOTEMPTY),
        _ => *e == Errno::ENOENT,
    };
    let bad: Vec<_> = all(seen).into_iter().filter(|e| !allowed(e)).collect();
    assert_eq!(bad, [], "errors no raw directory gives");
    settled(mount);
}

/// Files put on the backings behind the mount, while clients ask for exactly those names.
fn behind_storm(mode: Passthrough) {
    const FILES: usize = 600;
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(3)).passthrough(mode).start();
    let (dir, stage) = (mount.path("d"), lab.dir("stage"));
    std::fs::create_dir(&dir).unwrap();
    for backing in mount.backings() {
        std::fs::create_dir_all(backing.join("d")).unwrap();
    }
    let (seen, next) = (Seen::default(), AtomicUsize::new(0));
    together(THREADS, |t| {
        let mut dice = Dice(99 + t as u64);
        let note = |op: &'static str, e: Errno| {
            seen.lock().unwrap().insert((op, e as i32));
        };
        while next.load(Relaxed) < FILES {
            if t < 5 {
                let i = next.fetch_add(1, Relaxed);
                let tmp = stage.join(format!("{i}"));
                std::fs::write(&tmp, [i as u8 | 1; 2 * BLOCK]).unwrap();
                sys::rename(&tmp, mount.backings()[i % 3].join(format!("d/x{i}"))).unwrap();
                continue;
            }
            let name = dir.join(format!("x{}", next.load(Relaxed).saturating_sub(dice.roll(4))));
            match dice.roll(4) {
                0 => drop(sys::lstat(&name).map_err(|e| note("stat", e))),
                1 => drop(sys::truncate(&name, 2 * BLOCK as i64).map_err(|e| note("truncate", e))),
                2 => drop(common::dir::list(&dir).map_err(|e| note("list", e))),
                _ => match sys::open(&name, O_RDONLY, 0).and_then(|fd| sys::pread(&fd, 3 * BLOCK, 0)) {
                    Ok(data) => assert!(whole(&data), "a mixed file of {} bytes", data.len()),
                    Err(e) => note("open", e),
                },
            }
        }
    });
    assert_eq!(unexpected(seen), [], "errors no raw directory gives");
    let all = next.into_inner();
    for i in 0..all {
        assert!(whole(&std::fs::read(dir.join(format!("x{i}"))).unwrap()), "x{i}");
    }
    assert_eq!(common::lab::names(&dir).len(), all, "each is listed once");
    assert_eq!(mount.status()["index"]["files"].as_u64(), Some(all as u64));
    settled(mount);
}

#[test]
fn behind_storm_auto() {
    behind_storm(Passthrough::Auto);
}

#[test]
fn behind_storm_off() {
    behind_storm(Passthrough::Off);
}

/// 64 clients, each with files of its own in a directory that all share: what it wrote is what anybody reads
/// of them, every byte, under whatever name it is.
fn sixty_four_clients(mode: Passthrough) {
    const CLIENTS: usize = 64;
    const FILES: usize = 10;
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(4)).passthrough(mode).start();
    for dir in ["made", "moved"] {
        std::fs::create_dir(mount.path(dir)).unwrap();
    }
    // Of each file its own: its bytes, and how many there are.
    let content =
        |t: usize, i: usize| common::pattern((t * FILES + i + 1) as u64, 1 + (t * 8191 + i * 4099) % 30_000);
    let (made, moved) = (
        |t, i| mount.path("made").join(ranked(t, t * FILES + i)),
        |t, i| mount.path(format!("moved/{t}-{i}.pt")),
    );
    let check = |path: &Path, t: usize, i: usize, fd: R<OwnedFd>| {
        let fd = fd.unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
        let read = sys::pread(&fd, 32_768, 0).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        assert!(read == content(t, i), "{} has other bytes, {} of them", path.display(), read.len());
    };
    // How many of each client's files are under their last name; odd ones are removed when the next is.
    let done: Vec<_> = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    together(CLIENTS, |t| {
        let mut dice = Dice(0x5eed + t as u64);
        for i in 0..FILES {
            let (before, after) = (made(t, i), moved(t, i));
            let fd = sys::open(&before, O_RDWR | O_CREAT | O_EXCL, 0o644).unwrap();
            assert_eq!(sys::write(&fd, &content(t, i)), Ok(content(t, i).len()));
            check(&before, t, i, Ok(fd));
            check(&before, t, i, sys::open(&before, O_RDONLY, 0));
            sys::rename(&before, &after).unwrap();
            assert_eq!(sys::lstat(&before).map(drop), Err(Errno::ENOENT), "the name it had");
            check(&after, t, i, sys::open(&after, O_RDONLY, 0));
            if i % 2 == 0 && i > 0 {
                sys::unlink(moved(t, i - 1)).unwrap();
            }
            done[t].store(i + 1, SeqCst);
            // Somebody else's, which stays.
            let other = dice.roll(CLIENTS);
            if let Some(last) = done[other].load(SeqCst).checked_sub(1) {
                let i = dice.roll(last / 2 + 1) * 2;
                check(&moved(other, i), other, i, sys::open(moved(other, i), O_RDONLY, 0));
            }
        }
    });
    assert!(common::lab::names(&mount.path("made")).is_empty(), "all have moved");
    let stays = |i: &usize| i.is_multiple_of(2) || i + 1 == FILES;
    let all = || (0..CLIENTS).flat_map(|t| (0..FILES).filter(stays).map(move |i| (t, i)));
    let mut expected: Vec<_> = all().map(|(t, i)| format!("{t}-{i}.pt")).collect();
    expected.sort();
    assert_eq!(common::lab::names(&mount.path("moved")), expected);
    for (t, i) in all() {
        check(&moved(t, i), t, i, sys::open(moved(t, i), O_RDONLY, 0));
    }
    settled(mount);
}

#[test]
fn sixty_four_clients_auto() {
    sixty_four_clients(Passthrough::Auto);
}

#[test]
fn sixty_four_clients_off() {
    sixty_four_clients(Passthrough::Off);
}
