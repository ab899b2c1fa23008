//! Where requests can't come by io_uring: a sentence that says why and what to do, or the device instead.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::common::enabled::Uring;
use crate::common::lab::everything;
use crate::common::{Lab, Outcome, kvfs, ns, sys};

/// The status of a mount that says that requests can't come so.
const REFUSED: i32 = 34;

fn mount(lab: &Lab, words: &[&str]) -> Outcome {
    let (point, backing, log) = (lab.dir("mnt"), lab.dir("a"), lab.path("log"));
    let [point, backing, log] = [&point, &backing, &log].map(|path| path.to_str().unwrap());
    kvfs(["mount", point, "--backing", backing, "--log", log].iter().chain(words))
}

#[track_caller]
fn refused(lab: &Lab, words: &[&str], naming: &[&str]) {
    lab.dir("mnt");
    let _ = (lab.dir("a"), std::fs::write(lab.path("log"), ""));
    let (before, mounts) = (everything(&lab.root()), ns::mounts().len());
    mount(lab, words).fault(REFUSED, naming);
    assert_eq!((everything(&lab.root()), ns::mounts().len()), (before, mounts), "nothing is left behind");
}

/// With `auto` the device is taken, and status says why.
#[track_caller]
fn taken_instead(lab: &Lab, naming: &str) {
    let mount = lab.mount(&lab.dirs(1)).transport("auto").start();
    std::fs::write(mount.path("f"), "content").unwrap();
    let status = mount.status();
    assert_eq!(status["transport"], "/dev/fuse");
    assert!(status["transport_why"].as_str().unwrap().contains(naming), "{status:#}");
    let told = kvfs(["status".as_ref(), mount.point().as_os_str()]).code(0).stdout;
    assert!(told.contains("(not io_uring: "), "{told}");
}

#[test]
fn a_mount_that_is_to_outlive_its_daemon() {
    let _enabled = Uring::enabled();
    let lab = Lab::new();
    refused(&lab, &["--transport", "io-uring", "--supervise", "on"], &["io_uring", "--supervise off"]);
    // In the background there is a parent unless it's said that there isn't.
    refused(&lab, &["--transport=io-uring"], &["can't send requests again", "--supervise off"]);
    mount(&lab, &["--transport=io-uring", "--supervise=off"]).code(0);
    let upgrade = kvfs(["upgrade".as_ref(), lab.path("mnt").as_os_str()]);
    assert_ne!(upgrade.status.code(), Some(0));
    assert!(upgrade.stderr.contains("--supervise"), "{}", upgrade.stderr);
    kvfs(["umount".as_ref(), lab.path("mnt").as_os_str()]).code(0);
}

#[test]
fn a_supervised_mount_takes_the_device() {
    let _enabled = Uring::enabled();
    let lab = Lab::new();
    let mount = lab.mount(&lab.dirs(1)).supervised().transport("auto").start();
    let status = mount.status();
    assert_eq!(status["transport"], "/dev/fuse");
    assert!(status["transport_why"].as_str().unwrap().contains("--supervise off"), "{status:#}");
    let mount = mount.stop().transport("dev-fuse").start();
    assert!(mount.status()["transport_why"].is_null(), "nobody asked for another");
}

#[test]
fn a_kernel_that_is_told_not_to() {
    let _disabled = Uring::disabled();
    let lab = Lab::new();
    let naming = ["/sys/module/fuse/parameters/enable_uring", "fuse.enable_uring=1"];
    refused(&lab, &["--transport=io-uring", "--supervise=off"], &naming);
    refused(&lab, &["--transport=io-uring", "-f"], &naming);
    taken_instead(&lab, "enable_uring");
}

/// As in a container whose rules know no io_uring.
#[test]
fn where_rings_are_forbidden() {
    let _enabled = Uring::enabled();
    let lab = Lab::new();
    let rules = [(libc::SYS_io_uring_setup, vec![])].into_iter().collect();
    let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let filter = SeccompFilter::new(rules, allow, refuse, std::env::consts::ARCH.try_into().unwrap());
    // For this thread, and what it starts.
    apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
    refused(&lab, &["--transport=io-uring", "--supervise=off"], &["a ring can't be set up", "kvfs doctor"]);
    taken_instead(&lab, "a ring can't be set up");
}

#[test]
fn other_words_are_none() {
    let lab = Lab::new();
    mount(&lab, &["--transport=carrier-pigeon"]).fault(41, &["carrier-pigeon"]);
    assert!(sys::lstat(lab.path("a/.kvfs-backing")).is_err());
}
