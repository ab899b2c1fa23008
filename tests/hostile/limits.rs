//! Users who take all they can get: they get no more than a part, others go on, the daemon stays within its
//! bounds, and everything is given back.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use crate::common::process::Process;
use crate::common::user::{NOBODY, as_user};
use crate::common::{Errno, FsKind, Lab, Mount, Passthrough, R, cli, ns, sys};

#[path = "../direct/frozen.rs"]
#[allow(dead_code)]
mod frozen;
use frozen::Frozen;

/// Asks for the status until it's as wanted; the daemon's end, or nothing for long, fails the test.
#[track_caller]
pub(super) fn until(mount: &Mount, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
    let pidfd = sys::pidfd(mount.pid()).unwrap();
    let deadline = std::time::Instant::now() + ns::HANG;
    loop {
        let status = mount.status();
        if wanted(&status) {
            return;
        }
        let ended = cli::wait_fd(&pidfd, std::time::Duration::from_millis(5));
        let late = std::time::Instant::now() > deadline;
        assert!(!ended && !late, "not seen: {what}\n{status:#}\n{}", mount.story());
    }
}

/// How many entries a directory of the daemon's in /proc has.
pub(super) fn count(mount: &Mount, what: &str) -> usize {
    std::fs::read_dir(format!("/proc/{}/{what}", mount.pid())).unwrap().count()
}

/// The daemon's threads of this name.
fn threads(mount: &Mount, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.trim_end() == name).count()
}

/// Becomes a user for good; for a process of one thread.
pub(super) fn become_user(uid: u32) {
    use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
    setgroups(&[]).unwrap();
    setgid(Gid::from_raw(uid)).unwrap();
    setuid(Uid::from_raw(uid)).unwrap();
    // SAFETY: prctl takes integers. Changing the user has taken it away.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
}

/// A user's process that opens these files in turn until it can't, says how many it has and why there are no
/// more, and keeps them.
fn opener(uid: u32, files: Vec<PathBuf>) -> Process {
    Process::start(move |say| {
        become_user(uid);
        let mut open: Vec<OwnedFd> = Vec::new();
        let errno = loop {
            match sys::open(&files[open.len() % files.len()], libc::O_RDONLY, 0) {
                Ok(fd) => open.push(fd),
                Err(errno) => break errno,
            }
            assert!(open.len() < 1000, "without a limit");
        };
        say(&format!("{} {errno:?}", open.len()));
        loop {
            nix::unistd::pause();
        }
    })
}

fn heard(opener: &mut Process) -> (usize, String) {
    let line = opener.hear();
    let (number, errno) = line.split_once(' ').unwrap();
    (number.parse().unwrap(), errno.to_owned())
}

