//! How such a mount ends, and its clients.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Instant;

use super::frozen::Frozen;
use super::{by_uring, on_each, servers, stay_on};
use crate::common::process::Process;
use crate::common::{Errno, FsKind, Lab, Passthrough, ns, sys};

#[test]
fn it_is_unmounted_and_mounted_again_and_again() {
    let lab = Lab::new();
    let mut mount = by_uring(&lab).start();
    for n in 0..5 {
        on_each(|processor| fs::write(mount.path(format!("{n}-{processor}")), "x").unwrap());
        mount = mount.restart();
    }
    assert_eq!(crate::common::lab::names(mount.point()).len(), 5 * on_each(drop).len());
}

#[test]
fn an_aborted_connection_ends_it() {
    let lab = Lab::new();
    let mount = by_uring(&lab).start();
    let open = sys::create(mount.path("f")).unwrap();
    // By its root: the daemon unmounts at once, and its path leads below the mount then.
    let root = sys::open(mount.point(), libc::O_PATH | libc::O_DIRECTORY, 0).unwrap();
    ns::abort(mount.minor);
    on_each(|processor| {
        let absent = format!("/proc/self/fd/{}/absent{processor}", root.as_raw_fd());
        let answer = sys::lstat(absent).map(drop);
        assert!(matches!(answer, Err(Errno::ENOTCONN | Errno::ECONNABORTED)), "{answer:?}");
    });
    drop((open, root));
    let (point, story) = (mount.point().to_owned(), mount.log.clone());
    mount.ended();
    assert!(ns::mounts_at(&point).is_empty(), "{}", fs::read_to_string(story).unwrap());
}

/// Its clients are told, and can go.
#[test]
fn a_killed_daemon_keeps_nobody() {
    let lab = Lab::new();
    let mount = by_uring(&lab).passthrough(Passthrough::Off).start();
    let point = mount.point().to_owned();
    let mut clients: Vec<Process> = (0..6)
        .map(|n| {
            let dir = point.join(format!("d{n}"));
            Process::start(move |say| {
                stay_on(n % std::thread::available_parallelism().unwrap().get());
                fs::create_dir(&dir).unwrap();
                say("at work");
                // Until it's told that there's nobody any more.
                for i in 0.. {
                    let path = dir.join(format!("f{i}"));
                    let e = match fs::write(&path, vec![1; 200_000])
                        .and_then(|()| fs::read(&path))
                        .and_then(|_| fs::remove_file(&path))
                    {
                        Ok(()) => continue,
                        Err(e) => Errno::from_raw(e.raw_os_error().unwrap()),
                    };
                    // EIO: of a page that was being read. The others: while the daemon was going.
                    let known =
                        [Errno::ENOTCONN, Errno::ECONNABORTED, Errno::ECANCELED, Errno::EINTR, Errno::EIO];
                    assert!(known.contains(&e), "{e}");
                    if matches!(e, Errno::ECANCELED | Errno::EINTR) {
                        continue;
                    }
                    break;
                }
            })
        })
        .collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.hear(), "at work"));
    while mount.op("write") < 50 {
        std::thread::yield_now();
    }
    mount.signal(libc::SIGKILL);
    clients.into_iter().for_each(Process::finish);
    assert!(!mount.ended().success());
    ns::unmount_below(&lab.root());
    assert!(ns::mounts_at(&point).is_empty());
}

/// Requests of clients that are killed are answered to nobody; others get the entries.
#[test]
fn killed_clients_leave_nothing() {
    let lab = Lab::new();
    let volume = lab.volume(FsKind::Ext4, 512);
    let mount = lab.mount(&[volume.join("kv")]).transport("io-uring").arg("--drive-timeout=3600").start();
    (0..12).for_each(|n| fs::write(mount.path(format!("f{n}")), "x").unwrap());
    let before = servers(&mount);
    for _ in 0..3 {
        let asked = mount.op("setattr");
        let frozen = Frozen::new(&volume);
        let mut clients: Vec<_> = (0..12)
            .map(|n| {
                let path = mount.path(format!("f{n}"));
                Process::start(move |say| {
                    say("about to wait");
                    let _ = sys::chmod(&path, 0o600);
                })
            })
            .collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.hear(), "about to wait"));
        while mount.op("setattr") == asked {
            std::thread::yield_now();
        }
        clients.iter().for_each(Process::shoot);
        drop(frozen);
        clients.into_iter().for_each(Process::kill);
    }
    assert!(servers(&mount) >= before);
    on_each(|processor| fs::write(mount.path(format!("after{processor}")), "x").unwrap());
    let deadline = Instant::now() + ns::HANG;
    while mount.status()["open_files"] != 0 {
        assert!(Instant::now() < deadline, "files stay open: {:#}", mount.status());
    }
}
