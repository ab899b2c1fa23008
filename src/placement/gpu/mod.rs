//! The GPUs of this server, and what the driver says of who uses them.
//!
//! What always holds: a GPU's number is its place in the order of PCI addresses, which is NVML's order and
//! CUDA's with `CUDA_DEVICE_ORDER=PCI_BUS_ID`; a minor of `/dev/nvidiaN` is never taken for it. What can't be
//! read is not known, and nothing here is an error: a server without GPUs is a normal one.

mod inventory;
mod nvml;
mod watch;

pub use super::pci::{NotAnAddress, PciAddress};
pub use inventory::{Gpu, Inventory};
pub(super) use watch::{Seen, Sources, Watch, ticks_since_boot};
