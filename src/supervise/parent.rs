//! The parent: starts the daemon, keeps what it's given, and starts it again when it dies.
//!
//! What always holds: one thread, no memory asked for after the first start (all tables have their size), the
//! mount never touched. It ends when the daemon has ended by itself (unmounted), when the first one never
//! came up, or when none has for long; then the kernel's connection ends with it and clients get an error
//! instead of waiting for ever.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::keeper::{Notify, SOCKET_FD, Tag, Word, hear, say};

/// Descriptors that are kept at most: files without a name that are open, clients' buffers.
const KEPT: usize = 65536;
/// A daemon that lives shorter than this is started again a little later.
const SHORT: Duration = Duration::from_millis(100);
/// The longest of these delays.
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// After so many daemons in a row that didn't come up there is no other.
const GIVE_UP: u32 = 40;

/// How the daemon is started.
#[derive(Debug)]
pub struct Start {
    /// The executable.
    pub executable: OwnedFd,
    /// Its words, the program's name first.
    pub words: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
    /// Where the first one says how it went; closed here when it has.
    pub ready: Option<OwnedFd>,
    /// Who else is told that the mount is there: systemd, which knows this process.
    pub notify: Option<Notify>,
}

struct Parent {
    executable: OwnedFd,
    /// The one before an upgrade, until the new one has come up.
    former: Option<OwnedFd>,
    /// The new one didn't.
    fell_back: bool,
    words: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    kept: Vec<(u64, OwnedFd)>,
    daemon: Option<Daemon>,
    ready: Option<OwnedFd>,
    notify: Option<Notify>,
    /// Whether any has come up.
    was_up: bool,
    /// Starts in a row that didn't.
    failed: u32,
    delay: Duration,
    /// How the last one ended.
    signal: i32,
    /// To be told to the next one.
    pending: Option<Signal>,
}

struct Daemon {
    pid: Pid,
    socket: OwnedFd,
    since: Instant,
    up: bool,
    /// It has let go of its end, and is about to be gone: how long that takes is up to its drives.
    hung_up: bool,
}

/// Starts the daemon, and again, until it ends by itself: its exit status.
///
/// Fails where not even the first could be started.
pub fn supervise(start: Start) -> io::Result<u8> {
    let Start { executable, words, environment, ready, notify } = start;
    let pointers = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let mut parent =
        Parent { ready, notify, ..Parent::of(executable, pointers(&words), pointers(&environment)) };
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
    let told = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    parent.start()?;
    loop {
        if let Some(status) = parent.wait(&told)? {
            return Ok(status);
        }
    }
}

impl Parent {
    /// One that has started nothing yet.
    fn of(
        executable: OwnedFd,
        words: Vec<*const libc::c_char>,
        environment: Vec<*const libc::c_char>,
    ) -> Parent {
        Parent {
            executable,
            former: None,
            fell_back: false,
            words,
            environment,
            kept: Vec::with_capacity(KEPT),
            daemon: None,
            ready: None,
            notify: None,
            was_up: false,
            failed: 0,
            delay: Duration::ZERO,
            signal: 0,
            pending: None,
        }
    }

