//! Each placement policy, by its name on the command line, places the files of a real mount as it says.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::lab::{names, run};
use common::{FsKind, Lab, Mount, pattern, ranked, sys};

fn put(mount: &Mount, name: &str) {
    let path = mount.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, name).unwrap();
}

/// The words of `user.kvfs.placement`.
fn why(mount: &Mount, name: &str) -> String {
    String::from_utf8(sys::getxattr(mount.path(name), "user.kvfs.placement").unwrap()).unwrap()
}

/// How many of these files each backing holds.
fn counts(mount: &Mount, files: &[String]) -> Vec<usize> {
    let mut counts = vec![0; mount.backings().len()];
    files.iter().for_each(|name| counts[mount.holder(name)] += 1);
    counts
}

fn start(lab: &Lab, backings: &[PathBuf], policy: &str) -> Mount {
    let mount = lab.mount(backings).arg("--placement").arg(policy).arg("--min-free").arg("2M").start();
    assert_eq!(mount.status()["placement"].as_str(), Some(policy));
    mount
}

#[test]
fn round_robin_gives_each_backing_its_turn() {
    let lab = Lab::new();
    let mount = start(&lab, &lab.dirs(4), "round-robin");
    for i in 0..40 {
        let name = if i % 3 == 0 { format!("some/dir{}/file{i}", i % 5) } else { ranked(3, i) };
        put(&mount, &name);
        assert_eq!(mount.holder(&name), i % 4, "{name}");
    }
    assert_eq!(why(&mount, &ranked(3, 2)), "round-robin: its turn = backing 2");
    // What isn't a new file takes no turn.
    fs::write(mount.path(ranked(3, 1)), "again").unwrap();
    fs::read(mount.path(ranked(3, 1))).unwrap();
    sys::rename(mount.path(ranked(3, 1)), mount.path("renamed")).unwrap();
    put(&mount, "next");
    assert_eq!(mount.holder("next"), 0);
    let again = mount.restart();
    assert_eq!(
        why(&again, &ranked(3, 2)),
        "found there when the mount started (round-robin: each new file to the next backing, whatever its name)"
    );
}

#[test]
fn round_robin_keeps_the_files_of_a_key_together() {
    let lab = Lab::new();
    let mount = start(&lab, &lab.dirs(2), "round-robin");
    let mut keys = Vec::new();
    for i in 0..20 {
        let key = format!("73/12/m%408%403%40{i:x}%40half.kvcache.safetensors");
        for part in ["", ".metadata"] {
            let temporary = format!("{key}{part}.tmp{i:08x}");
            put(&mount, &temporary);
            sys::rename(mount.path(temporary), mount.path(format!("{key}{part}"))).unwrap();
        }
        assert_eq!(mount.holder(&key), mount.holder(format!("{key}.metadata")), "{key}");
        keys.push(key);
    }
    assert_eq!(counts(&mount, &keys), [10, 10]);
}

#[test]
fn round_robin_passes_over_a_full_backing_fairly() {
    let lab = Lab::new();
    let volumes: Vec<PathBuf> = (0..3).map(|_| lab.volume(FsKind::Tmpfs, 16)).collect();
    fs::write(volumes[1].join("filler"), pattern(1, 15 << 20)).unwrap();
    let backings: Vec<PathBuf> = volumes.iter().map(|volume| volume.join("kv")).collect();
    let mount = start(&lab, &backings, "round-robin");
    let files: Vec<String> = (0..30).map(|i| format!("file{i}")).collect();
    files.iter().for_each(|name| put(&mount, name));
    assert_eq!(counts(&mount, &files), [15, 0, 15]);
}

