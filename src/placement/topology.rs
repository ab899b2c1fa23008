//! How far a backing is from a GPU or from a processor.
//!
//! What always holds: sysfs is read once for each pair of a place and a device, without a lock, and never
//! again; and a distance that isn't known is longer than any that is.

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use hashbrown::HashMap;
use parking_lot::RwLock;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};

use super::pci::PciAddress;
use super::sysfs::{Node, Place, Sysfs};
use uuid::Uuid;

use crate::backing::block_device;

/// How far two devices of a server are from each other; the less, the nearer.
///
/// The classes are those of `nvidia-smi topo`: PIX and PXB, PXB, PHB, NODE, SYS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Distance {
    /// Below one PCIe switch.
    Switch = 0,
    /// Below one root port.
    RootPort = 1,
    /// Below one host bridge.
    HostBridge = 2,
    /// On one NUMA node.
    Node = 3,
    /// On different NUMA nodes.
    OtherNode = 4,
    /// It isn't known.
    Unknown = 9,
}

impl fmt::Display for Distance {
    /// Ready for "… as GPU 3".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch => "same PCIe switch",
            Self::RootPort => "same PCIe root port",
            Self::HostBridge => "same PCIe host bridge",
            Self::Node => "same NUMA node",
            Self::OtherNode => "not the same NUMA node",
            Self::Unknown => "unknown distance",
        })
    }
}

/// Where a distance is measured from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A GPU.
    Gpu {
        /// Its number, for people.
        number: u64,
        /// Where it is.
        pci: PciAddress,
    },
    /// The processors of a NUMA node, which the thread that asked is bound to.
    Processors {
        /// The node's number.
        node: u32,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu { number, pci } => write!(f, "GPU {number} ({pci})"),
            Self::Processors { node } => write!(f, "the process, which is bound to node {node}"),
        }
    }
}

/// What is known of the machine.
pub struct Topology {
    sysfs: Sysfs,
    /// By origin, device and backing: another backing may get the number of a device that has gone.
    known: RwLock<HashMap<(Origin, u64, Uuid), Distance>>,
    nodes: OnceLock<Vec<Node>>,
}

impl Topology {
    /// The distances of 64 GPUs to 64 backings.
    const REMEMBERED: usize = 4096;

    /// As read from this directory, `/sys` except in tests.
    pub fn new(sysfs: impl Into<PathBuf>) -> Self {
        Self { sysfs: Sysfs::new(sysfs), known: RwLock::default(), nodes: OnceLock::new() }
    }

    /// How far the file system with the number `device` (`st_dev`) is from there, that `backing` is on.
    pub fn distance(&self, origin: Origin, device: u64, backing: Uuid) -> Distance {
        if let Some(distance) = self.known.read().get(&(origin, device, backing)) {
            return *distance;
        }
        let distance = self.measure(origin, device);
        let mut known = self.known.write();
        if known.len() < Self::REMEMBERED {
            known.insert((origin, device, backing), distance);
        }
        distance
    }

    fn measure(&self, origin: Origin, device: u64) -> Distance {
        let origin = match origin {
            Origin::Gpu { pci, .. } => self.sysfs.pci(pci),
            Origin::Processors { node } => Some(Place { node: Some(node), ..Place::default() }),
        };
        let disks =
            block_device(device).map(|device| self.sysfs.disks((libc::major(device), libc::minor(device))));
        let (Some(origin), Some(disks)) = (origin, disks) else { return Distance::Unknown };
        // A RAID is done when its farthest disk is; a disk with several controllers is reached by the nearest.
        let nearest = |ways: Vec<Place>| ways.iter().map(|way| between(&origin, way)).min();
        disks.into_iter().filter_map(nearest).max().unwrap_or(Distance::Unknown)
    }

    /// The NUMA node whose processors are all that a thread may run on. `None` when it may run on several, on
    /// a server that has only one, and for thread 0, which is one that can't be seen.
    pub fn node_of(&self, tid: u32) -> Option<u32> {
        let nodes = self.nodes.get_or_init(|| self.sysfs.nodes());
        if nodes.len() < 2 {
            return None;
        }
        let tid = Pid::from_raw(i32::try_from(tid).ok()?)?;
        let allowed = sched_getaffinity(Some(tid)).ok()?;
        let may_run_there = |node: &&Node| {
            let processors = node.processors.iter().cloned().flatten();
            processors.take_while(|&cpu| cpu < CpuSet::MAX_CPU).any(|cpu| allowed.is_set(cpu))
        };
        let mut there = nodes.iter().filter(may_run_there);
        let node = there.next()?;
        there.next().is_none().then_some(node.number)
    }
}

/// How far two places are from each other.
fn between(a: &Place, b: &Place) -> Distance {
    let shared = a.chain.iter().zip(&b.chain).take_while(|(a, b)| a == b).count();
    match (shared, a.node, b.node) {
        (2.., _, _) => Distance::Switch,
        (1, _, _) => Distance::RootPort,
        _ if a.host_bridge.is_some() && a.host_bridge == b.host_bridge => Distance::HostBridge,
        (_, Some(a), Some(b)) if a == b => Distance::Node,
        (_, Some(_), Some(_)) => Distance::OtherNode,
        _ => Distance::Unknown,
    }
}

#[cfg(test)]
pub(super) mod tests;
