//! The ioctls while the daemon is killed: numbers stay good, and a call under way is answered, once.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use kvfs::client::{Access, Batch, File, HostBuffer, Mount as Client, Pages};
use kvfs::direct::abi::{self, Op};

use super::frozen::Frozen;
use super::points::dying;
use super::raw::{self, BLANK, Buf, read_op, reg, submit, token, transfer, unregister, write_op};
use super::sending::{NAME, answer, by_token, connected, sent, whole_way};
use super::{daemon, kill, next};
use crate::common::lab::run;
use crate::common::process::Process;
use crate::common::user::NOBODY;
use crate::common::{Builder, Errno, FsKind, Lab, Mount, Passthrough, R, ns, pattern, ranked, sys};

fn supervised(lab: &Lab, mode: Passthrough) -> Builder {
    lab.mount(&lab.dirs(2)).passthrough(mode).supervised()
}

fn modes(test: impl Fn(&Lab, Mount)) {
    for mode in [Passthrough::Auto, Passthrough::Off] {
        let lab = Lab::new();
        let mount = supervised(&lab, mode).start();
        test(&lab, mount);
    }
}

fn open(mount: &Mount, name: &str) -> OwnedFd {
    sys::open(mount.path(name), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap()
}

fn direct(mount: &Mount, what: &str) -> u64 {
    mount.status()["direct"][what].as_u64().unwrap()
}

/// Clients' memory that a process has open or mapped.
fn memory_of(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let fds = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let open = fds.filter(|to| to.to_string_lossy().contains("/memfd:kvfs-test")).count();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    open + maps.lines().filter(|line| line.contains("/memfd:kvfs-test")).count()
}

/// Nothing is left of clients, neither with the daemon nor with its parent.
#[track_caller]
fn drained(mount: &Mount) {
    let until = std::time::Instant::now() + ns::HANG;
    loop {
        let left = (direct(mount, "buffers"), memory_of(daemon(mount).1), memory_of(mount.pid()));
        if left == (0, 0, 0) {
            return;
        }
        assert!(std::time::Instant::now() < until, "buffers, memory, memory with the parent: {left:?}");
        std::thread::yield_now();
    }
}

/// Has no other daemon come as long as `act` takes.
fn while_dead<T>(mount: &Mount, act: impl FnOnce() -> T) -> T {
    let (before, pid) = daemon(mount);
    mount.signal(libc::SIGSTOP);
    let dead = sys::pidfd(pid).unwrap();
    sys::signal(&dead, libc::SIGKILL).unwrap();
    let done = act();
    mount.signal(libc::SIGCONT);
    next(mount, before);
    done
}

#[test]
fn buffers_and_tokens_stay_good() {
    modes(|_, mount| {
        std::fs::write(mount.path("g"), pattern(2, 50_000)).unwrap();
        let (f, g) = (open(&mount, "f"), open(&mount, "g"));
        let dir = sys::open(mount.point(), libc::O_DIRECTORY, 0).unwrap();
        let (mut one, mut two) = (Buf::new(&f, 1 << 20), Buf::new(&dir, 65_536));
        let (session, other) = (raw::query(&f).unwrap().session, token(&g));
        for round in 0..3 {
            kill(&mount);
            assert_eq!(raw::query(&f).unwrap().session, session);
            assert_eq!(token(&g), other);
            let data = pattern(10 + round, 300_000);
            one.map.put(5, &data);
            assert_eq!(transfer(&f, write_op(one.id, 5, 7, 300_000)), Ok(300_000));
            assert_eq!(sys::pread(&f, 300_000, 7), Ok(data));
            assert_eq!(transfer(&dir, Op { file: other, ..read_op(two.id, 9, 10, 40_000) }), Ok(40_000));
            two.holds(9, &pattern(2, 50_000)[10..40_010], "read by its token");
            two.blank();
            let ops = [read_op(two.id, 0, 0, 3), Op { file: other, ..read_op(one.id, 0, 0, 4) }];
            let (batch, ops) = submit(&f, &ops).unwrap();
            assert_eq!((batch.completed, ops[0].result, ops[1].result), (2, 3, 4));
            two.blank();
            let status = mount.status();
            assert_eq!(status["supervised"]["buffers"], 2);
            assert_eq!([direct(&mount, "buffers"), direct(&mount, "buffer_bytes")], [2, (1 << 20) + 65_536]);
        }
        // What is gone stays gone.
        assert_eq!(unregister(&f, two.id, 0), Ok(()));
        kill(&mount);
        assert_eq!(transfer(&f, read_op(two.id, 0, 0, 3)), Err(Errno::ENOENT));
        assert_eq!(unregister(&f, two.id, 0), Err(Errno::ENOENT));
        drop(f);
        drained(&mount);
        assert_eq!(transfer(&g, read_op(one.id, 0, 0, 3)), Err(Errno::ENOENT), "it went with its file");
        kill(&mount);
        assert_eq!(mount.status()["supervised"]["buffers"], 0);
    });
}

#[test]
fn calls_under_way_are_answered() {
    modes(|_, mount| {
        let other = open(&mount, "other");
        let dir = sys::open(mount.point(), libc::O_DIRECTORY, 0).unwrap();
        let data = pattern(3, 200_000);
        let mut buf = Buf::new(&dir, 1 << 20);
        for point in ["transfer before", "transfer after"] {
            let name = format!("f@{point}@");
            let file = open(&mount, &name);
            buf.map.put(0, &data);
            assert_eq!(
                dying(&mount, point, || transfer(&file, write_op(buf.id, 0, 0, 200_000))),
                Ok(200_000)
            );
            assert_eq!(sys::pread(&file, 300_000, 0).as_ref(), Ok(&data), "{point}");
            buf.blank();
            assert_eq!(dying(&mount, point, || transfer(&file, read_op(buf.id, 1, 0, 300_000))), Ok(200_000));
            buf.holds(1, &data, point);
            // A batch: what failed fails again, and the rest is done.
            buf.blank();
            let ops = [
                read_op(buf.id, 0, 1000, 5000),
                read_op(buf.id ^ 1, 0, 0, 5),
                Op { file: token(&other), ..write_op(buf.id, 400_000, 0, 10_000) },
            ];
            buf.map.put(400_000, &data[..10_000]);
            let (batch, ops) = dying(&mount, point, || submit(&file, &ops)).unwrap();
            let results: Vec<i64> = ops.iter().map(|op| op.result).collect();
            assert_eq!((batch.completed, &results[..]), (2, &[5000, -i64::from(libc::ENOENT), 10_000][..]));
            assert_eq!(sys::pread(&other, 20_000, 0).as_deref(), Ok(&data[..10_000]));
            assert!(buf.map.get(0, 5000) == data[1000..6000], "{point}");
            buf.blank();
        }
        for point in ["register before", "register after"] {
            let file = open(&mount, &format!("f@{point}@"));
            let before = direct(&mount, "buffers");
            let mine = dying(&mount, point, || Buf::new(&file, 8192));
            assert_eq!(direct(&mount, "buffers"), before + 1, "{point}: once");
            assert_eq!(transfer(&other, read_op(mine.id, 0, 0, 8192)), Ok(8192), "{point}");
            mine.holds(0, &data[..8192], point);
            drop(file);
        }
        for point in ["unregister before", "unregister after"] {
            let file = open(&mount, &format!("f@{point}@"));
            let mine = Buf::new(&dir, 8192);
            let before = direct(&mount, "buffers");
            assert_eq!(dying(&mount, point, || unregister(&file, mine.id, 0)), Ok(()), "{point}");
            assert_eq!(unregister(&other, mine.id, 0), Err(Errno::ENOENT), "{point}");
            assert_eq!(direct(&mount, "buffers"), before - 1, "{point}");
        }
        let file = open(&mount, "f@query after@");
        let number = dying(&mount, "query", || token(&file));
        assert_eq!(transfer(&other, Op { file: number, ..read_op(buf.id, 0, 0, 10) }), Ok(0));
        let ends = Buf::new(&other, 4096);
        assert_eq!(unregister(&dir, buf.id, 0), Ok(()));
        drop((ends, other));
        drained(&mount);
    });
}

#[test]
fn a_transfer_that_kills_every_daemon_is_given_up() {
    let lab = Lab::new();
    let mount = supervised(&lab, Passthrough::Auto);
    std::fs::write(lab.path("backing0/f@deadly@"), "x").unwrap();
    let mount = mount.start();
    let deadly = sys::open(mount.path("f@deadly@"), libc::O_RDWR, 0).unwrap();
    let other = open(&mount, "other");
    let buf = Buf::new(&other, 4096);
    let (before, _) = daemon(&mount);
    assert_eq!(transfer(&deadly, read_op(buf.id, 0, 0, 1)), Err(Errno::EIO));
    assert_eq!(daemon(&mount).0, before + 3, "three daemons died over it");
    assert_eq!(transfer(&other, write_op(buf.id, 0, 0, 4096)), Ok(4096));
}

#[test]
fn who_ends_meanwhile_leaves_nothing() {
    let lab = Lab::new();
    // With nothing to be told at a close, close(2) doesn't wait for a daemon.
    let mount = supervised(&lab, Passthrough::Auto).arg("--publish").arg("on-create").start();
    let (f, g) = (open(&mount, "f"), open(&mount, "g"));
    let kept = Buf::new(&f, 4096);
    let _closed = Buf::new(&g, 4096);
    let mut other = Process::start(|say| {
        let f = open(&mount, "f");
        let _buf = (Buf::new(&f, 4096), token(&f));
        say("registered");
        loop {
            nix::unistd::pause();
        }
    });
    assert_eq!(other.hear(), "registered");
    assert_eq!((direct(&mount, "buffers"), memory_of(mount.pid())), (3, 3));
    while_dead(&mount, || {
        other.kill();
        drop(g);
    });
    let until = std::time::Instant::now() + ns::HANG;
    while (direct(&mount, "buffers"), memory_of(mount.pid())) != (1, 1) {
        assert!(std::time::Instant::now() < until, "{:#}", mount.status());
    }
    assert_eq!(mount.status()["supervised"]["lost_buffers"], 1, "the dead process's");
    assert_eq!(transfer(&f, read_op(kept.id, 0, 0, 1)), Ok(0));
}

#[test]
fn limits_count_what_was_there() {
    let lab = Lab::new();
    let mount = supervised(&lab, Passthrough::Auto).arg("--direct-buffers").arg("3").start();
    let f = open(&mount, "f");
    let memfd = raw::memfd(4096);
    let new = || raw::register(&f, &reg(&memfd, 4096)).map(|answer| answer.buf_id);
    let ids: Vec<u64> = (0..3).map(|_| new().unwrap()).collect();
    kill(&mount);
    assert_eq!(new(), Err(Errno::EDQUOT));
    assert_eq!(unregister(&f, ids[1], 0), Ok(()));
    assert!(!ids.contains(&new().unwrap()));
    assert_eq!(new(), Err(Errno::EDQUOT));
}

/// Buffers of others are as closed to a process as before.
#[test]
fn whose_they_are() {
    let lab = Lab::new();
    let mount = supervised(&lab, Passthrough::Auto).start();
    let f = open(&mount, "f");
    let (buf, number) = (Buf::new(&f, 4096), token(&f));
    kill(&mount);
    let theirs = crate::common::user::in_child(|| {
        let by_token = Op { file: number, ..read_op(buf.id, 0, 0, 1) };
        let g = open(&mount, "g");
        format!("{:?}", [transfer(&f, read_op(buf.id, 0, 0, 1)), transfer(&g, by_token)])
    });
    assert_eq!(theirs, "[Err(EPERM), Err(EBADF)]");
    assert_eq!(transfer(&f, read_op(buf.id, 0, 0, 1)), Ok(0));
}

/// What there was no room to keep is unknown, and the client registers it again by itself.
#[test]
fn what_is_not_kept_is_registered_again() {
    let lab = Lab::new();
    let mount = supervised(&lab, Passthrough::Auto).env("KVFS_TEST_KEEP_NO_BUFFERS", "1").start();
    std::fs::write(mount.path("f"), pattern(1, 8192)).unwrap();
    let f = open(&mount, "f");
    let (raw_buffer, number) = (Buf::new(&f, 8192), token(&f));
    let client = Client::open(mount.point()).unwrap();
    let buffer = HostBuffer::new(8192, Pages::Ordinary).unwrap();
    let registered = client.register(&buffer, Access::Both).unwrap();
    let file = File::open(mount.path("f")).unwrap();
    let content = || {
        let mut content = vec![0; 8192];
        buffer.copy_out(0, &mut content);
        buffer.copy_in(0, &[BLANK; 8192]);
        content
    };
    for _ in 0..2 {
        let before = registered.id();
        kill(&mount);
        assert_eq!(transfer(&f, read_op(raw_buffer.id, 0, 0, 10)), Err(Errno::ENOENT));
        assert_ne!(token(&f), number);
        assert_eq!(file.read(0, &registered, 0, 8192).unwrap(), 8192);
        assert!(content() == pattern(1, 8192));
        assert_ne!(registered.id(), before);
        kill(&mount);
        // Neither the buffer nor the file is known.
        let mut batch = Batch::new();
        batch.read(&file, 0, &registered, 0, 4096);
        batch.read(&file, 4096, &registered, 4096, 4096);
        assert_eq!(batch.submit(&client), [Ok(4096), Ok(4096)]);
        assert!(content() == pattern(1, 8192));
    }
    assert_eq!(direct(&mount, "buffers"), 1);
    kill(&mount);
    registered.unregister().unwrap();
    assert_eq!(memory_of(mount.pid()), 0);
}

/// The next daemon has a socket in the mount, too; what was sent to the one before and not used is sent again.
#[test]
fn the_socket_is_bound_anew() {
    let lab = Lab::new();
    let mount = supervised(&lab, Passthrough::Auto).start();
    let path = mount.path(NAME);
    std::fs::write(mount.path("f"), "content").unwrap();
    let f = open(&mount, "f");
    for _ in 0..3 {
        bound(&mount);
        assert_eq!(whole_way(mount.point()), Ok(()));
        let (connection, memfd) = (connected(&path).unwrap(), raw::memfd(4096));
        let number = sent(&path, &memfd).unwrap();
        kill(&mount);
        assert!(answer(&connection).is_none(), "it's closed");
        assert_eq!(raw::register(&f, &by_token(number)).map(drop), Err(Errno::ENOENT));
    }
    assert_eq!(sys::lstat(&path).unwrap().st_mode & libc::S_IFMT, libc::S_IFSOCK);
}

#[track_caller]
fn bound(mount: &Mount) {
    let until = std::time::Instant::now() + ns::HANG;
    while mount.status()["direct"]["fd_socket"] != true {
        assert!(std::time::Instant::now() < until, "no socket:\n{}", mount.story());
    }
}

/// A client whose descriptors can't be taken, and which sends them while nobody listens, too.
#[test]
fn clients_send_descriptors_again() {
    let lab = Lab::new();
    lab.fuse_for_everyone();
    let (backing, point) = (lab.dir("theirs"), lab.dir("mnt"));
    for dir in [&backing, &point] {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mount = lab.mount(&[backing]).user(NOBODY).supervised().start();
    bound(&mount);
    let (hears, tells) = sys::pipe().unwrap();
    let mut other = Process::start(|say| {
        nix::unistd::setgid(NOBODY.into()).unwrap();
        nix::unistd::setuid(NOBODY.into()).unwrap();
        // SAFETY: prctl takes integers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
        std::fs::write(mount.path("f"), pattern(1, 4096)).unwrap();
        let client = Client::open(mount.point()).unwrap();
        let file = File::open(mount.path("f")).unwrap();
        let buffer = HostBuffer::new(4096, Pages::Ordinary).unwrap();
        let mut all = Vec::new();
        loop {
            all.push(client.register(&buffer, Access::Both).unwrap());
            let read = all.iter().map(|registered| file.read(0, registered, 0, 4096).unwrap());
            say(&read.sum::<u64>().to_string());
            sys::read(&hears, 1).unwrap();
        }
    });
    assert_eq!(other.hear(), "4096");
    for round in 2..6 {
        while_dead(&mount, || sys::write(&tells, b"x").unwrap());
        assert_eq!(other.hear(), (round * 4096).to_string());
    }
    other.kill();
}

/// What the dead daemon had under way doesn't overtake what comes after it.
#[test]
fn what_is_under_way_is_waited_for() {
    under_way(Passthrough::Auto, |f, buf| transfer(f, write_op(buf, 0, 0, 1 << 20)));
}

#[test]
fn writes_under_way_are_waited_for() {
    under_way(Passthrough::Off, |f, _| sys::pwrite_at_skew(f, &pattern(5, 1 << 20), 0, 0));
}

fn under_way(mode: Passthrough, write: fn(&OwnedFd, u64) -> R<usize>) {
    let lab = Lab::new();
    // The drive is a file of another one: when that stands still, writes are under way in the kernel alone.
    let under = lab.volume(FsKind::Xfs, 512);
    let (image, drive) = (under.join("image"), lab.dir("drive"));
    std::fs::File::create(&image).unwrap().set_len(300 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&drive));
    let mount = lab.mount(&[drive.join("kv")]).passthrough(mode).supervised().start();
    let f = sys::open(mount.path("f"), libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT, 0o644).unwrap();
    let mut buf = Buf::new(&f, 1 << 20);
    assert_eq!(transfer(&f, write_op(buf.id, 0, 0, 1 << 20)), Ok(1 << 20));
    // There's nothing else to be written.
    rustix::fs::syncfs(std::fs::File::open(&drive).unwrap()).unwrap();
    let device = sys::stat(&drive).unwrap().st_dev;
    let inflight =
        format!("/sys/dev/block/{}:{}/inflight", rustix::fs::major(device), rustix::fs::minor(device));
    let writes = || {
        let counts = std::fs::read_to_string(&inflight).unwrap();
        counts.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    buf.map.put(0, &pattern(5, 1 << 20));
    let until = std::time::Instant::now() + ns::HANG;
    std::thread::scope(|scope| {
        let frozen = Frozen::new(&under);
        let (f, id) = (&f, buf.id);
        let writer = scope.spawn(move || write(f, id));
        while writes() == 0 {
            assert!(std::time::Instant::now() < until, "nothing is under way");
            std::thread::yield_now();
        }
        let before = writes();
        kill(&mount);
        // It has come again: it's taken before what comes after it.
        assert_eq!(raw::query(f).unwrap().file_token, token(f));
        assert!(!writer.is_finished());
        assert_eq!(writes(), before, "it isn't begun again");
        drop(frozen);
        assert_eq!(writer.join().unwrap(), Ok(1 << 20));
    });
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), pattern(5, 1 << 20));
}