#[test]
fn most_free_prefers_the_emptier_drive_and_levels() {
    let lab = Lab::new();
    let volumes: Vec<PathBuf> = (0..3).map(|_| lab.volume(FsKind::Ext4, 96)).collect();
    for (volume, mib) in volumes.iter().zip([60, 1, 24]) {
        let filler = sys::create(volume.join("filler")).unwrap();
        sys::fallocate(&filler, 0, 0, mib << 20).unwrap();
    }
    let backings: Vec<PathBuf> = volumes.iter().map(|volume| volume.join("kv")).collect();
    let mount = start(&lab, &backings, "most-free");
    let store = |i: usize| {
        let fd = sys::create(mount.path(ranked(0, i))).unwrap();
        assert_eq!(sys::write(&fd, &pattern(i as u64, 1 << 20)), Ok(1 << 20));
        sys::fsync(&fd).unwrap();
    };
    (0..18).for_each(store);
    let on = || backings.iter().map(|backing| names(backing).len()).collect::<Vec<_>>();
    assert_eq!(on(), [0, 18, 0], "23 MiB more than the next");
    let words = why(&mount, &ranked(0, 17));
    assert!(
        words.starts_with("most-free: the most room: ") && words.ends_with("MiB free = backing 1"),
        "{words}"
    );
    (18..52).for_each(store);
    let on = on();
    assert!(on[0] == 0 && on[1] > 24 && on[2] > 7, "level, and both in use: {on:?}");
    assert!(on[1].abs_diff(on[2] + 23) <= 4, "level: {on:?}");
}

#[test]
fn most_free_shares_a_burst_among_equals() {
    let lab = Lab::new();
    let backings: Vec<PathBuf> = (0..3).map(|_| lab.volume(FsKind::Tmpfs, 64)).collect();
    let mount = start(&lab, &backings, "most-free");
    let files: Vec<String> = (0..300).map(|i| format!("file{i}")).collect();
    std::thread::scope(|scope| {
        for part in files.chunks(75) {
            let mount = &mount;
            scope.spawn(move || part.iter().for_each(|name| put(mount, name)));
        }
    });
    let counts = counts(&mount, &files);
    assert!(counts.iter().all(|n| (60..=140).contains(n)), "{counts:?}");
}

/// Where each of some names goes, by the path of the backing.
fn spread(mount: &Mount) -> BTreeMap<String, PathBuf> {
    let names = (0..60).map(|i| if i % 2 == 0 { format!("chunk-{i}") } else { ranked(i % 8, i) });
    let place = |name: String| {
        put(mount, &name);
        let at = mount.backings()[mount.holder(&name)].clone();
        (name, at)
    };
    names.map(place).collect()
}

#[test]
fn hash_is_the_same_in_another_order_and_nearest_without_anything_near_is_hash() {
    let lab = Lab::new();
    // Nothing is near to these: they're nowhere.
    let b: Vec<PathBuf> = (0..4).map(|_| lab.volume(FsKind::Tmpfs, 64)).collect();
    let mount = start(&lab, &b, "hash");
    let before = spread(&mount);
    for backing in &b {
        assert!(before.values().filter(|at| *at == backing).count() > 4, "{before:#?}");
    }
    let shuffled = [2, 0, 3, 1].map(|i: usize| b[i].clone());
    drop(mount);
    for policy in ["hash", "nearest"] {
        let mount = start(&lab, &shuffled, policy);
        for (name, at) in &before {
            assert_eq!(fs::read_to_string(mount.path(name)).unwrap(), *name, "found where it is");
            assert_eq!(&mount.backings()[mount.holder(name)], at);
            sys::unlink(mount.path(name)).unwrap();
        }
        assert_eq!(spread(&mount), before, "{policy}");
        let words = why(&mount, "chunk-0");
        let wanted = if policy == "hash" {
            "hash: hash of the name = backing "
        } else {
            "nearest: which is nearest isn't known; hash of the name = backing "
        };
        assert!(words.starts_with(wanted), "{words}");
    }
}

/// A sysfs in which the drives under test are at places of a real server, laid over this one's.
struct Server {
    root: PathBuf,
}

