//! Backings that stand still with transfers under way: who waits, for how long, and what goes on meanwhile.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kvfs::direct::abi;
use libc::*;

use super::frozen::Frozen;
use super::process::{self, Process, direct, drained, mapped, until};
use super::raw::{self, Buf, outcome, read_op, submit, transfer, unregister, write_op};
use crate::common::{Errno, FsKind, Lab, Mount, pattern, ranked, sys};

const LEN: usize = (2 << 20) + 777;

/// Two volumes, of which the first is to stand still.
struct Pair {
    /// Before the mount is taken away.
    fds: Vec<OwnedFd>,
    mount: Mount,
    volume: PathBuf,
    _lab: Lab,
}

fn pair(kind: FsKind, args: &[&str]) -> Pair {
    let lab = Lab::new();
    let volumes = [lab.volume(kind, 512), lab.volume(kind, 512)];
    let backings = volumes.clone().map(|v| v.join("kv"));
    // Else a command that is started here would have the daemon write down that it closes what's open.
    let mut builder = lab.mount(&backings).arg("--publish").arg("on-create");
    for arg in args {
        builder = builder.arg(arg);
    }
    let mount = builder.start();
    let fds = (0..2).map(|rank| sys::create(mount.path(ranked(rank, rank))).unwrap()).collect();
    let [volume, _] = volumes;
    Pair { fds, mount, volume, _lab: lab }
}

impl Pair {
    fn under_way(&self, calls: u64) {
        until(&self.mount, "calls under way", |s| direct(s, "in_flight") == calls && self.is_stuck());
    }

    /// Whether a worker of io_uring waits for the backing.
    fn is_stuck(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.mount.pid())).unwrap();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
        stats.into_iter().any(|stat| stat.contains("(iou-wrk-") && stat.contains(") D "))
    }

    /// The other backing is served.
    fn other_is_served(&self, buf: &mut Buf) {
        let data = pattern(77, LEN);
        buf.map.put(0, &data);
        assert_eq!(transfer(&self.fds[1], write_op(buf.id, 0, 0, LEN)), Ok(LEN));
        buf.blank();
        assert_eq!(transfer(&self.fds[1], read_op(buf.id, 0, 0, LEN)), Ok(LEN));
        buf.holds(0, &data, "the other backing");
        assert_eq!(std::fs::read(self.mount.path(ranked(1, 1))).unwrap(), data);
    }
}

#[test]
fn unregister_waits_or_says_busy() {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let p = pair(kind, &[]);
        let buf = Buf::new(&p.fds[1], LEN);
        let data = buf.all();
        let frozen = Frozen::new(&p.volume);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| transfer(&p.fds[0], write_op(buf.id, 0, 0, LEN)));
            p.under_way(1);
            assert_eq!(unregister(&p.fds[1], buf.id, abi::UNREG_NOWAIT), Err(Errno::EBUSY));
            assert_eq!(direct(&p.mount.status(), "buffers"), 1, "still there");
            let waiting = scope.spawn(|| unregister(&p.fds[1], buf.id, 0));
            until(&p.mount, "both wait", |s| direct(s, "in_flight") == 2 && direct(s, "buffers") == 0);
            // It's going: nothing new may use it, and nobody can drop it again.
            assert_eq!(transfer(&p.fds[1], write_op(buf.id, 0, 0, 1)), Err(Errno::ENOENT));
            assert_eq!(unregister(&p.fds[1], buf.id, abi::UNREG_NOWAIT), Err(Errno::ENOENT));
            assert_eq!(mapped(&p.mount), 1, "its memory is there as long as the op");
            assert!(!writer.is_finished() && !waiting.is_finished());
            p.other_is_served(&mut Buf::new(&p.fds[1], LEN));
            drop(frozen);
            assert_eq!(writer.join().unwrap(), Ok(LEN));
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
        assert!(std::fs::read(p.mount.path(ranked(0, 0))).unwrap() == data, "{kind:?}: what was written");
    }
}

/// A file that is closed, and a truncation, while its transfer stands still.
#[test]
fn truncations_wait_and_nothing_else_does() {
    let p = pair(FsKind::Xfs, &["--threads", "2"]);
    let buf = Buf::new(&p.fds[1], LEN);
    let path = p.mount.path(ranked(0, 0));
    let frozen = Frozen::new(&p.volume);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| transfer(&p.fds[0], write_op(buf.id, 0, 0, LEN)));
        p.under_way(1);
        let before = p.mount.op("setattr");
        let cutter = scope.spawn(|| sys::truncate(&path, 5));
        until(&p.mount, "the truncation has come", |s| s["ops"]["setattr"].as_u64() > Some(before));
        p.other_is_served(&mut Buf::new(&p.fds[1], LEN));
        assert!(!cutter.is_finished());
        drop(frozen);
        assert_eq!(writer.join().unwrap(), Ok(LEN));
        assert_eq!(cutter.join().unwrap(), Ok(()));
    });
    assert_eq!(std::fs::read(&path).unwrap(), [raw::BLANK; 5], "written, then cut off");
}

