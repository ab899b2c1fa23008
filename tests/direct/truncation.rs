//! Truncations in the middle of transfers: either came first, and no file is a mix of both.

use std::path::Path;
use std::sync::Barrier;

use libc::*;

use super::raw::{Buf, outcome, read_op, submit, transfer, write_op};
use crate::common::{FsKind, Lab, Mount, Passthrough, sys};

/// Several pieces of the engine, and unaligned ends.
const LEN: usize = (9 << 20) + 1234;
const ROUNDS: usize = 24;

fn mount(lab: &Lab, mode: Passthrough) -> Mount {
    lab.mount(&[lab.volume(FsKind::Xfs, 512).join("kv")]).passthrough(mode).start()
}

/// The ways to cut a file off.
fn cut(how: usize, path: &Path, fd: &std::os::fd::OwnedFd, to: usize) {
    match how % 3 {
        0 => sys::ftruncate(fd, to as i64).unwrap(),
        1 => sys::truncate(path, to as i64).unwrap(),
        _ if to == 0 => drop(sys::open(path, O_WRONLY | O_TRUNC, 0).unwrap()),
        _ => sys::ftruncate(fd, to as i64).unwrap(),
    }
}

fn all(data: &[u8], byte: u8) -> bool {
    data.iter().all(|b| *b == byte)
}

/// Two things at the same time.
fn both<A: Send, B: Send>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B + Send) -> (A, B) {
    let start = &Barrier::new(2);
    std::thread::scope(|scope| {
        let one = scope.spawn(move || {
            start.wait();
            one()
        });
        start.wait();
        let other = other();
        (one.join().unwrap(), other)
    })
}

fn writes(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    let fd = sys::create(&path).unwrap();
    let mut buf = Buf::new(&fd, LEN);
    let mut came_last = [0; 2];
    for round in 0..ROUNDS {
        let to = if round % 2 == 0 { 0 } else { LEN / 2 + round };
        let byte = round as u8 + 1;
        buf.map.put(0, &vec![byte; LEN]);
        let op = write_op(buf.id, 0, 0, LEN);
        let (wrote, ()) = both(|| transfer(&fd, op), || cut(round, &path, &fd, to));
        assert_eq!(wrote, Ok(LEN));
        let data = std::fs::read(&path).unwrap();
        assert!(data.len() == LEN || data.len() == to, "round {round}: {} bytes are left", data.len());
        assert!(all(&data, byte), "round {round}: a mixed file of {} bytes, cut to {to}", data.len());
        came_last[usize::from(data.len() == LEN)] += 1;
    }
    println!("the truncation came last {} times, the WRITE {} times", came_last[0], came_last[1]);
}

fn reads(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    let fd = sys::create(&path).unwrap();
    let mut buf = Buf::new(&fd, LEN);
    for round in 0..ROUNDS {
        let to = if round % 2 == 0 { 0 } else { LEN / 2 + round };
        let byte = round as u8 + 1;
        buf.map.put(0, &vec![byte; LEN]);
        assert_eq!(transfer(&fd, write_op(buf.id, 0, 0, LEN)), Ok(LEN));
        buf.blank();
        let op = read_op(buf.id, 0, 0, LEN);
        let (read, ()) = both(|| transfer(&fd, op), || cut(round, &path, &fd, to));
        let read = read.unwrap();
        assert!(read == LEN || read == to, "round {round}: READ brought {read}, cut to {to}");
        assert!(all(&buf.map.get(0, read), byte), "round {round}: READ brought a mix");
    }
}

/// Many ops of many calls against truncations without pause: all are answered, and each op of the batch is
/// whole or cut at the end of the file.
fn storms(mode: Passthrough) {
    let lab = Lab::new();
    let mount = mount(&lab, mode);
    let path = mount.path("f");
    std::fs::write(&path, b"").unwrap();
    const BLOCK: usize = 100_000;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let writers = std::sync::atomic::AtomicUsize::new(3);
    std::thread::scope(|scope| {
        for t in 0..3usize {
            let (path, stop, writers) = (&path, &stop, &writers);
            scope.spawn(move || {
                let _last = crate::fast::raw::Finally(|| {
                    if writers.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
                        stop.store(true, std::sync::atomic::Ordering::SeqCst);
                    }
                });
                let fd = sys::open(path, O_RDWR, 0).unwrap();
                let mut buf = Buf::new(&fd, 32 * BLOCK);
                for round in 0..40usize {
                    // Each thread's blocks are its own, all of them of its byte.
                    let mine = |i: usize| ((3 * i + t) * BLOCK) as u64;
                    buf.map.put(0, &vec![t as u8 + 1; 32 * BLOCK]);
                    let ops: Vec<_> = (0..32).map(|i| write_op(buf.id, i * BLOCK, mine(i), BLOCK)).collect();
                    let (head, _) = submit(&fd, &ops).unwrap();
                    assert_eq!(head.completed, 32, "round {round}");
                    buf.blank();
                    let ops: Vec<_> = (0..32).map(|i| read_op(buf.id, i * BLOCK, mine(i), BLOCK)).collect();
                    let (_, done) = submit(&fd, &ops).unwrap();
                    for (i, op) in done.iter().enumerate() {
                        let got = buf.map.get(i * BLOCK, outcome(op.result).unwrap());
                        // Written, or cut off and then left out by another's WRITE behind it.
                        let whole = all(&got, t as u8 + 1) || all(&got, 0);
                        let cut = got.iter().position(|b| *b == 0).unwrap_or(got.len());
                        let prefix = all(&got[..cut], t as u8 + 1) && all(&got[cut..], 0);
                        assert!(whole || prefix, "round {round}: block {i} is a mix");
                    }
                }
            });
        }
        let fd = sys::open(&path, O_RDWR, 0).unwrap();
        for round in 0.. {
            if stop.load(std::sync::atomic::Ordering::SeqCst) {
                break;
            }
            cut(round, &path, &fd, [0, 5_000_000, 123_456][round % 3]);
        }
    });
    super::process::drained(&mount);
}

super::both!(writes, reads, storms);
