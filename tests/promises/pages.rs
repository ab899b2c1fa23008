//! Never stale bytes, where data goes through the daemon: the kernel keeps pages from one open to the next, and
//! whatever changes a file by another way than them is seen all the same.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use libc::*;

use crate::common::{FsKind, Lab, Mount, Passthrough, killer, ns, pattern, sys};

const LEN: usize = 300_000;

fn mount(lab: &Lab) -> Mount {
    lab.mount(&[lab.volume(FsKind::Xfs, 512).join("kv")]).passthrough(Passthrough::Off).supervised().start()
}

fn open(path: &Path, flags: i32) -> OwnedFd {
    sys::open(path, flags, 0o644).unwrap()
}

/// How many READs it takes the kernel to give the whole file, which is as `expected`, to who opens it now.
#[track_caller]
fn reads(mount: &Mount, name: &str, expected: &[u8]) -> u64 {
    let before = mount.op("read");
    let got = std::fs::read(mount.path(name)).unwrap();
    assert!(got == expected, "{name}: {} bytes, and not the same", got.len());
    mount.op("read") - before
}

#[test]
fn pages_stay_from_one_open_to_the_next() {
    let lab = Lab::new();
    let mount = mount(&lab);
    let mut data = pattern(1, LEN);
    std::fs::write(mount.path("f"), &data).unwrap();
    assert!(reads(&mount, "f", &data) > 0, "what was written isn't in the cache");
    for _ in 0..3 {
        assert_eq!(reads(&mount, "f", &data), 0);
    }
    // What is written by the pages is in them.
    let (reader, writer) = (open(&mount.path("f"), O_RDONLY), open(&mount.path("f"), O_RDWR));
    sys::pwrite(&writer, &pattern(2, 10_000), 5000).unwrap();
    data[5000..15_000].copy_from_slice(&pattern(2, 10_000));
    drop((reader, writer));
    assert_eq!(reads(&mount, "f", &data), 0);
}

/// What is written comes to the drive from the memory that the request was read to: none is read to it meanwhile.
#[test]
fn writes_keep_their_bytes_while_others_come() {
    let lab = Lab::new();
    let mount = mount(&lab);
    for flags in [O_DIRECT, 0] {
        std::thread::scope(|scope| {
            for me in 0..4 {
                let path = mount.path(format!("{me}"));
                scope.spawn(move || {
                    for round in 0..6 {
                        let data = pattern(round << 8 | me, 8 << 20);
                        let fd = open(&path, O_RDWR | O_CREAT | O_TRUNC | flags);
                        assert_eq!(sys::pwrite_at_skew(&fd, &data, 0, 0), Ok(data.len()));
                        assert!(
                            sys::pread_at_skew(&fd, data.len(), 0, 0).unwrap() == data,
                            "{flags:o} {me} {round}"
                        );
                    }
                });
            }
        });
    }
}

type Change = fn(&Mount, &mut Vec<u8>);

/// Writes some of it through a handle that's opened for this.
fn write(mount: &Mount, data: &mut [u8], flags: i32, seed: u64, range: std::ops::Range<usize>) {
    let fd = open(&mount.path("f"), flags);
    data[range.clone()].copy_from_slice(&pattern(seed, range.len()));
    assert_eq!(sys::pwrite_at_skew(&fd, &data[range.clone()], range.start as i64, 0), Ok(range.len()));
}

