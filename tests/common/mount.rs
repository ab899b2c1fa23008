//! The fixture: the real `kvfs` daemon serving a real mount, started, proved and taken away again.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde_json::Value;

use super::cli::{self, BINARY};
use super::enabled::Uring;
use super::lab::Lab;
use super::{ns, sys, user};

/// FUSE_SUPER_MAGIC: what statfs says of every FUSE mount.
pub(crate) const FUSE_MAGIC: i64 = 0x6573_5546;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passthrough {
    Auto,
    Off,
}

impl Passthrough {
    pub(crate) fn word(self) -> &'static str {
        if self == Passthrough::Auto { "auto" } else { "off" }
    }

    /// The mode of the tests that don't run in both: KVFS_TEST_PASSTHROUGH, else auto.
    fn from_env() -> Passthrough {
        match std::env::var("KVFS_TEST_PASSTHROUGH").as_deref() {
            Ok("off") => Passthrough::Off,
            Ok("auto") | Err(_) => Passthrough::Auto,
            Ok(other) => panic!("KVFS_TEST_PASSTHROUGH is auto or off, not {other:?}"),
        }
    }
}

/// A mount that can be started, and started again.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    root: PathBuf,
    pub(crate) point: PathBuf,
    pub(crate) backings: Vec<PathBuf>,
    passthrough: Passthrough,
    /// Where it isn't the default.
    transport: Option<OsString>,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    uid: Option<u32>,
    /// What starts the daemon, if it isn't the test.
    under: Vec<OsString>,
    binary: PathBuf,
}

impl Builder {
    pub(crate) fn new(lab: &Lab, point: PathBuf, backings: &[PathBuf]) -> Builder {
        Builder {
            root: lab.root(),
            point,
            backings: backings.to_vec(),
            passthrough: Passthrough::from_env(),
            // Of the tests that have no transport of their own: KVFS_TEST_TRANSPORT
            transport: std::env::var_os("KVFS_TEST_TRANSPORT"),
            args: Vec::new(),
            env: Vec::new(),
            uid: None,
            under: Vec::new(),
            binary: BINARY.into(),
        }
    }

    /// Started by another program, whose words the command is appended to. Its only child is the daemon.
    pub(crate) fn under(mut self, words: impl IntoIterator<Item = OsString>) -> Builder {
        self.under = words.into_iter().collect();
        self
    }

    /// Another executable than the one that is tested.
    pub(crate) fn binary(mut self, path: &Path) -> Builder {
        self.binary = path.to_owned();
        self
    }

    pub(crate) fn at(mut self, point: PathBuf) -> Builder {
        self.point = point;
        self
    }

    pub(crate) fn passthrough(mut self, mode: Passthrough) -> Builder {
        self.passthrough = mode;
        self
    }

    /// How requests come.
    pub(crate) fn transport(mut self, transport: &str) -> Builder {
        self.transport = Some(transport.into());
        self
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Builder {
        self.args.push(arg.into());
        self
    }

    /// A variable of the daemon's environment.
    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Builder {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// With the parent that starts the daemon again when it dies.
    pub(crate) fn supervised(mut self) -> Builder {
        // No other can be supervised.
        self.transport = None;
        // Tests end the parent with themselves; the daemon goes with it.
        self.arg("--supervise").arg("on").env("KVFS_TEST_DIE_WITH_PARENT", "1")
    }

    /// Mounts as an ordinary user, with fusermount3.
    pub(crate) fn user(mut self, uid: u32) -> Builder {
        self.uid = Some(uid);
        self
    }

    pub(crate) fn command(&self, log: &Path) -> Command {
        let mut backings = OsString::new();
        for (i, b) in self.backings.iter().enumerate() {
            if i > 0 {
                backings.push(",");
            }
            backings.push(b);
        }
        let words: Vec<&OsStr> =
            self.under.iter().map(|word| &**word).chain([self.binary.as_ref()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("mount").arg(&self.point).arg("--backing").arg(backings).arg("-f");
        command.args(["--passthrough", self.passthrough.word()]).arg("--log").arg(log).args(&self.args);
        if let Some(transport) = &self.transport {
            command.arg("--transport").arg(transport);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid).env_remove("XDG_RUNTIME_DIR");
        }
        command
    }

    /// Starts the daemon and returns once it serves the mount.
    #[track_caller]
    pub(crate) fn start(self) -> Mount {
        let file = |name: &str| {
            let path =
                self.root.join(format!("{}.{name}", self.point.file_name().unwrap().to_string_lossy()));
            let file = File::options().create(true).append(true).open(&path).expect("make a log file");
            if let Some(uid) = self.uid {
                std::os::unix::fs::chown(&path, Some(uid), Some(uid)).expect("give the log to the user");
            }
            (path, file)
        };
        let (log, _) = file("log");
        let (said, stderr) = file("stderr");
        let enabled = (self.transport.as_deref() == Some("io-uring".as_ref())).then(Uring::enabled);
        let mut command = self.command(&log);
        command.stdin(Stdio::null()).stdout(stderr.try_clone().expect("stdout")).stderr(stderr);
        sys::die_with_parent(&mut command);
        let child = command.spawn().expect("start kvfs");
        let pidfd = sys::pidfd(child.id()).expect("pidfd of the daemon");
        let point = self.point.clone();
        let mut mount = Mount {
            _enabled: enabled,
            guard: None,
            minor: 0,
            child: Some(child),
            pidfd,
            log,
            said,
            panics: AtomicU64::new(0),
            builder: self,
        };
        let is_fuse = || ns::mounts_at(&point).iter().any(|m| m.fs_type.starts_with("fuse"));
        if !ns::wait_mounts(Some(mount.pidfd.as_fd()), is_fuse) {
            panic!("kvfs did not mount {}:\n{}", point.display(), mount.story());
        }
        mount.minor = ns::mounts_at(&point).last().expect("the mount").minor;
        mount.guard = Some(guard(mount.minor, mount.pidfd.try_clone().expect("pidfd")));
        mount.prove();
        mount
    }
}

/// Aborts the connection when the test neither ends nor takes the mount away in time: every call
/// stuck on the mount then fails and the test says so, instead of sitting there.
fn guard(minor: u32, pidfd: OwnedFd) -> Sender<()> {
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        if rx.recv_timeout(5 * ns::HANG) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the mount with connection {minor} is hung: aborting it");
            ns::abort(minor);
            let _ = sys::signal(&pidfd, libc::SIGKILL);
        }
    });
    tx
}

