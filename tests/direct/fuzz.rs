//! Calls made up at random from several processes: the daemon answers each and stays what it was, and what
//! belongs to others is not touched. `KVFS_FUZZ_SECONDS` lets it run for longer, `KVFS_FUZZ_SEED` repeats it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kvfs::direct::abi::{self, Batch, Locate, Op, Prefix, Query, RegBuf, UnregBuf, nr};
use libc::*;
use zerocopy::{FromBytes, IntoBytes};

use super::process::{Process, drained, until};
use super::raw::{self, BLANK, Buf, ioctl};
use crate::common::user::NOBODY;
use crate::common::{FsKind, Lab, Mount, pattern, ranked, sys};

const PROCESSES: u64 = 4;
const THREADS: u64 = 2;

pub(super) fn seconds() -> Duration {
    let seconds = std::env::var("KVFS_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}

/// The seed, which a failure has to tell.
pub(super) fn seed() -> u64 {
    let seed = std::env::var("KVFS_FUZZ_SEED").ok().and_then(|s| s.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = seed.unwrap_or(now.as_nanos() as u64 | 1);
    println!("KVFS_FUZZ_SEED={seed}");
    seed
}

/// Random numbers, the same for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What a worker knows: its own things, and names of others' that it must not reach.
struct World {
    /// Of its own.
    writable: OwnedFd,
    /// A canary, open for reading.
    readable: OwnedFd,
    dir: OwnedFd,
    memfd: OwnedFd,
    interesting: Vec<u64>,
    registered: RefCell<Vec<u64>>,
}

const LEN: usize = 1 << 20;

impl World {
    fn new(mount: &Mount, worker: u64, canaries: &[u64]) -> World {
        let writable = sys::create(mount.path(ranked(worker as usize % 2, worker as usize))).unwrap();
        let readable = sys::open(mount.path("canary"), O_RDONLY, 0).unwrap();
        let dir = sys::open(mount.point(), O_RDONLY | O_DIRECTORY, 0).unwrap();
        let memfd = raw::memfd(LEN);
        let buf = raw::register(&writable, &raw::reg(&memfd, LEN)).unwrap().buf_id;
        let mut interesting = vec![buf, raw::token(&writable), raw::token(&readable)];
        interesting.extend(canaries);
        interesting.extend([0, 1, 2, 3, 4, 7, 8, 64, 127, 128, 511, 4095, 4096, 8191, LEN as u64]);
        interesting.extend([u32::MAX.into(), 1 << 31, 1 << 32, i64::MAX as u64, u64::MAX, u64::MAX - 4095]);
        World { writable, readable, dir, memfd, interesting, registered: RefCell::default() }
    }

    fn op(&self, dice: &mut Dice) -> Op {
        Op {
            opcode: dice.pick(&[1, 2]),
            file: self.interesting[dice.pick(&[1, 1, 2, 3, 4])],
            buf_id: self.interesting[dice.pick(&[0, 0, 0, 3, 4])],
            buf_off: dice.below(LEN) as u64,
            file_off: dice.below(4 * LEN) as u64,
            length: dice.below(70_000) as u64,
            user_data: dice.next(),
            ..Op::default()
        }
    }

    /// A call as a client could make it.
    fn base(&self, dice: &mut Dice) -> (u8, Vec<u8>) {
        match dice.below(10) {
            0 => (nr::QUERY, Query { abi: 1, ..Query::default() }.as_bytes().to_vec()),
            1 => {
                let part = RegBuf { offset: 4096 * dice.below(200) as u64, ..raw::reg(&self.memfd, 50_000) };
                (nr::REGISTER, part.as_bytes().to_vec())
            }
            2 => {
                let buf_id = dice.pick(&self.interesting);
                (nr::UNREGISTER, UnregBuf { buf_id, ..UnregBuf::default() }.as_bytes().to_vec())
            }
            3 => (nr::LOCATE, Locate::default().as_bytes().to_vec()),
            4 => {
                let names =
                    dice.pick(&[&b"canary\0d/x\0"[..], b"d/../canary\0.\0\0", b"d\0d/x\0nothing", b"\0"]);
                let nr_names = names.iter().filter(|b| **b == 0).count() as u32;
                let head = Prefix { nr_names, names_len: names.len() as u32, flags: 1, ..Prefix::default() };
                (nr::LOOKUP_PREFIX, [head.as_bytes(), names].concat())
            }
            5 => {
                let ops: Vec<_> = (0..1 + dice.below(127)).map(|_| self.op(dice)).collect();
                let head = Batch { nr_ops: ops.len() as u32, ..Batch::default() };
                (nr::SUBMIT, [head.as_bytes(), ops.as_bytes()].concat())
            }
            _ => {
                let op = self.op(dice);
                (if op.opcode == abi::OP_READ { nr::READ } else { nr::WRITE }, op.as_bytes().to_vec())
            }
        }
    }

    /// Changes it somewhere.
    fn spoil(&self, dice: &mut Dice, nr: &mut u8, arg: &mut Vec<u8>) {
        match dice.below(8) {
            0..=2 => {
                // A field.
                let width = dice.pick(&[4, 8]);
                let at = dice.below(arg.len().max(1)) / width * width;
                let value = dice.pick(&self.interesting).to_ne_bytes();
                if let Some(field) = arg.get_mut(at..at + width) {
                    field.copy_from_slice(&value[..width]);
                }
            }
            3..=4 => {
                let at = dice.below(arg.len().max(1));
                if let Some(byte) = arg.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
            5 => arg.truncate(dice.below(arg.len() + 1)),
            6 => {
                let fill = dice.pick(&[0, 0, 0xff]);
                arg.resize((arg.len() + dice.below(300)).min(16_000), fill);
            }
            _ => *nr = dice.below(10) as u8,
        }
    }

    /// One call; what became of it.
    fn call(&self, dice: &mut Dice) -> Result<(), i32> {
        let on = [&self.writable, &self.readable, &self.dir][dice.pick(&[0, 0, 0, 1, 2])];
        if dice.below(20) == 0 {
            // Anything with our magic.
            let arg: Vec<u8> = (0..dice.below(8200)).map(|_| dice.next() as u8).collect();
            let cmd =
                dice.next() as u32 & 0xc000_00ff | (arg.len() as u32) << 16 | u32::from(abi::MAGIC) << 8;
            return ioctl(on, cmd, &arg).map(drop).map_err(|e| e as i32);
        }
        let (mut nr, mut arg) = self.base(dice);
        for _ in 0..dice.pick(&[0, 1, 1, 1, 2, 4]) {
            self.spoil(dice, &mut nr, &mut arg);
        }
        let mut cmd = abi::command(nr, arg.len());
        if dice.below(40) == 0 {
            cmd ^= 1 << (30 + dice.below(2));
        }
        let out = ioctl(on, cmd, &arg).map_err(|e| e as i32)?;
        if nr == nr::REGISTER
            && let Ok((reg, _)) = RegBuf::read_from_prefix(&out)
        {
            self.registered.borrow_mut().push(reg.buf_id);
        }
        Ok(())
    }

    /// What goes with a directory would stay until the quota is used up.
    fn end(self) {
        for id in self.registered.take() {
            let _ = raw::unregister(&self.dir, id, 0);
        }
        // What it may have made of it.
        sys::ftruncate(&self.writable, 0).unwrap();
    }
}

fn work(mount: &Mount, seed: u64, canaries: &[u64]) -> BTreeMap<i32, u64> {
    let until = Instant::now() + seconds();
    let mut seen: BTreeMap<i32, u64> = BTreeMap::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|t| {
                scope.spawn(move || {
                    let mut dice = Dice(seed.wrapping_mul(31).wrapping_add(t));
                    let mut seen: BTreeMap<i32, u64> = BTreeMap::new();
                    while Instant::now() < until {
                        let world = World::new(mount, seed % 8 * THREADS + t, canaries);
                        for _ in 0..300 {
                            let errno = world.call(&mut dice).err().unwrap_or(0);
                            *seen.entry(errno).or_default() += 1;
                        }
                        world.end();
                    }
                    seen
                })
            })
            .collect();
        for worker in workers {
            for (errno, n) in worker.join().unwrap() {
                *seen.entry(errno).or_default() += n;
            }
        }
    });
    seen
}

#[test]
fn made_up_calls() {
    let lab = Lab::new();
    let backings = [lab.volume(FsKind::Xfs, 512).join("kv"), lab.volume(FsKind::Tmpfs, 256).join("kv")];
    let mount = lab.mount(&backings).arg("--direct").arg("host").start();
    let content = pattern(1, 100_000);
    std::fs::create_dir(mount.path("d")).unwrap();
    for name in ["canary", "d/x"] {
        std::fs::write(mount.path(name), &content).unwrap();
    }
    let canary = sys::open(mount.path("canary"), O_RDWR, 0).unwrap();
    let buf = Buf::new(&canary, 65_536);
    let secrets = [raw::token(&canary), buf.id];
    let seed = seed();
    let mut workers: Vec<_> = (0..PROCESSES)
        .map(|i| {
            let (mount, secrets) = (&mount, &secrets);
            Process::start(move |say| {
                if i == 3 {
                    nix::unistd::setgid(nix::unistd::Gid::from_raw(NOBODY)).unwrap();
                }
                say(&format!("{:?}", work(mount, seed.wrapping_add(i), secrets)));
            })
        })
        .collect();
    for worker in &mut workers {
        println!("errnos: {}", worker.hear());
    }
    for worker in workers {
        worker.finish();
    }
    buf.holds(0, b"", "the canary");
    assert!(std::fs::read(mount.path("canary")).unwrap() == content);
    assert!(std::fs::read(mount.path("d/x")).unwrap() == content);
    assert_eq!(raw::transfer(&canary, raw::read_op(buf.id, 0, 0, 65_536)), Ok(65_536), "still served");
    assert!(buf.all() == content[..65_536] && content[0] != BLANK);
    assert_eq!(mount.op("panics"), 0);
    let status = mount.status();
    let calls = status["direct"]["counts"]["calls"].as_u64().unwrap();
    assert!(calls > 1000 && status["direct"]["counts"]["reads"].as_u64().unwrap() > 100, "{status:#}");
    raw::unregister(&canary, buf.id, 0).unwrap();
    drained(&mount);
    until(&mount, "no descriptor of a client", |_| {
        !super::process::descriptors(&mount).iter().any(|d| d.contains("memfd:kvfs-test"))
    });
}