/// A client of the storm that moves data by ioctls.
pub(super) struct Transfers {
    client: Client,
    buffer: HostBuffer,
    registered: Vec<kvfs::client::Registered>,
    files: Vec<(File, u64)>,
    step: u64,
}

const FILES: usize = 6;
const SIZE: usize = 150_000;

impl Transfers {
    pub(super) fn new(mount: &Mount, name: &str) -> Transfers {
        let client = Client::open(mount.point()).unwrap();
        let buffer = HostBuffer::new(FILES * SIZE, Pages::Ordinary).unwrap();
        let registered = vec![client.register(&buffer, Access::Both).unwrap()];
        std::fs::create_dir_all(mount.path(name)).unwrap();
        let path = |n| mount.path(name).join(ranked(n, n));
        let files = (0..FILES).map(|n| (File::create(path(n)).unwrap(), 0)).collect();
        Transfers { client, buffer, registered, files, step: 0 }
    }

    /// Writes all files, and reads them by other ways; or registers and unregisters.
    pub(super) fn step(&mut self) {
        self.step += 1;
        let data = |seed: u64| pattern(seed, SIZE);
        let registered = &self.registered[self.registered.len() - 1];
        match self.step % 4 {
            0 => {
                let mut batch = Batch::new();
                for (at, (file, seed)) in self.files.iter_mut().enumerate() {
                    *seed = self.step * 100 + at as u64;
                    self.buffer.copy_in(at * SIZE, &data(*seed));
                    batch.write(file, 0, registered, (at * SIZE) as u64, SIZE as u64);
                }
                assert_eq!(batch.submit(&self.client), [Ok(SIZE as u64); FILES], "a batch of writes");
            }
            1 => {
                self.buffer.copy_in(0, &vec![BLANK; FILES * SIZE]);
                let mut batch = Batch::new();
                for (at, (file, _)) in self.files.iter().enumerate() {
                    batch.read(file, 0, registered, (at * SIZE) as u64, SIZE as u64);
                }
                let there = |seed: u64| Ok(if seed == 0 { 0 } else { SIZE as u64 });
                let want: Vec<_> = self.files.iter().map(|(_, seed)| there(*seed)).collect();
                assert_eq!(batch.submit(&self.client), want, "a batch of reads");
                for (at, (_, seed)) in self.files.iter().enumerate().filter(|(_, (_, seed))| *seed != 0) {
                    let mut got = vec![0; SIZE];
                    self.buffer.copy_out(at * SIZE, &mut got);
                    assert_eq!(raw::differ(&got, &data(*seed)), None, "file {at} in the buffer");
                }
            }
            2 => {
                // One after another, past the start; and as everybody else sees it.
                for (at, (file, seed)) in self.files.iter_mut().enumerate() {
                    *seed = self.step * 100 + at as u64;
                    self.buffer.copy_in(0, &data(*seed));
                    for (from, to) in [(0, 70_000), (70_000, SIZE)] {
                        let (from, len) = (from as u64, (to - from) as u64);
                        assert_eq!(file.write(from, registered, from, len).unwrap(), len);
                    }
                    let mut seen = vec![0; SIZE + 1];
                    let got = std::os::unix::fs::FileExt::read_at(file.std(), &mut seen, 0).unwrap();
                    assert_eq!(raw::differ(&seen[..got], &data(*seed)), None, "file {at} by pread");
                }
            }
            _ => {
                let new = self.client.register(&self.buffer, Access::Both).unwrap();
                for old in self.registered.drain(..) {
                    old.unregister().unwrap();
                }
                self.registered.push(new);
            }
        }
    }
}

/// Who may hand over descriptors that never are memory can't have them kept.
#[test]
fn what_is_no_memory_is_not_kept() {
    let lab = Lab::new();
    let mount = supervised(&lab, Passthrough::Auto).start();
    let f = open(&mount, "f");
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap().count();
    let before = fds();
    let (pipe, _write) = sys::pipe().unwrap();
    for fd in [&pipe, &f] {
        let wrong = abi::RegBuf { fd: fd.as_raw_fd(), ..reg(fd, 4096) };
        assert!(raw::register(&f, &wrong).is_err());
    }
    assert_eq!(fds(), before);
}
