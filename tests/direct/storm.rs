//! Clients that transfer and look at every byte, while others are killed in the middle of theirs and files are
//! cut off, renamed and removed.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use kvfs::direct::abi::{self, Op};

use super::fuzz::{Dice, seconds, seed};
use super::process::{self, Process, drained, until};
use super::raw::{self, Buf, differ, read_op, submit, write_op};
use crate::common::{FsKind, Lab, Mount, Passthrough, pattern, ranked, sys};

const CLIENTS: usize = 3;
const VICTIMS: usize = 3;
const FILES: usize = 5;
/// Of an op, and of an op's part of the buffer.
const MOST: usize = 300_000;
const ROOM: usize = MOST + 4096;

/// A file of a client's own, and what has to be in it.
struct Own {
    fd: OwnedFd,
    token: u64,
    path: PathBuf,
    model: Vec<u8>,
}

impl Own {
    fn new(mount: &Mount, client: usize, i: usize) -> Own {
        let path = mount.path(ranked(i, 100 * client + i));
        let fd = sys::create(&path).unwrap();
        Own { token: raw::token(&fd), fd, path, model: Vec::new() }
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        let len = self.model.len().max(at + data.len());
        self.model.resize(len, 0);
        self.model[at..at + data.len()].copy_from_slice(data);
    }

    /// What isn't a transfer.
    fn shake(&mut self, dice: &mut Dice, mount: &Mount, client: usize) {
        match dice.below(6) {
            0 => {
                let to = dice.below(self.model.len() + 10_000);
                sys::ftruncate(&self.fd, to as i64).unwrap();
                self.model.resize(to, 0);
            }
            1 => {
                let to = mount.path(format!("renamed-{client}-{:x}", dice.next()));
                sys::rename(&self.path, &to).unwrap();
                self.path = to;
            }
            2 => {
                // Without a name; the next that is made has one again.
                let _ = sys::unlink(&self.path);
                self.path = mount.path(format!("again-{client}-{:x}", dice.next()));
                self.fd = sys::create(&self.path).unwrap();
                self.token = raw::token(&self.fd);
                self.model.clear();
            }
            3 => {
                let (at, data) = (dice.below(100_000), pattern(dice.next(), dice.below(50_000)));
                assert_eq!(sys::pwrite(&self.fd, &data, at as i64), Ok(data.len()));
                if !data.is_empty() {
                    self.write(at, &data);
                }
            }
            _ => {
                let seen = sys::pread(&self.fd, self.model.len() + 1, 0).unwrap();
                assert_eq!(differ(&seen, &self.model), None, "client {client}: read(2)");
            }
        }
    }
}

fn client(mount: &Mount, seed: u64, client: usize) -> u64 {
    let mut dice = Dice(seed.wrapping_add(1000 * client as u64));
    let mut files: Vec<_> = (0..FILES).map(|i| Own::new(mount, client, i)).collect();
    let mut buf = Buf::new(&sys::open(mount.point(), libc::O_RDONLY, 0).unwrap(), FILES * ROOM);
    let end = Instant::now() + seconds();
    let mut rounds = 0;
    while Instant::now() < end {
        rounds += 1;
        let mut ops: Vec<(usize, Op)> = Vec::new();
        for (i, file) in files.iter_mut().enumerate() {
            if dice.below(4) == 0 {
                continue;
            }
            // Aligned as often as not.
            let step = dice.pick(&[1, 512, 4096]);
            let place = i * ROOM + dice.below(4096) / step * step;
            let (at, len) = (dice.below(400_000) / step * step, dice.below(MOST) / step * step);
            if dice.below(2) == 0 {
                let data = pattern(dice.next(), len);
                buf.map.put(place, &data);
                if len > 0 {
                    file.write(at, &data);
                }
                ops.push((i, Op { file: file.token, ..write_op(buf.id, place, at as u64, len) }));
            } else {
                ops.push((i, Op { file: file.token, ..read_op(buf.id, place, at as u64, len) }));
            }
        }
        if ops.is_empty() {
            continue;
        }
        let sent: Vec<Op> = ops.iter().map(|(_, op)| *op).collect();
        let (head, done) = submit(&files[0].fd, &sent).unwrap();
        assert_eq!(
            head.completed as usize,
            sent.len(),
            "client {client}: {:?}",
            done.iter().map(|d| d.result).collect::<Vec<_>>()
        );
        for ((i, op), done) in ops.iter().zip(done) {
            let moved = done.result as usize;
            if op.opcode == abi::OP_WRITE {
                assert_eq!(moved as u64, op.length);
                continue;
            }
            let model = &files[*i].model;
            let end = model.len().min((op.file_off + op.length) as usize);
            let want = model.get(op.file_off as usize..end).unwrap_or_default();
            assert_eq!(differ(&buf.map.get(op.buf_off as usize, moved), want), None, "client {client}: READ");
        }
        let i = dice.below(FILES);
        files[i].shake(&mut dice, mount, client);
    }
    for file in &files {
        let seen = std::fs::read(&file.path).unwrap();
        assert_eq!(differ(&seen, &file.model), None, "client {client}: {}", file.path.display());
    }
    rounds
}