impl Server {
    /// `own` is the processor that the test is going to be bound to; it's the second node's.
    fn new(lab: &Lab, own: usize) -> Server {
        let server = Server { root: lab.dir("server") };
        let cpus = [format!("{}-{}", own + 1, own + 64), own.to_string()];
        for (node, list) in cpus.iter().enumerate() {
            server.write(&format!("nodes/node{node}/cpulist"), list);
        }
        server
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A PCI device at the end of this way.
    fn device(&self, way: &str, node: u32) {
        self.write(&format!("devices/{way}/numa_node"), &node.to_string());
    }

    /// A GPU of NVIDIA, as sysfs and as its driver tell of it.
    fn gpu(&self, way: &str, minor: u32, node: u32) {
        let address = Path::new(way).file_name().unwrap().to_str().unwrap();
        self.device(way, node);
        self.write(&format!("devices/{way}/vendor"), "0x10de\n");
        self.write(&format!("devices/{way}/class"), "0x030200\n");
        self.link(&format!("pci/{address}"), way);
        let about = format!(
            "Model: \t test\nGPU UUID: \t GPU-{minor}\nBus Location: \t {address}\nDevice Minor: \t {minor}\n"
        );
        self.write(&format!("driver/nvidia/gpus/{address}/information"), &about);
    }

    /// The drive that holds this file system.
    fn drive(&self, volume: &Path, way: &str, node: u32) {
        self.device(way, node);
        let device = sys::stat(volume).unwrap().st_dev;
        assert_ne!(libc::major(device), 0, "a real block device");
        self.link(&format!("block/{}:{}", libc::major(device), libc::minor(device)), way);
    }

    fn link(&self, path: &str, way: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.root.join("devices").join(way), path).unwrap();
    }

    /// Lays it over this machine's, for this test and what it starts.
    fn take_over(&self) {
        for (what, place) in [
            ("pci", "/sys/bus/pci/devices"),
            ("block", "/sys/dev/block"),
            ("nodes", "/sys/devices/system/node"),
            ("driver", "/proc/driver"),
        ] {
            run(Command::new("mount").arg("--bind").arg(self.root.join(what)).arg(place));
        }
    }
}

#[test]
fn nearest_goes_by_the_gpu_and_else_by_the_processor() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let lab = Lab::new();
    let allowed = sched_getaffinity(None).unwrap();
    let own = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    let volumes: Vec<PathBuf> = (0..4).map(|_| lab.volume(FsKind::Ext4, 32)).collect();
    let server = Server::new(&lab, own);
    // Addresses before all real ones: they have the numbers 0 and 1 whatever else there is.
    server.gpu("pci0000:00/0000:00:00.1", 0, 0);
    server.gpu("pci0000:80/0000:00:00.2", 1, 1);
    server.drive(&volumes[0], "pci0000:80/0000:80:01.0/0000:81:00.0", 1);
    server.drive(&volumes[1], "pci0000:00/0000:00:01.0/0000:01:00.0", 0);
    server.drive(&volumes[2], "pci0000:80/0000:80:02.0/0000:82:00.0", 1);
    server.drive(&volumes[3], "pci0000:40/0000:40:01.0/0000:41:00.0", 0);
    server.take_over();
    let mount = start(&lab, &volumes, "nearest");
    let store = |rank: usize| -> Vec<String> {
        let files: Vec<String> = (0..40).map(|i| ranked(rank, i)).collect();
        files.iter().for_each(|name| put(&mount, name));
        files
    };
    assert_eq!(counts(&mount, &store(0)), [0, 40, 0, 0]);
    let words = why(&mount, &ranked(0, 1));
    assert_eq!(words, "nearest: same PCIe host bridge as GPU 0 (0000:00:00.1) = backing 1");
    let shares = counts(&mount, &store(1));
    assert!(shares[0] > 8 && shares[2] > 8 && shares[1] + shares[3] == 0, "two are equally near: {shares:?}");

    // There's no GPU 5. This thread may run anywhere, and so the name is hashed, unless it has one processor alone.
    if allowed.count() > 1 {
        let shares = counts(&mount, &store(5));
        assert!(shares.iter().all(|n| *n > 2), "{shares:?}");
    }
    let mut only = CpuSet::new();
    only.set(own);
    sched_setaffinity(None, &only).unwrap();
    let shares = counts(&mount, &store(6));
    assert!(shares[0] > 8 && shares[2] > 8 && shares[1] + shares[3] == 0, "the node's drives: {shares:?}");
    let words = why(&mount, &ranked(6, 1));
    assert!(words.contains("same NUMA node as the process, which is bound to node 1"), "{words}");
}
