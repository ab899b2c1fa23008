//! A machine made of directories and links, as a server's sysfs shows it.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

/// The disks: name, minor number, where it is below `devices`, and the NUMA node that the PCI device above says.
const DISKS: &[(&str, u32, &str, i32)] = &[
    ("nvme0n1", 1, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0/nvme/nvme0/nvme0n1", 0),
    ("nvme1n1", 2, "pci0000:00/0000:00:03.0/0000:06:00.0/nvme/nvme1/nvme1n1", 0),
    ("nvme2n1", 3, "pci0000:40/0000:40:01.0/0000:41:00.0/nvme/nvme2/nvme2n1", 0),
    ("nvme3n1", 4, "pci0000:80/0000:80:01.0/0000:81:00.0/nvme/nvme3/nvme3n1", 1),
    ("nvme4n1", 5, "pci0000:c0/0000:c0:01.0/0000:c1:00.0/nvme/nvme4/nvme4n1", -1),
    ("nvme5n1", 6, "pci0000:00/0000:00:01.0/0000:01:00.1/nvme/nvme5/nvme5n1", 0),
    // Behind Intel's VMD, which shows the disks in a domain of its own.
    ("nvme8n1", 9, "pci0000:00/0000:00:05.5/pci10000:00/10000:00:02.0/10000:01:00.0/nvme/nvme8/nvme8n1", 0),
    ("loop0", 20, "virtual/block/loop0", -1),
    ("md0", 21, "virtual/block/md0", -1),
    ("dm-0", 22, "virtual/block/dm-0", -1),
    ("nvme6n1", 23, "virtual/nvme-subsystem/nvme-subsys6/nvme6n1", -1),
    ("md1", 24, "virtual/block/md1", -1),
    // A disk over the network.
    ("nvme9n1", 25, "virtual/nvme-fabrics/ctl/nvme9/nvme9n1", -1),
];

/// Partitions: disk, name, minor number.
const PARTITIONS: &[(&str, &str, u32)] =
    &[("nvme0n1", "nvme0n1p1", 51), ("nvme1n1", "nvme1n1p1", 52), ("md0", "md0p1", 53)];

const MAJOR: u32 = 259;

/// What's at the top of the tree, to be compared with disks: a GPU of node 0, and one that's in no switch on 1.
const GPUS: &[(&str, i32)] = &[
    ("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0", 0),
    ("pci0000:80/0000:80:05.0/0000:85:00.0", 1),
];

/// The device number of a disk or partition, or one that no disk has.
pub(in crate::placement) fn device(name: &str) -> u64 {
    let disks = DISKS.iter().map(|disk| (disk.0, disk.1));
    let partitions = PARTITIONS.iter().map(|partition| (partition.1, partition.2));
    let minor = disks.chain(partitions).find(|(known, _)| *known == name).map_or(99, |(_, minor)| minor);
    libc::makedev(MAJOR, minor)
}

/// All names of disks and partitions.
pub(in crate::placement) fn all_names() -> Vec<&'static str> {
    DISKS.iter().map(|disk| disk.0).chain(PARTITIONS.iter().map(|partition| partition.1)).collect()
}

pub(in crate::placement) struct Machine(TempDir);