/// Writes bytes of its own number to files that all victims share, until it's killed.
fn victim(mount: &Mount, number: u8) {
    let mut dice = Dice(number.into());
    let files: Vec<_> = (0..2).map(|i| sys::create(mount.path(ranked(i, 7000 + i))).unwrap()).collect();
    let buf = &mut Buf::new(&files[0], 4 * ROOM);
    buf.map.put(0, &vec![number; 4 * ROOM]);
    loop {
        let ops: Vec<_> = (0..4)
            .map(|i| {
                let file = raw::token(&files[i % 2]);
                Op { file, ..write_op(buf.id, i * ROOM, dice.below(2_000_000) as u64, MOST) }
            })
            .collect();
        submit(&files[0], &ops).unwrap();
        sys::ftruncate(&files[dice.below(2)], 1000).unwrap();
    }
}

fn all_at_once(mode: Passthrough) {
    let lab = Lab::new();
    let kinds = [FsKind::Xfs, FsKind::Ext4, FsKind::Tmpfs];
    let backings = kinds.map(|kind| lab.volume(kind, 512).join("kv"));
    let mount = lab.mount(&backings).arg("--direct").arg("host").passthrough(mode).start();
    let seed = seed();
    let canary = sys::create(mount.path("canary")).unwrap();
    let buf = Buf::new(&canary, 65_536);
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|c| {
            let mount = &mount;
            Process::start(move |say| say(&format!("{} rounds", client(mount, seed, c))))
        })
        .collect();
    let mut number = 0;
    let mut new_victim = || {
        number = number % 200 + 1;
        let (mount, number) = (&mount, number);
        Process::start(move |say| {
            say("starting");
            victim(mount, number);
        })
    };
    let mut victims: Vec<_> = (0..VICTIMS).map(|_| new_victim()).collect();
    let mut dice = Dice(seed);
    let end = Instant::now() + seconds();
    let mut killed = 0;
    while Instant::now() < end {
        let i = dice.below(VICTIMS);
        assert_eq!(victims[i].hear(), "starting");
        let calls = process::direct(&mount.status(), "in_flight");
        // Somewhere in its work, or before.
        for _ in 0..dice.below(3) {
            until(&mount, "calls", |s| process::direct(s, "in_flight") <= calls + 100);
        }
        std::mem::replace(&mut victims[i], new_victim()).kill();
        killed += 1;
    }
    victims.into_iter().for_each(Process::kill);
    for client in &mut clients {
        let said = client.hear();
        assert!(said.ends_with(" rounds"), "a client failed: {said}");
        println!("{said}");
    }
    clients.into_iter().for_each(Process::finish);
    println!("{killed} victims");
    buf.holds(0, b"", "the canary");
    raw::unregister(&canary, buf.id, 0).unwrap();
    drained(&mount);
    assert_eq!(mount.op("panics"), 0);
    until(&mount, "no descriptor of a client", |_| {
        !process::descriptors(&mount).iter().any(|d| d.contains("memfd:kvfs-test"))
    });
}

super::both!(all_at_once);