/// A served mount. Dropping it unmounts, and fails the test if the daemon panicked or didn't end well.
pub(crate) struct Mount {
    guard: Option<Sender<()>>,
    /// Of the mount's device: the number of its connection, given again once it is gone.
    pub(crate) minor: u32,
    child: Option<Child>,
    pidfd: OwnedFd,
    pub(crate) log: PathBuf,
    said: PathBuf,
    panics: AtomicU64,
    builder: Builder,
    /// Where requests come by io_uring.
    _enabled: Option<Uring>,
}

impl Mount {
    pub(crate) fn point(&self) -> &Path {
        &self.builder.point
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.builder.point.join(name)
    }

    pub(crate) fn backings(&self) -> &[PathBuf] {
        &self.builder.backings
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running daemon").id()
    }

    /// Asks until the daemon answers: it may mount a moment before it listens.
    #[track_caller]
    fn answers(&self) {
        let uid = self.builder.uid.unwrap_or(0);
        let deadline = Instant::now() + ns::HANG;
        while cli::kvfs_as(uid, [OsString::from("status"), self.point().into()]).status.code() != Some(0) {
            let ended = cli::wait_fd(&self.pidfd, Duration::from_millis(5));
            assert!(
                !ended && Instant::now() < deadline,
                "mounted, but status gets no answer:\n{}",
                self.story()
            );
        }
    }

    /// Proves that what is mounted is FUSE and that this daemon answers for it.
    #[track_caller]
    fn prove(&self) {
        // A mount of an ordinary user is for that user alone, not even for root.
        let uid = self.builder.uid.unwrap_or(0);
        let magic = user::as_user(uid, uid, || sys::fs_magic(self.point()));
        assert_eq!(magic, Ok(FUSE_MAGIC), "statfs of the mount point");
        self.answers();
        let before = self.op("lookup");
        let name = self.path("no-such-name-of-the-fixture");
        let found = user::as_user(uid, uid, || sys::lstat(&name).map(drop));
        assert_eq!(found, Err(Errno::ENOENT), "a name that isn't there");
        assert!(self.op("lookup") > before, "a lookup in the mount did not reach the daemon");
        let pid = self.status()["pid"].as_u64().expect("status names the daemon's pid") as u32;
        assert!(pid == self.pid() || parent_of(pid) == Some(self.pid()), "{pid} is no daemon of this test's");
    }

    pub(crate) fn status(&self) -> Value {
        status_as(self.builder.uid.unwrap_or(0), self.point())
    }