    fn start(&mut self) -> io::Result<()> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                self.daemon = Some(Daemon {
                    pid: child,
                    socket: ours,
                    since: Instant::now(),
                    up: false,
                    hung_up: false,
                });
                Ok(())
            }
            ForkResult::Child => self.become_daemon(&theirs),
        }
    }

    fn become_daemon(&self, socket: &OwnedFd) -> ! {
        let _ = SigSet::all().thread_unblock();
        // A test's daemons are not to outlive it.
        #[cfg(feature = "fault-points")]
        if std::env::var_os("KVFS_TEST_DIE_WITH_PARENT").is_some() {
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        }
        let (executable, words, environment) = (self.executable.as_raw_fd(), &self.words, &self.environment);
        // SAFETY: dup2 makes a descriptor at a number that this process, which is about to become another
        // program, doesn't use; the arrays end with a null and their strings outlive the call.
        unsafe {
            if libc::dup2(socket.as_raw_fd(), SOCKET_FD) == SOCKET_FD {
                libc::syscall(
                    libc::SYS_execveat,
                    executable,
                    c"".as_ptr(),
                    words.as_ptr(),
                    environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
            }
            libc::_exit(127)
        }
    }

    /// Waits for something to do. The exit status at the end.
    fn wait(&mut self, signals: &SignalFd) -> io::Result<Option<u8>> {
        let nap = match &self.daemon {
            Some(_) => None,
            None => Some(self.delay),
        };
        let timeout =
            nap.map(|nap| Timespec { tv_sec: nap.as_secs() as i64, tv_nsec: nap.subsec_nanos().into() });
        let told = signals.as_fd();
        let ended = match &self.daemon {
            Some(daemon) if !daemon.hung_up => {
                let mut fds = [PollFd::new(&told, PollFlags::IN), PollFd::new(&daemon.socket, PollFlags::IN)];
                match poll(&mut fds, timeout.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
                let spoke = fds[1].revents().contains(PollFlags::IN);
                if spoke {
                    self.listen();
                }
                self.look(signals)?
            }
            _ => {
                let _ = poll(&mut [PollFd::new(&told, PollFlags::IN)], timeout.as_ref());
                self.look(signals)?
            }
        };
        if ended.is_some() {
            return Ok(ended);
        }
        if self.daemon.is_none() && self.start().is_err() {
            self.did_not_come_up();
        }
        Ok((self.failed > GIVE_UP).then_some(1))
    }

    /// Signals: of a daemon that has ended, and those to be passed on.
    fn look(&mut self, signals: &SignalFd) -> io::Result<Option<u8>> {
        while let Some(told) = signals.read_signal()? {
            match Signal::try_from(told.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => {
                    if let Some(status) = self.reap() {
                        return Ok(Some(status));
                    }
                }
                Ok(signal) => self.pass_on(signal),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    fn pass_on(&mut self, signal: Signal) {
        match &self.daemon {
            Some(daemon) => drop(kill(daemon.pid, signal)),
            None => self.pending = Some(signal),
        }
    }

    fn reap(&mut self) -> Option<u8> {
        let pid = self.daemon.as_ref()?.pid;
        let signal = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => {
                // What it said last.
                self.listen();
                // A new executable that ends before it's up, with whatever status, isn't the mount's end.
                let is_new = self.former.is_some() && self.daemon.as_ref().is_some_and(|daemon| !daemon.up);
                if (status == 0 && !is_new) || !self.was_up {
                    return Some(status as u8);
                }
                0
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                self.listen();
                // Once it has mounted, another takes over, though it wasn't ready yet.
                if !self.was_up && !self.has_device() {
                    return Some(128 + signal as u8);
                }
                signal as i32
            }
            _ => return None,
        };
        if !self.has_device() {
            // It was told that nobody could take over.
            return Some(1);
        }
        let daemon = self.daemon.take()?;
        self.signal = signal;
        if daemon.up {
            self.failed = 0;
            let short = daemon.since.elapsed() < SHORT;
            self.delay =
                if short { (self.delay * 2).clamp(SHORT / 10, LONGEST_DELAY) } else { Duration::ZERO };
        } else {
            self.did_not_come_up();
        }
        None
    }

    /// Whether there's a mount.
    fn has_device(&self) -> bool {
        self.kept.iter().any(|(tag, _)| *tag == Tag::Device.code())
    }

    fn did_not_come_up(&mut self) {
        if let Some(former) = self.former.take() {
            // The new executable is no good.
            self.executable = former;
            self.fell_back = true;
            return;
        }
        self.failed += 1;
        self.delay = (self.delay * 2).clamp(SHORT / 2, LONGEST_DELAY);
    }

    /// What the daemon says, all of it.
    fn listen(&mut self) {
        loop {
            let Some(daemon) = &mut self.daemon else { return };
            let mut fds = [PollFd::new(&daemon.socket, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if poll(&mut fds, Some(&now)) != Ok(1) || !fds[0].revents().contains(PollFlags::IN) {
                return;
            }
            match hear(daemon.socket.as_fd()) {
                Ok(Some((Word::Keep(tag), Some(fd)))) => {
                    match self.kept.iter().position(|(t, _)| *t == tag) {
                        Some(at) => self.kept[at].1 = fd,
                        None if self.kept.len() < KEPT => self.kept.push((tag, fd)),
                        // It's lost in a crash.
                        None => {}
                    }
                }
                Ok(Some((Word::Drop(tag), _))) => self.kept.retain(|(t, _)| *t != tag),
                Ok(Some((Word::List, _))) => {
                    for (tag, fd) in &self.kept {
                        let _ = say(daemon.socket.as_fd(), Word::Keep(*tag), Some(fd.as_fd()));
                    }
                    if self.fell_back {
                        let _ = say(daemon.socket.as_fd(), Word::Former, None);
                    }
                    let _ = say(daemon.socket.as_fd(), Word::End(self.signal as u64), None);
                }
                Ok(Some((Word::Ready, _))) => {
                    daemon.up = true;
                    self.came_up();
                }
                Ok(Some((Word::Upgrade, Some(executable)))) => {
                    self.fell_back = false;
                    self.former = Some(std::mem::replace(&mut self.executable, executable));
                }
                Ok(Some((Word::Sync, _))) => drop(say(daemon.socket.as_fd(), Word::Sync, None)),
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => {
                    daemon.hung_up = true;
                    return;
                }
            }
        }
    }

    fn came_up(&mut self) {
        self.was_up = true;
        self.failed = 0;
        (self.former, self.fell_back) = (None, false);
        if let Some(notify) = self.notify.take() {
            notify.ready();
        }
        if let (Some(signal), Some(daemon)) = (self.pending.take(), &self.daemon) {
            let _ = kill(daemon.pid, signal);
        }
        // In the background: nobody waits for a word any more, and the terminal is let go of.
        if self.ready.take().is_some()
            && let Ok(null) =
                rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
        {
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }
}

const _: () = assert!(SOCKET_FD > 2 as RawFd);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_takes_long_to_end_is_waited_for_in_peace() {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGUSR1);
        signals.thread_block().unwrap();
        let told = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        drop(theirs);
        let executable = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let mut parent = Parent {
            daemon: Some(Daemon { pid, socket, since: Instant::now(), up: true, hung_up: false }),
            ..Parent::of(executable, Vec::new(), Vec::new())
        };
        // To this thread: others of the test's process don't block it.
        let this = rustix::thread::gettid().as_raw_nonzero().get();
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let sending = sent.clone();
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            sending.store(true, std::sync::atomic::Ordering::SeqCst);
            // SAFETY: a system call with integers.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), this, libc::SIGUSR1) };
        });
        // The first time it hears that nobody is at the other end; then it sleeps until there's a signal.
        let mut waits = 0;
        while !sent.load(std::sync::atomic::Ordering::SeqCst) {
            assert_eq!(parent.wait(&told).unwrap(), None);
            waits += 1;
        }
        later.join().unwrap();
        let _ = (child.kill(), child.wait());
        assert!(waits <= 3, "it asked {waits} times");
    }
}
