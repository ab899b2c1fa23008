//! A drive that doesn't answer, and more requests for it from one processor than its queue has entries.

use std::fs;
use std::thread::JoinHandle;

use kvfs::client::{Access, File, HostBuffer, Mount as Client, Pages};

use super::frozen::Frozen;
use super::{servers, stay_on};
use crate::common::{Errno, FsKind, Lab, Mount, R, ranked, sys};

/// More than a queue has entries at first, and than it has after it got more once.
const MANY: usize = 30;

struct Server {
    mount: Mount,
    frozen: Option<Frozen>,
    waiting: Vec<JoinHandle<R<()>>>,
    _lab: Lab,
}

/// Two drives, of which the second hangs with many requests of processor 0.
fn with_many_waiting(timeout: &str) -> Server {
    let lab = Lab::new();
    let volumes: Vec<_> = (0..2).map(|_| lab.volume(FsKind::Xfs, 512)).collect();
    let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&backings).transport("io-uring").arg(timeout).start();
    for rank in 0..2 {
        (0..MANY).for_each(|i| fs::write(mount.path(ranked(rank, i)), "x").unwrap());
    }
    let asked = mount.op("setattr");
    let frozen = Some(Frozen::new(&volumes[1]));
    let change = |i| {
        let path = mount.path(ranked(1, i));
        move || (stay_on(0), sys::chmod(path, 0o600)).1
    };
    let waiting = (0..MANY).map(|i| std::thread::spawn(change(i))).collect();
    while mount.op("setattr") == asked {
        std::thread::yield_now();
    }
    Server { mount, frozen, waiting, _lab: lab }
}

impl Server {
    /// Clients of the other drive, on the processor with all those who wait.
    fn others_go_on(&self) {
        let mount = &self.mount;
        let path = |i| mount.path(ranked(0, i));
        let work = || {
            stay_on(0);
            (0..MANY).try_for_each(|i| sys::chmod(path(i), 0o640).and_then(|()| sys::chmod(path(i), 0o600)))
        };
        assert_eq!(std::thread::scope(|scope| scope.spawn(work).join().unwrap()), Ok(()));
    }
}

#[test]
fn requests_for_others_find_entries() {
    let mut server = with_many_waiting("--drive-timeout=3600");
    let before = servers(&server.mount);
    server.others_go_on();
    assert!(servers(&server.mount) > before, "there were too few entries:\n{}", server.mount.story());
    assert!(server.waiting.iter().all(|client| !client.is_finished()), "nobody was answered early");
    drop(server.frozen.take());
    for client in server.waiting.drain(..) {
        assert_eq!(client.join().unwrap(), Ok(()));
    }
    server.others_go_on();
}

#[test]
fn all_are_answered_by_the_deadline() {
    let mut server = with_many_waiting("--drive-timeout=2");
    for client in server.waiting.drain(..) {
        assert_eq!(client.join().unwrap(), Err(Errno::EIO));
    }
    server.others_go_on();
    // Those who were given up come back, to entries that others have now.
    drop(server.frozen.take());
    while server.mount.status()["backings"][1]["state"] != "rw" {
        std::thread::yield_now();
    }
    for i in 0..MANY {
        sys::chmod(server.mount.path(ranked(1, i)), 0o644).unwrap();
        assert_eq!(sys::lstat(server.mount.path(ranked(1, i))).unwrap().st_mode & 0o777, 0o644);
    }
    server.others_go_on();
    let story = server.mount.story();
    assert!(!story.contains("ERROR"), "{story}");
}

/// A request's answer is its own, also when its entry was taken over: the entry of the one who hangs has others by then.
#[test]
fn late_answers_are_for_nobody() {
    let lab = Lab::new();
    let volumes: Vec<_> = (0..2).map(|_| lab.volume(FsKind::Ext4, 512)).collect();
    let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let mount = lab.mount(&backings).transport("io-uring").arg("--drive-timeout=1").start();
    (0..4).for_each(|i| fs::write(mount.path(ranked(i % 2, i)), "x").unwrap());
    for _ in 0..3 {
        let frozen = Frozen::new(&volumes[1]);
        assert_eq!(sys::chmod(mount.path(ranked(1, 1)), 0o600), Err(Errno::EIO));
        let reader = {
            let path = mount.path(ranked(0, 0));
            std::thread::spawn(move || (0..2000).all(|_| sys::lstat(&path).is_ok_and(|st| st.st_size == 1)))
        };
        drop(frozen);
        assert!(reader.join().unwrap());
        while mount.status()["backings"][1]["state"] != "rw" {
            std::thread::yield_now();
        }
    }
}

/// What the daemon has handed on to wait elsewhere keeps its entry, but never the last one: somebody may wait for what
/// comes next.
#[test]
fn requests_that_wait_leave_an_entry_free() {
    let lab = Lab::new();
    let volumes: Vec<_> = (0..2).map(|_| lab.volume(FsKind::Xfs, 512)).collect();
    let backings: Vec<_> = volumes.iter().map(|v| v.join("kv")).collect();
    let options = ["--drive-timeout=3600", "--direct-timeout=3600"];
    let mount = options
        .into_iter()
        .fold(lab.mount(&backings).transport("io-uring"), |m, option| m.arg(option))
        .start();
    (0..MANY).for_each(|i| fs::write(mount.path(ranked(1, i)), "x").unwrap());
    fs::write(mount.path(ranked(0, 0)), "x").unwrap();
    let client = Client::open(mount.point()).unwrap();
    let buffer = HostBuffer::new(1 << 20, Pages::Ordinary).unwrap();
    let registered = client.register(&buffer, Access::Both).unwrap();
    let open = |i| File::with(&mount.path(ranked(1, i)), fs::File::options().read(true).write(true)).unwrap();
    let files: Vec<_> = (0..MANY).map(open).collect();
    let (before, asked) = (servers(&mount), mount.op("ioctl"));
    let frozen = Frozen::new(&volumes[1]);
    std::thread::scope(|scope| {
        let registered = &registered;
        let waiting: Vec<_> = files
            .iter()
            .map(|file| scope.spawn(move || (stay_on(0), file.write(1 << 20, registered, 0, 4096)).1))
            .collect();
        while mount.op("ioctl") < asked + MANY as u64 {
            std::thread::yield_now();
        }
        let other = || (stay_on(0), sys::chmod(mount.path(ranked(0, 0)), 0o640)).1;
        assert_eq!(scope.spawn(other).join().unwrap(), Ok(()));
        assert!(servers(&mount) > before && waiting.iter().all(|client| !client.is_finished()));
        drop(frozen);
        for client in waiting {
            assert_eq!(client.join().unwrap().unwrap(), 4096);
        }
    });
    // Nobody had to notice that it takes long.
    assert!(!mount.story().contains("wait for a drive"), "{}", mount.story());
}