impl Machine {
    pub(in crate::placement) fn new() -> Self {
        let machine = Self(TempDir::new().expect("a temporary directory"));
        for (path, node) in GPUS {
            machine.pci_devices(path, *node);
        }
        for (name, minor, path, node) in DISKS {
            machine.pci_devices(path, *node);
            machine.make(path);
            machine.link(&format!("dev/block/{MAJOR}:{minor}"), &format!("devices/{path}"));
            machine.link(&format!("class/block/{name}"), &format!("devices/{path}"));
        }
        for (disk, name, minor) in PARTITIONS {
            let path = format!("{}/{name}", DISKS.iter().find(|d| d.0 == *disk).expect("a disk").2);
            machine.make(&path);
            machine.write(&format!("devices/{path}/partition"), "1");
            machine.link(&format!("dev/block/{MAJOR}:{minor}"), &format!("devices/{path}"));
            machine.link(&format!("class/block/{name}"), &format!("devices/{path}"));
        }
        for (device, parts) in
            [("md0", &["nvme0n1", "nvme3n1"][..]), ("dm-0", &["nvme1n1p1"]), ("md1", &["md0", "loop0"])]
        {
            for part in parts {
                let slave = format!("devices/virtual/block/{device}/slaves/{part}");
                machine.link(&slave, &format!("class/block/{part}"));
            }
        }
        // Two controllers of one disk: the near one is listed last.
        let controllers = [
            ("nvme6", "pci0000:80/0000:80:02.0/0000:82:00.0/nvme/nvme6", 1),
            ("nvme7", "pci0000:00/0000:00:04.0/0000:07:00.0/nvme/nvme7", 0),
        ];
        for (name, path, node) in controllers {
            machine.pci_devices(path, node);
            machine.make(path);
            let link = format!("devices/virtual/nvme-subsystem/nvme-subsys6/{name}");
            machine.link(&link, &format!("devices/{path}"));
        }
        machine.nodes(["0-1", "2-3"]);
        machine
    }

    /// What the policies know of it.
    pub(in crate::placement) fn topology(&self) -> Topology {
        Topology::new(self.0.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        path
    }

    fn make(&self, path: &str) {
        fs::create_dir_all(self.path(&format!("devices/{path}"))).expect("directories");
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).expect("a file");
    }

    fn link(&self, path: &str, to: &str) {
        symlink(self.0.path().join(to), self.path(path)).expect("a link");
    }

    /// The PCI devices on that way, all with this node.
    fn pci_devices(&self, path: &str, node: i32) {
        let mut so_far = PathBuf::new();
        for name in Path::new(path) {
            so_far.push(name);
            let name = name.to_str().expect("plain text");
            if name.parse::<PciAddress>().is_ok() {
                let device = format!("devices/{}", so_far.display());
                self.write(&format!("{device}/numa_node"), &format!("{node}\n"));
                let link = format!("bus/pci/devices/{name}");
                if self.path(&link).symlink_metadata().is_err() {
                    self.link(&link, &device);
                }
            }
        }
    }

    fn nodes(&self, processors: [&str; 2]) {
        // A GPU's memory is a node too, without processors.
        for (node, list) in processors.into_iter().chain([""]).enumerate() {
            self.write(&format!("devices/system/node/node{node}/cpulist"), &format!("{list}\n"));
        }
        self.write("devices/system/node/possible", "0-2\n");
    }

    /// Makes the machine one whose node `node` has the processor that this thread runs on from now on.
    pub(in crate::placement) fn bind_this_thread_to(&mut self, node: usize) {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let allowed = sched_getaffinity(None).expect("allowed processors");
        let own = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).expect("some processor");
        let mut only = CpuSet::new();
        only.set(own);
        sched_setaffinity(None, &only).expect("bind to a processor");
        let others = format!("{}-{}", own + 1, own + 64);
        let own = own.to_string();
        self.nodes(if node == 0 { [&own, &others] } else { [&others, &own] });
    }
}

fn gpu(pci: &str) -> Origin {
    Origin::Gpu { number: 0, pci: pci.parse().expect("an address") }
}

#[test]
fn distances_from_a_gpu() {
    let machine = Machine::new();
    let topology = machine.topology();
    let near = gpu("0000:04:00.0");
    for (name, wanted) in [
        ("nvme0n1", Distance::Switch),
        ("nvme0n1p1", Distance::Switch),
        ("nvme5n1", Distance::RootPort),
        ("nvme1n1", Distance::HostBridge),
        ("dm-0", Distance::HostBridge),
        ("nvme8n1", Distance::HostBridge),
        ("nvme2n1", Distance::Node),
        ("nvme3n1", Distance::OtherNode),
        // The farthest disk of a RAID, the nearest controller of a disk.
        ("md0", Distance::OtherNode),
        ("md0p1", Distance::OtherNode),
        ("nvme6n1", Distance::HostBridge),
        // No node, no place at all, no such device.
        ("nvme4n1", Distance::Unknown),
        ("loop0", Distance::Unknown),
        ("md1", Distance::Unknown),
        ("nvme9n1", Distance::Unknown),
        ("gone", Distance::Unknown),
    ] {
        assert_eq!(topology.distance(near, device(name), Uuid::nil()), wanted, "{name}");
    }
    let far = gpu("0000:85:00.0");
    for (name, wanted) in [
        ("nvme3n1", Distance::HostBridge),
        ("nvme6n1", Distance::HostBridge),
        ("nvme0n1", Distance::OtherNode),
        ("nvme4n1", Distance::Unknown),
    ] {
        assert_eq!(topology.distance(far, device(name), Uuid::nil()), wanted, "{name}");
    }
    assert_eq!(topology.distance(gpu("0000:ee:00.0"), device("nvme0n1"), Uuid::nil()), Distance::Unknown);
    assert_eq!(
        Topology::new("/nonexistent").distance(near, device("nvme0n1"), Uuid::nil()),
        Distance::Unknown
    );
}

