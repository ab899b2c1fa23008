//! A file that is being written is its writers' alone until it's closed, and goes if it never is.
#![allow(clippy::unwrap_used)]

mod common;

#[path = "publish/death.rs"]
mod death;
#[path = "publish/listed.rs"]
mod listed;
#[path = "publish/power.rs"]
mod power;
#[path = "publish/restart.rs"]
mod restart;
#[path = "publish/visible.rs"]
mod visible;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use common::process::Process;
use common::{Builder, Errno, Lab, Mount, Passthrough, R, ns, sys};

const NEW: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;

fn on_close(lab: &Lab, mode: Passthrough) -> Builder {
    lab.mount(&lab.dirs(2)).passthrough(mode).arg("--publish").arg("on-close")
}

/// Another process, that has a file open and does what it's told to.
struct Writer {
    process: Process,
    orders: File,
}

impl Writer {
    /// Opens the file, and then waits for orders.
    fn open(path: &Path, flags: i32) -> Writer {
        Writer::as_user(0, path, flags)
    }

    fn as_user(uid: u32, path: &Path, flags: i32) -> Writer {
        let (orders, tell) = sys::pipe().unwrap();
        let path = path.to_owned();
        let process = Process::start(move |say| {
            if uid != 0 {
                nix::unistd::setgroups(&[]).unwrap();
                nix::unistd::setresgid(uid.into(), uid.into(), uid.into()).unwrap();
                nix::unistd::setresuid(uid.into(), uid.into(), uid.into()).unwrap();
            }
            let fd = sys::open(&path, flags, 0o644);
            say(&said(&fd));
            obey(&path, fd.ok(), &mut File::from(orders), say);
        });
        let mut writer = Writer { process, orders: tell.into() };
        assert_eq!(writer.process.hear(), "ok");
        writer
    }

    /// Gives an order, and returns what came of it.
    fn order(&mut self, order: char) -> String {
        self.orders.write_all(&[order as u8]).unwrap();
        self.process.hear()
    }

    #[track_caller]
    fn does(&mut self, order: char) {
        assert_eq!(self.order(order), "ok", "{order}");
    }

    /// Closes the file and ends.
    #[track_caller]
    fn close(mut self) {
        self.does('c');
        self.finish();
    }

    /// Has it end by itself.
    #[track_caller]
    fn finish(mut self) {
        self.orders.write_all(b"q").unwrap();
        self.process.finish();
    }
}

fn said<T>(result: &R<T>) -> String {
    result.as_ref().map_or_else(|e| e.to_string(), |_| "ok".into())
}

fn obey(path: &Path, mut fd: Option<OwnedFd>, orders: &mut File, say: &mut dyn FnMut(&str)) {
    let mut order = [0];
    while orders.read(&mut order).unwrap() == 1 {
        let open = || fd.as_ref().unwrap();
        let done = match order[0] {
            b'w' => said(&sys::write(open(), b"some")),
            b's' => said(&sys::fsync(open())),
            b't' => said(&sys::ftruncate(open(), 0)),
            b'd' => said(&sys::fcntl(open(), libc::F_DUPFD, 100)),
            // By what 'd' has made.
            b'W' => {
                // SAFETY: F_DUPFD has made it, and it's not closed by this.
                let copy = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(100) });
                said(&sys::write(&copy, b"more"))
            }
            b'l' => said(&sys::stat(path)),
            b'r' => said(&sys::rename(path, path.with_extension("renamed"))),
            b'c' => {
                drop(fd.take());
                "ok".into()
            }
            // A child that has the descriptor, too, until it's killed.
            b'f' => {
                let mut child = Process::start(|say| {
                    say("there");
                    loop {
                        std::thread::park();
                    }
                });
                // From now on it ends with this one.
                assert_eq!(child.hear(), "there");
                std::mem::forget(child);
                "ok".into()
            }
            b'q' => return,
            b'0'..=b'9' => end(i32::from(order[0] - b'0')),
            b'A' => die(libc::SIGABRT),
            b'S' => die(libc::SIGSEGV),
            b'T' => {
                // By another thread than the one that opened it, while that one waits.
                std::thread::spawn(|| end(0));
                loop {
                    std::thread::park();
                }
            }
            other => panic!("no such order: {other}"),
        };
        say(&done);
    }
}

fn end(status: i32) -> ! {
    // SAFETY: ends this process at once; nothing of it is used after.
    unsafe { libc::_exit(status) }
}

fn die(signal: i32) -> ! {
    // SAFETY: signal and raise take integers; the default action ends this process.
    unsafe {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
    end(1)
}

/// Names that this process finds in a directory, in both ways.
fn listed(dir: &Path) -> Vec<String> {
    let names = common::lab::names(dir);
    let plain: Vec<String> =
        common::dir::list(dir).unwrap().into_iter().map(|(n, _)| n.into_string().unwrap()).collect();
    assert_eq!(
        plain.iter().filter(|n| !n.starts_with(".kvfs-")).collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
    names
}

/// What another process that isn't among the writers finds of a file: nothing.
#[track_caller]
fn hidden(path: &Path) {
    assert_eq!(sys::stat(path).map(drop), Err(Errno::ENOENT), "{}", path.display());
    assert_eq!(sys::open(path, libc::O_RDONLY, 0).map(drop), Err(Errno::ENOENT));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(!listed(path.parent().unwrap()).iter().any(|n| n == name), "{name} is listed");
}

#[track_caller]
fn shown(path: &Path, bytes: &[u8]) {
    assert_eq!(std::fs::read(path).unwrap(), bytes, "{}", path.display());
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(listed(path.parent().unwrap()).iter().any(|n| n == name), "{name} isn't listed");
}

fn number(mount: &Mount, what: &str) -> u64 {
    mount.status()["publish"][what].as_u64().unwrap()
}

/// Waits until this many files are hidden: the kernel says later that a file is closed.
#[track_caller]
fn unpublished(mount: &Mount, n: u64) {
    let deadline = Instant::now() + ns::HANG;
    while number(mount, "unpublished") != n {
        assert!(Instant::now() < deadline, "{} are hidden, not {n}", number(mount, "unpublished"));
    }
}
