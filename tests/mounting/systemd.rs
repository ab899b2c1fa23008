//! The unit, as far as it can be tried without a systemd that runs: its words to systemd, what systemd says of it, and that
//! nothing in it keeps the mount from everybody else.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::system::tool;
use crate::common::cli::{self, BINARY};
use crate::common::{Lab, Mount, ns, sys};

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd")
}

fn unit() -> String {
    std::fs::read_to_string(packaging().join("kvfs@.service")).unwrap()
}

/// Name and value of each of the unit's settings.
fn settings() -> Vec<(String, String)> {
    let unit = unit();
    let pairs = unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn systemd_takes_the_unit() {
    let lab = Lab::new();
    let place = lab.dir("units");
    // Its executable has to be there, and its manual need not.
    std::fs::write(place.join("kvfs@kv.service"), unit().replace("/usr/bin/kvfs", BINARY)).unwrap();
    let dropins = lab.dir("units/kvfs@kv.service.d");
    let example = packaging().join("kvfs@.service.d/example.conf");
    std::fs::copy(example, dropins.join("example.conf")).unwrap();
    let path = place.join("kvfs@kv.service");
    let outcome = tool(&["systemd-analyze", "verify", "--man=no", path.to_str().unwrap()]).code(0);
    // Of systemd 254; one before says that it goes on without.
    let said = outcome.stderr.lines().filter(|line| !line.contains("'RestartMode'"));
    assert_eq!(said.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn nothing_in_it_makes_a_mount_namespace() {
    // systemd.exec(5): what comes with a mount namespace, in which the mount would be nobody else's.
    let private = [
        "ProtectSystem",
        "ProtectHome",
        "ProtectProc",
        "ProcSubset",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectHostname",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateNetwork",
        "PrivateIPC",
        "PrivateUsers",
        "PrivateMounts",
        "MountFlags",
        "MountAPIVFS",
        "BindPaths",
        "BindReadOnlyPaths",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "TemporaryFileSystem",
        "RootDirectory",
        "RootImage",
        "ExtensionImages",
        "MountImages",
        "DynamicUser",
        "NetworkNamespacePath",
        "LogNamespace",
        "LoadCredential",
        "SetCredential",
        "StateDirectory",
        "RuntimeDirectory",
        "CacheDirectory",
    ];
    let named: BTreeSet<String> = settings().into_iter().map(|(name, _)| name).collect();
    for name in private {
        assert!(!named.contains(name), "{name} in the unit");
    }
    // What kvfs would miss.
    for name in ["RestrictSUIDSGID", "MemoryDenyWriteExecute", "User", "SystemCallFilter"] {
        assert!(!named.contains(name), "{name} in the unit");
    }
}

/// With the capabilities that the unit leaves it, and without new ones, it does all that it does otherwise.
#[test]
fn the_units_capabilities_suffice() {
    let lab = Lab::new();
    let all = settings();
    // Beyond the limit that systemd gives it the daemon can't go.
    assert!(all.contains(&("LimitNOFILE".into(), "1048576".into())));
    let (_, bounds) = all.iter().find(|(name, _)| name == "CapabilityBoundingSet").unwrap();
    let plus =
        bounds.split_whitespace().map(|cap| format!("+{}", cap.trim_start_matches("CAP_").to_lowercase()));
    let set = ["-all".to_owned()].into_iter().chain(plus).collect::<Vec<_>>().join(",");
    let under = ["setpriv", "--no-new-privs", "--bounding-set", &set].map(Into::into);
    let compare = |mount: Mount| {
        let status = mount.status();
        std::fs::write(mount.path("f"), "there").unwrap();
        sys::chown(mount.path("f"), 1, 1).unwrap();
        sys::mkdir(mount.path("d"), 0o775).unwrap();
        sys::chmod(mount.path("d"), 0o2775).unwrap();
        assert_eq!(sys::stat(mount.path("d")).unwrap().st_mode & 0o7777, 0o2775);
        std::fs::remove_dir(mount.path("d")).unwrap();
        (status["passthrough"].clone(), status["sandbox"].clone(), status["io_engine"].clone())
    };
    let backings = lab.dirs(2);
    let with = compare(lab.mount(&backings).under(under).start());
    assert_eq!(with, compare(lab.mount(&backings).start()));
}

/// A socket for the words to systemd.
struct Listener {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Listener {
    fn new(lab: &Lab) -> Listener {
        let path = lab.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(ns::HANG)).unwrap();
        Listener { socket, path }
    }

    /// The next word; none if there's none for so long.
    fn hear(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let n = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..n]).into_owned())
    }

    /// Forgets what was said so far.
    fn forget(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.hear().is_some() {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

#[test]
fn systemd_hears_that_the_daemon_lives() {
    for supervise in ["off", "auto"] {
        let lab = Lab::new();
        let listener = Listener::new(&lab);
        let mount = lab
            .mount(&lab.dirs(1))
            .arg("--supervise")
            .arg(supervise)
            .env("KVFS_TEST_DIE_WITH_PARENT", "1")
            .env("NOTIFY_SOCKET", listener.path.clone())
            .env("WATCHDOG_USEC", "100000");
        let mount = mount.start();
        // auto: systemd keeps nothing for it here, so a parent does.
        let by = if supervise == "off" { "nobody" } else { "its parent process" };
        assert_eq!(mount.status()["supervised"]["by"], by);
        let mut words = BTreeSet::new();
        while words.len() < 2 {
            words.insert(listener.hear().expect("it says nothing"));
        }
        assert_eq!(words, BTreeSet::from(["READY=1".into(), "WATCHDOG=1".into()]));
        // One that doesn't run says nothing.
        let pid = mount.status()["pid"].as_u64().unwrap() as u32;
        let daemon = sys::pidfd(pid).unwrap();
        sys::signal(&daemon, libc::SIGSTOP).unwrap();
        while !has_stopped(pid) {
            sys::tick();
        }
        listener.forget();
        listener.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let said = listener.hear();
        sys::signal(&daemon, libc::SIGCONT).unwrap();
        assert_eq!(said, None, "a daemon that's stopped");
        listener.socket.set_read_timeout(Some(ns::HANG)).unwrap();
        assert_eq!(listener.hear().as_deref(), Some("WATCHDOG=1"));
    }
}

/// Whether all threads of a process have stopped.
fn has_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    stats.all(|stat| stat.rsplit_once(") ").unwrap().1.starts_with('T'))
}

/// What the unit starts, as it starts it, and how it ends it.
#[test]
fn the_units_commands_mount_and_unmount() {
    let lab = Lab::new();
    let listener = Listener::new(&lab);
    let (point, config) = (lab.dir("mnt"), lab.path("kv.toml"));
    std::fs::write(&config, format!("mount-point = {point:?}\nbacking = {:?}", lab.dirs(2))).unwrap();
    let commands = |setting: &str| -> Vec<Command> {
        let all = settings().into_iter().filter(|(name, _)| name == setting);
        let command = |(_, line): (String, String)| {
            let line = line.replace("/etc/kvfs/%i.toml", config.to_str().unwrap());
            let mut words = line.trim_start_matches('-').split(' ');
            assert_eq!(words.next(), Some("/usr/bin/kvfs"));
            let mut command = Command::new(BINARY);
            command.args(words);
            command
        };
        all.map(command).collect()
    };
    let mut start = commands("ExecStart").remove(0);
    start.env("NOTIFY_SOCKET", &listener.path).env("KVFS_TEST_DIE_WITH_PARENT", "1");
    start.stdin(std::process::Stdio::null()).stderr(std::fs::File::create(lab.path("stderr")).unwrap());
    for in_use in [false, true] {
        sys::die_with_parent(&mut start);
        let mut main = start.spawn().unwrap();
        let pidfd = sys::pidfd(main.id()).unwrap();
        let is_there = || !ns::mounts_at(&point).is_empty();
        assert!(ns::wait_mounts(Some(pidfd.as_fd()), is_there), "it doesn't mount");
        assert_eq!(listener.hear().as_deref(), Some("READY=1"));
        let file = in_use.then(|| sys::create(point.join("f")).unwrap());
        let statuses: Vec<_> =
            commands("ExecStop").into_iter().map(|c| cli::finish(c).status.code()).collect();
        let wanted = if in_use { [Some(51), Some(0)] } else { [Some(0), Some(50)] };
        assert_eq!(statuses, wanted);
        assert!(!is_there());
        if let Some(file) = file {
            assert_eq!(sys::write(&file, b"goes on"), Ok(7));
        }
        let ended = cli::wait(&mut main, ns::HANG);
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    }
}