#[test]
fn a_deadline_answers() {
    let p = pair(FsKind::Xfs, &["--direct-timeout", "1"]);
    let mut buf = Buf::new(&p.fds[1], LEN);
    let frozen = Frozen::new(&p.volume);
    let write = write_op(buf.id, 0, 0, LEN);
    assert_eq!(transfer(&p.fds[0], write), Err(Errno::ETIMEDOUT));
    // In a batch the others have their results.
    let ops =
        [abi::Op { file: raw::token(&p.fds[0]), ..write }, abi::Op { file: raw::token(&p.fds[1]), ..write }];
    let (head, done) = submit(&p.fds[1], &ops).unwrap();
    assert_eq!(outcome(done[0].result), Err(Errno::ETIMEDOUT));
    assert_eq!((outcome(done[1].result), head.completed), (Ok(LEN), 1));
    assert_eq!(
        unregister(&p.fds[1], buf.id, abi::UNREG_NOWAIT),
        Err(Errno::EBUSY),
        "ops are still under way"
    );
    p.other_is_served(&mut Buf::new(&p.fds[1], LEN));
    assert_eq!(std::fs::metadata(p.mount.path(ranked(0, 0))).unwrap().len(), 0, "its attributes are served");
    drop(frozen);
    // The late ops end, and the backing is as before.
    until(&p.mount, "the late ones have ended", |_| {
        std::fs::metadata(p.mount.path(ranked(0, 0))).unwrap().len() as usize == LEN
    });
    buf.blank();
    assert_eq!(transfer(&p.fds[0], read_op(buf.id, 0, 0, LEN)), Ok(LEN));
    assert!(buf.all().iter().all(|b| *b == raw::BLANK));
    assert_eq!(unregister(&p.fds[1], buf.id, 0), Ok(()));
    assert!(p.mount.story().contains("ETIMEDOUT"), "the log says so");
}

#[test]
fn unregister_has_a_deadline_too() {
    let p = pair(FsKind::Ext4, &["--direct-timeout", "1"]);
    let buf = Buf::new(&p.fds[1], LEN);
    let frozen = Frozen::new(&p.volume);
    assert_eq!(transfer(&p.fds[0], write_op(buf.id, 0, 0, LEN)), Err(Errno::ETIMEDOUT));
    assert_eq!(unregister(&p.fds[1], buf.id, 0), Err(Errno::ETIMEDOUT));
    assert_eq!(mapped(&p.mount), 1, "not while it's in use");
    drop(frozen);
    drained(&p.mount);
}

/// Killed in the middle: the process goes when its calls are answered, and all of its with it.
#[test]
fn killed_in_the_middle() {
    let p = pair(FsKind::Xfs, &[]);
    let canary = Buf::new(&p.fds[1], 65_536);
    let path = p.mount.path(ranked(0, 0));
    let mut other = Process::start(|say| {
        let fd = sys::open(&path, O_RDWR, 0).unwrap();
        let mut buf = Buf::new(&fd, 4 * LEN);
        buf.map.put(0, &[5; 4 * LEN]);
        say("ready");
        let ops: Vec<_> = (0..4).map(|i| write_op(buf.id, i * LEN, (i * LEN) as u64, LEN)).collect();
        let _ = submit(&fd, &ops);
        process::hang();
    });
    assert_eq!(other.hear(), "ready");
    let frozen = Frozen::new(&p.volume);
    until(&p.mount, "its ops are under way, or held back", |s| {
        direct(s, "in_flight") == 1 || std::fs::metadata(&path).unwrap().len() > 0
    });
    other.shoot();
    p.other_is_served(&mut Buf::new(&p.fds[1], LEN));
    drop(frozen);
    other.kill();
    // The canary, and what looked at the other backing.
    until(&p.mount, "only the test's are left", |s| direct(s, "buffers") == 2 && direct(s, "in_flight") == 0);
    until(&p.mount, "and mapped", |_| mapped(&p.mount) == 2);
    canary.holds(0, b"", "another process's buffer");
    let data = std::fs::read(&path).unwrap();
    assert!(data.iter().all(|b| *b == 5 || *b == 0), "its own bytes or none");
    until(&p.mount, "no descriptor of it", |_| process::left_of_the_dead(&p.mount) == 0);
}

/// The last close of a file doesn't wait for its transfer, and the transfer ends well.
#[test]
fn closed_in_the_middle() {
    let mut p = pair(FsKind::Xfs, &["--direct-timeout", "1"]);
    let file = p.fds.remove(0);
    let buf = Buf::new(&p.fds[0], LEN);
    let frozen = Frozen::new(&p.volume);
    // Answered, and still under way.
    assert_eq!(transfer(&file, write_op(buf.id, 0, 0, LEN)), Err(Errno::ETIMEDOUT));
    let released = p.mount.op("release");
    drop(file);
    until(&p.mount, "the file is released", |s| s["ops"]["release"].as_u64() > Some(released));
    drop(frozen);
    let path = p.mount.path(ranked(0, 0));
    until(&p.mount, "it was written", |_| std::fs::metadata(&path).unwrap().len() as usize == LEN);
    assert_eq!(unregister(&p.fds[0], buf.id, 0), Ok(()));
    let data = std::fs::read(&path).unwrap();
    assert!(data == buf.all(), "what was written late");
}
