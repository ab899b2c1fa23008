//! Where a device is in the machine, as sysfs shows it.
//!
//! What always holds: only links and small attributes are read, and what can't be read, or isn't there, is
//! simply not known.
//!
//! The paths are the kernel's ABI: `/sys/dev/block/MAJOR:MINOR` and `/sys/bus/pci/devices/ADDRESS` are links
//! to where a device hangs below `/sys/devices`, and each directory on that way is the device above it
//! (Documentation/admin-guide/sysfs-rules.rst; `numa_node`, `slaves`: Documentation/ABI/{testing,stable}).

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::pci::PciAddress;

/// A place in the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The PCI host bridge: `pci0000:00`.
    pub(super) host_bridge: Option<String>,
    /// The addresses from the root port to the device itself.
    pub(super) chain: Vec<PciAddress>,
    /// The NUMA node.
    pub(super) node: Option<u32>,
}

/// A NUMA node that has processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) number: u32,
    pub(super) processors: Vec<RangeInclusive<usize>>,
}

/// A sysfs.
#[derive(Debug)]
pub(super) struct Sysfs {
    root: PathBuf,
}

/// Devices made of devices made of devices: as deep as that goes. LVM on encryption on RAID on a partition is 4.
const DEEPEST: u32 = 8;

impl Sysfs {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a PCI device is.
    pub(super) fn pci(&self, address: PciAddress) -> Option<Place> {
        let link = self.root.join("bus/pci/devices").join(address.to_string());
        Some(place_of(&fs::canonicalize(link).ok()?))
    }

    /// The disks that the block device with this number is made of, and for each of them the places from
    /// which it's reached: several for a disk with more than one controller.
    pub(super) fn disks(&self, (major, minor): (u32, u32)) -> Vec<Vec<Place>> {
        let mut disks = Vec::new();
        if let Ok(path) = fs::canonicalize(self.root.join(format!("dev/block/{major}:{minor}"))) {
            collect_disks(path, DEEPEST, &mut disks);
        }
        disks
    }

    /// The NUMA nodes that have processors; others are memory, a GPU's for example.
    pub(super) fn nodes(&self) -> Vec<Node> {
        let entries = fs::read_dir(self.root.join("devices/system/node")).into_iter().flatten().flatten();
        let node = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let processors = ranges(&fs::read_to_string(entry.path().join("cpulist")).ok()?)?;
            (!processors.is_empty()).then_some(Node { number, processors })
        };
        entries.filter_map(node).collect()
    }
}

/// Adds the disks that the block device at `path` is made of.
fn collect_disks(mut path: PathBuf, depth: u32, disks: &mut Vec<Vec<Place>>) {
    // What a partition lies on is its disk's affair.
    if path.join("partition").exists() {
        path.pop();
    }
    let parts: Vec<PathBuf> = links_in(&path.join("slaves"), |_| true);
    if depth > 0 && !parts.is_empty() {
        parts.into_iter().for_each(|part| collect_disks(part, depth - 1, disks));
        return;
    }
    let place = place_of(&path);
    if place.chain.is_empty() {
        // An NVMe disk with several controllers belongs to their subsystem, which isn't at any place; the
        // controllers are linked there by name (drivers/nvme/host/core.c, nvme_init_subsystem).
        let controllers = path.parent().map(|subsystem| links_in(subsystem, is_nvme_controller));
        let places: Vec<Place> = controllers.iter().flatten().map(|path| place_of(path)).collect();
        if !places.is_empty() {
            return disks.push(places);
        }
    }
    disks.push(vec![place]);
}

/// `nvme3`, and not its name space `nvme3n1`.
fn is_nvme_controller(name: &str) -> bool {
    name.strip_prefix("nvme").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Where the links in a directory lead whose names are wanted.
fn links_in(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .collect()
}

/// What the path of a device below `/sys/devices` says, and the NUMA node of the last PCI device on it.
fn place_of(path: &Path) -> Place {
    let mut place = Place::default();
    let mut so_far = PathBuf::new();
    let mut last = None;
    for component in path.components() {
        so_far.push(component);
        let Some(name) = component.as_os_str().to_str() else { continue };
        if let Ok(address) = name.parse() {
            place.chain.push(address);
            last = Some(so_far.clone());
        } else if place.host_bridge.is_none() && is_host_bridge(name) {
            place.host_bridge = Some(name.to_owned());
        }
    }
    let node = last.and_then(|device| fs::read_to_string(device.join("numa_node")).ok());
    // -1 where the firmware doesn't say, as in most virtual machines.
    place.node = node.and_then(|text| text.trim().parse().ok());
    place
}

/// `pci0000:00`: the root of a PCI domain's bus (drivers/pci/probe.c, pci_register_host_bridge).
fn is_host_bridge(name: &str) -> bool {
    let numbers = name.strip_prefix("pci").and_then(|rest| rest.split_once(':'));
    numbers.is_some_and(|(domain, bus)| {
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        domain.len() >= 4 && hex(domain) && bus.len() == 2 && hex(bus)
    })
}

/// Reads a list of processors, `0-31,64` (Documentation/admin-guide/cputopology.rst).
fn ranges(list: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let parts = list.trim().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            Some(from.parse().ok()?..=to.parse().ok()?)
        })
        .collect()
}
