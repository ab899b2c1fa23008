//! What the daemon can still do.

#[cfg(feature = "fault-points")]
use crate::common::Errno;
use crate::common::user::NOBODY;
use crate::common::{Lab, Mount, sys};

/// Lines of the status of each of the daemon's threads.
fn of_threads(mount: &Mount, line: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap();
    let texts = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    let mut values: Vec<String> = texts
        .map(|text| {
            let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
            found.unwrap_or_default().trim().to_owned()
        })
        .collect();
    values.sort();
    values.dedup();
    values
}

/// Bits of include/uapi/linux/capability.h: CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID IPC_LOCK SYS_PTRACE
/// SYS_ADMIN MKNOD LEASE SETFCAP.
const KEPT: [u32; 12] = [0, 1, 3, 4, 6, 7, 14, 19, 21, 27, 28, 31];
const FSETID: u64 = 1 << 4;

#[test]
fn root_keeps_what_it_needs_and_nothing_else() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(2)).start();
    std::fs::write(mount.path("f"), "content").unwrap();
    let kept: u64 = KEPT.iter().map(|bit| 1u64 << bit).sum();
    let hex = |bits: u64| vec![format!("{bits:016x}")];
    let ours = {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("CapPrm:")).unwrap().trim().to_owned();
        u64::from_str_radix(&line, 16).unwrap()
    };
    assert_eq!(of_threads(&mount, "CapEff"), hex(kept & ours & !FSETID));
    assert_eq!(of_threads(&mount, "CapPrm"), hex(kept & ours));
    assert_eq!(of_threads(&mount, "CapBnd"), hex(kept & ours));
    assert_eq!(of_threads(&mount, "CapInh"), hex(0));
    assert_eq!(of_threads(&mount, "NoNewPrivs"), ["1"]);
    assert_eq!(of_threads(&mount, "Seccomp"), ["2"]);
    assert_eq!(mount.status()["sandbox"], "on");
    #[cfg(feature = "fault-points")]
    assert_eq!(
        sys::lstat(mount.path(".kvfs-fault-sandbox")).map(drop),
        Err(Errno::EPERM),
        "{}",
        mount.story()
    );
}

#[test]
fn without_a_sandbox_it_keeps_everything() {
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).arg("--sandbox").arg("off").start();
    assert_eq!(of_threads(&mount, "NoNewPrivs"), ["0"]);
    assert_eq!(mount.status()["sandbox"], "off (--sandbox off)");
    #[cfg(feature = "fault-points")]
    assert_eq!(sys::lstat(mount.path(".kvfs-fault-sandbox")).map(drop), Err(Errno::ENOTCONN));
}

/// Processes whose parent is this one.
fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let texts = list.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok());
    texts.flat_map(|text| text.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<_>>()).collect()
}

#[test]
fn an_ordinary_users_daemon_has_one_and_can_be_unmounted_by_a_signal() {
    let lab = Lab::new();
    lab.fuse_for_everyone();
    let (backing, point) = (lab.dir("theirs"), lab.dir("mnt"));
    for dir in [&backing, &point] {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mount = lab.mount(&[backing]).user(NOBODY).start();
    assert_eq!(of_threads(&mount, "CapEff"), ["0000000000000000"]);
    assert_eq!(of_threads(&mount, "NoNewPrivs"), ["1"]);
    assert_eq!(of_threads(&mount, "Seccomp"), ["2"]);
    assert_eq!(mount.status()["sandbox"], "on");
    let is_helper = |pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("unmount-helper")
    };
    let helpers = children(mount.pid()).into_iter().filter(is_helper);
    let helpers: Vec<_> = helpers.map(|pid| sys::pidfd(pid).unwrap()).collect();
    assert_eq!(helpers.len(), 1, "the one that unmounts");
    // A busy mount stays, and says so.
    let busy =
        crate::common::user::as_user(NOBODY, NOBODY, || sys::open(mount.point(), libc::O_RDONLY, 0)).unwrap();
    mount.signal(libc::SIGTERM);
    while !mount.story().contains("not unmounted on this signal") {
        std::thread::yield_now();
    }
    drop(busy);
    mount.signal(libc::SIGTERM);
    assert!(mount.ended().success());
    for helper in helpers {
        assert!(crate::common::cli::wait_fd(&helper, crate::common::ns::HANG), "it ends with its daemon");
    }
    assert!(crate::common::ns::mounts_at(&point).is_empty());
}

/// As in a container whose rules don't let it add its own.
#[test]
fn where_filters_are_refused_the_mount_goes_on_without() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let lab = Lab::new();
    let rules = [(libc::SYS_seccomp, vec![])].into_iter().collect();
    let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(libc::EACCES as u32));
    let filter = SeccompFilter::new(rules, allow, refuse, std::env::consts::ARCH.try_into().unwrap());
    let filter = BpfProgram::try_from(filter.unwrap()).unwrap();
    // For this thread, and what it starts.
    apply_filter(&filter).unwrap();
    let mount = lab.mount(&lab.dirs(1)).start();
    std::fs::write(mount.path("f"), "content").unwrap();
    let told = mount.status()["sandbox"].as_str().unwrap().to_owned();
    assert!(told.starts_with("off (the kernel refuses"), "{told}");
    assert!(mount.story().contains("going on without a sandbox"), "{}", mount.story());
}