#[test]
fn distances_from_processors() {
    let machine = Machine::new();
    let topology = machine.topology();
    let node = |node| Origin::Processors { node };
    for (name, wanted) in
        [("nvme0n1", Distance::Node), ("nvme3n1", Distance::OtherNode), ("nvme4n1", Distance::Unknown)]
    {
        assert_eq!(topology.distance(node(0), device(name), Uuid::nil()), wanted, "{name}");
    }
    assert_eq!(topology.distance(node(1), device("nvme3n1"), Uuid::nil()), Distance::Node);
}

#[test]
fn sysfs_is_read_once_for_each_pair() {
    let machine = Machine::new();
    let topology = machine.topology();
    let near = gpu("0000:04:00.0");
    let ask =
        || [device("nvme0n1"), device("gone")].map(|device| topology.distance(near, device, Uuid::nil()));
    assert_eq!(ask(), [Distance::Switch, Distance::Unknown]);
    drop(machine);
    assert_eq!(ask(), [Distance::Switch, Distance::Unknown]);
    assert_eq!(topology.known.read().len(), 2);
    assert_eq!(topology.distance(near, device("nvme1n1"), Uuid::nil()), Distance::Unknown, "not read before");
}

#[test]
fn the_node_of_a_thread_is_the_only_one_it_may_run_on() {
    let mut machine = Machine::new();
    let me = rustix::thread::gettid().as_raw_pid().unsigned_abs();
    for node in [0, 1] {
        machine.bind_this_thread_to(node);
        let topology = machine.topology();
        assert_eq!(topology.node_of(me), Some(node as u32));
        assert_eq!(topology.node_of(0), None, "not the thread that serves");
        assert_eq!(topology.node_of(u32::MAX), None);
        assert_eq!(topology.node_of(i32::MAX as u32), None, "no such thread");
    }
    // It may run on both: its processor is in both lists.
    let list = fs::read_to_string(machine.0.path().join("devices/system/node/node1/cpulist")).unwrap();
    machine.nodes([list.trim(), list.trim()]);
    assert_eq!(machine.topology().node_of(me), None);
    machine.nodes([list.trim(), ""]);
    assert_eq!(machine.topology().node_of(me), None, "a server with one node says nothing");
    machine.nodes(["1000-2000000", "4000-5000"]);
    assert_eq!(machine.topology().node_of(me), None);
}

/// Whatever this machine is like, it's read without a fault, and twice the same.
#[test]
fn the_real_machine() {
    let topology = Topology::new("/sys");
    let device = rustix::fs::stat("/tmp").unwrap().st_dev;
    let pci = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    for address in pci.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let origin = Origin::Gpu { number: 0, pci: address };
        assert_eq!(topology.distance(origin, device, Uuid::nil()), topology.measure(origin, device));
    }
    topology.node_of(std::process::id());
}

#[test]
fn longer_is_more() {
    use Distance::{HostBridge, Node, OtherNode, RootPort, Switch, Unknown};
    let order = [Switch, RootPort, HostBridge, Node, OtherNode, Unknown];
    assert!(order.is_sorted() && order.map(|d| d as u8) == [0, 1, 2, 3, 4, 9]);
}