#[test]
fn every_change_is_seen() {
    let lab = Lab::new();
    let mount = mount(&lab);
    let changes: &[(&str, Change)] = &[
        ("O_WRONLY", |mount, data| write(mount, data, O_WRONLY, 3, 1000..200_000)),
        ("O_RDWR", |mount, data| write(mount, data, O_RDWR, 4, 1000..200_000)),
        ("O_DIRECT", |mount, data| write(mount, data, O_RDWR | O_DIRECT, 5, 8192..204_800)),
        ("truncate", |mount, data| {
            for size in [100_000, 250_000] {
                sys::truncate(mount.path("f"), size as i64).unwrap();
                data.resize(size, 0);
            }
        }),
        ("O_TRUNC", |mount, data| {
            *data = pattern(6, LEN / 2);
            std::fs::write(mount.path("f"), data).unwrap();
        }),
        ("another file", |mount, data| {
            *data = pattern(7, LEN);
            sys::unlink(mount.path("f")).unwrap();
            std::fs::write(mount.path("f"), data).unwrap();
        }),
        ("rename", |mount, data| {
            *data = pattern(8, LEN);
            std::fs::write(mount.path("g"), &*data).unwrap();
            reads(mount, "g", data);
            sys::rename(mount.path("g"), mount.path("f")).unwrap();
        }),
        ("fallocate", |mount, data| {
            let fd = open(&mount.path("f"), O_RDWR);
            sys::fallocate(&fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 90_000).unwrap();
            data[5000..95_000].fill(0);
        }),
        ("a mapping", |mount, data| {
            let fd = open(&mount.path("f"), O_RDWR);
            let mut map = sys::Map::new(&fd, LEN, PROT_READ | PROT_WRITE, MAP_SHARED).unwrap();
            map.put(7000, &pattern(9, 20_000));
            data[7000..27_000].copy_from_slice(&pattern(9, 20_000));
        }),
    ];
    let mut data = pattern(1, LEN);
    std::fs::write(mount.path("f"), &data).unwrap();
    for round in 0..3 {
        for (name, change) in changes {
            data.resize(LEN, 0);
            sys::truncate(mount.path("f"), LEN as i64).unwrap();
            reads(&mount, "f", &data);
            let reader = open(&mount.path("f"), O_RDONLY);
            change(&mount, &mut data);
            if !["another file", "rename"].contains(name) {
                assert!(sys::pread(&reader, LEN, 0).unwrap() == data, "{name}, round {round}, an open file");
            }
            drop(reader);
            let got = std::fs::read(mount.path("f")).unwrap();
            assert!(got == data, "{name}, round {round}");
        }
    }
}

/// What a daemon doesn't know of isn't believed: a file may have changed while there was none.
#[test]
fn a_next_daemon_begins_anew() {
    let lab = Lab::new();
    let mount = mount(&lab);
    std::fs::write(mount.path("f"), pattern(1, LEN)).unwrap();
    reads(&mount, "f", &pattern(1, LEN));
    assert_eq!(reads(&mount, "f", &pattern(1, LEN)), 0);
    // The kernel has the page still; of the same size and length of time, so that nothing else tells it.
    std::fs::write(mount.backings()[0].join("f"), pattern(2, LEN)).unwrap();
    killer::kill(&mount);
    assert!(reads(&mount, "f", &pattern(2, LEN)) > 0);

    // Nor what a handle leaves behind that was opened by the one before.
    let reader = open(&mount.path("f"), O_RDONLY);
    assert!(sys::pread(&reader, LEN, 0).unwrap() == pattern(2, LEN));
    std::fs::write(mount.backings()[0].join("f"), pattern(3, LEN)).unwrap();
    killer::kill(&mount);
    let (released, deadline) = (mount.op("release"), Instant::now() + ns::HANG);
    drop(reader);
    while mount.op("release") == released {
        assert!(Instant::now() < deadline, "nobody says that it's closed");
    }
    assert!(reads(&mount, "f", &pattern(3, LEN)) > 0);
}

/// Handles that go around the pages go on so with a next daemon, and nobody goes by pages beside them.
#[test]
fn readers_beside_who_writes_around_the_pages() {
    let lab = Lab::new();
    let mount = mount(&lab);
    std::fs::write(mount.path("f"), vec![0; LEN]).unwrap();
    let writer = open(&mount.path("f"), O_WRONLY);
    for round in 1..=2u8 {
        let reader = open(&mount.path("f"), O_RDONLY);
        for at in [0, 4096] {
            sys::pwrite(&writer, &vec![round; LEN], 0).unwrap();
            assert!(sys::pread(&reader, LEN, 0).unwrap() == vec![round; LEN]);
            let before = mount.op("read");
            assert_eq!(sys::pread(&reader, 4096, at), Ok(vec![round; 4096]));
            assert_eq!(mount.op("read") - before, 1, "a page was kept beside the writer");
        }
        killer::kill(&mount);
    }
    // Who goes by the pages keeps others from going around them.
    drop(writer);
    std::fs::write(mount.path("g"), vec![0; LEN]).unwrap();
    let reader = open(&mount.path("g"), O_RDONLY);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Finally(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    sys::pread(&reader, LEN, 0).unwrap();
                }
            });
        }
        for round in 1..=200 {
            let writer = open(&mount.path("g"), [O_WRONLY, O_RDWR][round % 2]);
            sys::pwrite(&writer, &vec![round as u8; LEN], 0).unwrap();
            let seen = sys::pread(&reader, LEN, 0).unwrap();
            assert_eq!(seen.iter().position(|b| *b != round as u8), None, "an old byte in round {round}");
        }
    });
    let before = mount.op("read");
    sys::pread(&reader, 4096, 0).unwrap();
    assert_eq!(mount.op("read"), before);
}

struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