    /// The same, if the daemon answers.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let args = [OsString::from("status"), "--json".into(), self.point().into()];
        serde_json::from_str(&cli::kvfs_as(self.builder.uid.unwrap_or(0), args).stdout).ok()
    }

    /// A counter of status.ops.
    #[track_caller]
    pub(crate) fn op(&self, name: &str) -> u64 {
        let status = self.status();
        status["ops"][name].as_u64().unwrap_or_else(|| panic!("status has no ops.{name}: {status:#}"))
    }

    /// All operations the daemon has served.
    pub(crate) fn ops(&self) -> u64 {
        let status = self.status();
        let ops = status["ops"].as_object().expect("status.ops");
        ops.values().filter_map(Value::as_u64).sum()
    }

    /// Says that the test makes the daemon panic this often on purpose.
    pub(crate) fn expect_panics(&self, n: u64) {
        self.panics.store(n, Ordering::Relaxed);
    }

    /// Which backings hold this path.
    pub(crate) fn holders(&self, name: impl AsRef<Path>) -> Vec<usize> {
        holders(self.backings(), name.as_ref())
    }

    /// The one backing that holds this file.
    #[track_caller]
    pub(crate) fn holder(&self, name: impl AsRef<Path>) -> usize {
        let all = self.holders(&name);
        assert_eq!(all.len(), 1, "{} is on backings {all:?}", name.as_ref().display());
        all[0]
    }

    /// What the daemon said, for a message.
    pub(crate) fn story(&self) -> String {
        let read = |p: &Path| fs::read_to_string(p).unwrap_or_default();
        format!("stderr:\n{}\nlog:\n{}", read(&self.said), read(&self.log))
    }

    /// Sends a signal to the daemon.
    pub(crate) fn signal(&self, signal: i32) {
        sys::signal(&self.pidfd, signal).expect("signal the daemon");
    }

    /// Waits for the daemon to end by itself.
    #[track_caller]
    pub(crate) fn ended(self) -> ExitStatus {
        self.ended_and_said().0
    }

    /// The same, with all that it said.
    #[track_caller]
    pub(crate) fn ended_and_said(mut self) -> (ExitStatus, String) {
        let mut child = self.child.take().expect("a running daemon");
        let status = cli::wait(&mut child, ns::HANG).unwrap_or_else(|| {
            self.kill(&mut child);
            panic!("the daemon did not end:\n{}", self.story())
        });
        (status, self.story())
    }

    /// Unmounts and asserts that the daemon ended well; returns what it takes to start again.
    #[track_caller]
    pub(crate) fn stop(self) -> Builder {
        let builder = self.builder.clone();
        self.check_panics();
        let uid = self.builder.uid.unwrap_or(0);
        cli::kvfs_as(uid, [OsString::from("umount"), self.point().into()]).code(0);
        let story = self.story();
        let status = self.ended();
        assert!(status.success(), "the daemon ended with {}:\n{story}", cli::ended(status));
        assert_eq!(ns::mounts_at(&builder.point).len(), 0, "the mount is gone");
        builder
    }

    #[track_caller]
    pub(crate) fn restart(self) -> Mount {
        self.stop().start()
    }

    #[track_caller]
    fn check_panics(&self) {
        assert_eq!(
            self.op("panics"),
            self.panics.load(Ordering::Relaxed),
            "panics in the daemon:\n{}",
            self.story()
        );
    }

    fn kill(&self, child: &mut Child) {
        ns::abort(self.minor);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let unwinding = std::thread::panicking();
        if unwinding {
            eprintln!("the daemon of the failed test said:\n{}", self.story());
        }
        let panics = (!unwinding).then(|| self.op("panics"));
        let _ = sys::signal(&self.pidfd, libc::SIGTERM);
        let limit = if unwinding { Duration::from_secs(10) } else { ns::HANG };
        let ended = cli::wait(&mut child, limit);
        if ended.is_none() {
            self.kill(&mut child);
        }
        // Whatever is left at the mount point by now is a fault of the daemon; it must not outlive the test.
        let left = ns::mounts_at(self.point()).len();
        ns::unmount_below(self.point());
        if !unwinding {
            let story = self.story();
            assert_eq!(panics, Some(self.panics.load(Ordering::Relaxed)), "panics in the daemon:\n{story}");
            let how = ended.map(cli::ended);
            assert_eq!(how.as_deref(), Some("exit status 0"), "how the daemon ended on SIGTERM:\n{story}");
            assert_eq!(left, 0, "the daemon ended and left its mount behind:\n{story}");
        }
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may have anything in it: state and parent.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The parsed `kvfs status --json` of a mount point.
#[track_caller]
pub(crate) fn status_of(point: &Path) -> Value {
    status_as(0, point)
}

#[track_caller]
fn status_as(uid: u32, point: &Path) -> Value {
    let out = cli::kvfs_as(uid, [OsString::from("status"), "--json".into(), point.into()]).code(0);
    serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("status is not JSON ({e}): {}", out.stdout))
}

/// Which of these directories hold `name`.
pub(crate) fn holders(backings: &[PathBuf], name: &Path) -> Vec<usize> {
    (0..backings.len()).filter(|i| sys::lstat(backings[*i].join(name)).is_ok()).collect()
}