fn open_files(mode: Passthrough) {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).passthrough(mode).env("KVFS_TEST_FILE_LIMIT", "1024").start();
    let files: Vec<PathBuf> = (0..300).map(|n| mount.path(format!("f{n}"))).collect();
    files.iter().for_each(|path| std::fs::write(path, "content").unwrap());
    let works = |who: &str| {
        assert_eq!(std::fs::read(&files[0]).unwrap(), b"content", "{who}");
        std::fs::write(mount.path("mine"), who).unwrap();
        std::fs::remove_file(mount.path("mine")).unwrap();
    };
    until(&mount, "nothing open", |s| s["open_files"] == 0);
    let enfile = "ENFILE".to_owned();
    // 480 descriptors, three for each. Whoever comes gets half of what is left, however many processes ask for it.
    let mut first: Vec<Process> = (0..4).map(|_| opener(1001, files.clone())).collect();
    let got: Vec<_> = first.iter_mut().map(heard).collect();
    assert!(got.iter().all(|(_, errno)| *errno == enfile), "{got:?}");
    assert_eq!(got.iter().map(|(n, _)| n).sum::<usize>(), 80, "{got:?}");
    works("root beside the first");
    let mut others: Vec<Process> = (1002..=1004).map(|uid| opener(uid, files.clone())).collect();
    let more: Vec<_> = others.iter_mut().map(heard).collect();
    assert!(more.iter().all(|(n, errno)| *n > 0 && *errno == enfile), "{more:?}");
    works("root beside all");
    // Another user, too, who wasn't there before.
    let seen = as_user(NOBODY, NOBODY, || std::fs::read(&files[1]).unwrap());
    assert_eq!(seen, b"content");
    assert!(count(&mount, "fd") < 1024 - 100, "the daemon's descriptors: {}", count(&mount, "fd"));
    assert_eq!(
        as_user(1001, 1001, || sys::open(mount.path("new"), libc::O_CREAT | libc::O_RDWR, 0o600).map(drop)),
        Err(Errno::EACCES),
        "the directory isn't theirs"
    );
    let dir = mount.path("1001");
    std::fs::create_dir(&dir).unwrap();
    sys::chown(&dir, 1001, 1001).unwrap();
    let create = || sys::open(dir.join("new"), libc::O_CREAT | libc::O_RDWR, 0o600).map(drop);
    assert_eq!(as_user(1001, 1001, create), Err(Errno::ENFILE));
    assert_eq!(sys::lstat(dir.join("new")).map(drop), Err(Errno::ENOENT), "and nothing was made");
    // Killed: all of it is given back.
    first.into_iter().chain(others).for_each(Process::kill);
    until(&mount, "all closed", |s| s["open_files"] == 0);
    let mut again = opener(1001, files.clone());
    assert_eq!(heard(&mut again), (80, enfile));
    assert_eq!(mount.status()["open_files"], 80);
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "its limits are set by fault points")]
fn nobody_takes_all_open_files() {
    open_files(Passthrough::Auto);
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "its limits are set by fault points")]
fn nobody_takes_all_open_files_without_passthrough() {
    open_files(Passthrough::Off);
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "its limits are set by fault points")]
fn nobody_takes_all_threads_that_wait_for_room() {
    const MIB: usize = 1 << 20;
    let lab = Lab::new();
    let volume = lab.volume(FsKind::Ext4, 64);
    let backing = volume.join("kv");
    for n in 0..14 {
        std::fs::create_dir_all(backing.join(format!("d{n}"))).unwrap();
        sys::chown(backing.join(format!("d{n}")), NOBODY, NOBODY).unwrap();
    }
    // Full of files that may be evicted, but for less than the reserve.
    let free = || {
        let st = sys::statvfs(&volume).unwrap();
        (st.f_bavail * st.f_frsize) as usize
    };
    std::fs::write(backing.join("seen"), "content").unwrap();
    (0..(free() - (10 << 20)) / MIB)
        .for_each(|n| std::fs::write(backing.join(format!("old{n}")), vec![1; MIB]).unwrap());
    let filler = sys::create(volume.join("filler")).unwrap();
    sys::fallocate(&filler, 0, 0, free() as i64 - (9 << 20)).unwrap();
    sys::fsync(&sys::open(&volume, libc::O_RDONLY, 0).unwrap()).unwrap();
    let args = ["--min-free", "10M", "--evict", "lru", "--high-water", "100", "--low-water", "99"];
    let builder = lab.mount(&[backing]).env("KVFS_TEST_WAITING", "8");
    let mount = args.iter().fold(builder, |builder, arg| builder.arg(arg)).start();
    let dirs: Vec<PathBuf> = (0..14).map(|n| mount.path(format!("d{n}"))).collect();
    assert!(dirs.iter().all(|dir| sys::lstat(dir).is_ok()));
    let create =
        |path: &Path| -> R<()> { sys::open(path.join("x"), libc::O_CREAT | libc::O_WRONLY, 0o600).map(drop) };
    // What would make room hangs.
    let frozen = Frozen::new(&volume);
    let results = std::thread::scope(|scope| {
        let (tell, told) = channel();
        for dir in &dirs[..12] {
            let tell = tell.clone();
            scope.spawn(move || tell.send(as_user(NOBODY, NOBODY, || create(dir))).unwrap());
        }
        // Those that may not wait hear at once what there is to hear.
        let at_once: Vec<R<()>> = told.iter().take(8).collect();
        assert_eq!(at_once, vec![Err(Errno::ENOSPC); 8]);
        assert_eq!(threads(&mount, "kvfs-room"), 4, "threads that wait");
        // Another user is served, and may wait too.
        assert_eq!(std::fs::read(mount.path("seen")).unwrap(), b"content");
        let other = tell.clone();
        let dir = &dirs[12];
        scope.spawn(move || other.send(create(dir)).unwrap());
        let deadline = std::time::Instant::now() + ns::HANG;
        while threads(&mount, "kvfs-room") < 5 {
            assert!(std::time::Instant::now() < deadline, "{}", mount.story());
            std::thread::yield_now();
        }
        drop(frozen);
        told.iter().take(5).collect::<Vec<_>>()
    });
    assert!(results.iter().all(|r| matches!(r, Ok(()) | Err(Errno::ENOSPC))), "{results:?}");
    until(&mount, "no threads that wait", |_| threads(&mount, "kvfs-room") == 0);
}
