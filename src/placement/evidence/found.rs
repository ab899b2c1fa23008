//! The GPU that a file belongs to, with the evidence for it.

use std::fmt;

use super::visible::Origin;
use crate::placement::gpu::PciAddress;
use crate::placement::{Ordinal, Reason};

/// A GPU of this server that a file belongs to. `Display` says how it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuFound {
    pub(super) number: u64,
    pub(super) pci: Option<PciAddress>,
    pub(super) mapped: Option<u8>,
    pub(super) how: How,
}

/// What says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The driver: it's the only one that the process computes on.
    Driver { pid: u32 },
    /// It's the only one that the process can see.
    Only(Origin),
    /// It's at this place among those that the process can see, by the local number that it has.
    Among { origin: Origin, place: u8, by: Ordinal },
    /// It's the only one whose device the process has open.
    Open { pid: u32, minor: u32 },
    /// The local number, taken for a GPU's.
    AsItStands(Ordinal),
}

impl GpuFound {
    /// Its number: its place in the order of PCI addresses, where that could be told.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its PCI address, if the driver lists a GPU of that number.
    pub fn pci(&self) -> Option<PciAddress> {
        self.pci
    }

    /// The backing that the operator's map gives it, by its place in the list.
    pub fn mapped(&self) -> Option<u8> {
        self.mapped
    }

    /// The kind of evidence.
    pub(in crate::placement) fn reason(&self) -> Reason {
        match self.how {
            How::Driver { .. } => Reason::Driver,
            How::Only(_) | How::Among { .. } | How::Open { .. } => Reason::VisibleDevices,
            How::AsItStands(Ordinal::Title { .. }) => Reason::RankInTitle,
            How::AsItStands(Ordinal::Name { .. }) => Reason::RankInName,
        }
    }
}

impl fmt::Display for GpuFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number;
        match self.how {
            How::Driver { pid } => {
                write!(f, "GPU {number} from the driver, the only one that process {pid} computes on")
            }
            How::Only(origin) => write!(f, "GPU {number} from {origin}"),
            How::Among { origin, place, by } => {
                let by = match by {
                    Ordinal::Title { title, .. } => format!("the process title ({title})"),
                    Ordinal::Name { info, .. } => format!("the file name ({})", info.client),
                };
                write!(f, "GPU {number} from {origin}, number {place} there by {by}")
            }
            How::Open { pid, minor } => {
                write!(f, "GPU {number} from /dev/nvidia{minor}, the only one that process {pid} has open")
            }
            How::AsItStands(ordinal) => write!(f, "{ordinal}"),
        }
    }
}
