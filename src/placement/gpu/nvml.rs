//! What NVML says: which GPUs there are, and which processes compute on each.
//!
//! The library is loaded when it's asked for the first time; nothing is linked. Every call may block for as
//! long as the driver likes, so only the thread of [`super::watch`] comes here.

use std::collections::HashMap;
use std::path::Path;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::{Gpu, Inventory, PciAddress};

/// What a process computes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// One GPU, or one MIG instance of it.
    One { pci: PciAddress, mig: Option<Box<str>> },
    /// More than one.
    Several,
}

/// The library, loaded and started. Dropping it lets go of the GPUs: as long as somebody holds them the driver
/// can't be unloaded and no GPU be reset.
pub(super) struct Library(Nvml);

impl Library {
    pub(super) fn load(path: Option<&Path>) -> Result<Self, NvmlError> {
        let mut builder = Nvml::builder();
        // The versioned name: without it, it's a link of the development package.
        builder.lib_path(path.map_or("libnvidia-ml.so.1".as_ref(), Path::as_os_str));
        builder.init().map(Self)
    }

    /// The GPUs. One that doesn't answer (lost, or not ours to see) is left out.
    pub(super) fn inventory(&self) -> Result<Inventory, NvmlError> {
        let devices = (0..self.0.device_count()?).filter_map(|index| self.0.device_by_index(index).ok());
        let gpus = devices.filter_map(|device| {
            Some(Gpu {
                pci: address(&device)?,
                uuid: device.uuid().ok().map(Box::from),
                minor: device.minor_number().ok(),
                model: device.name().ok().map(Box::from),
                migs: migs(&device).filter_map(|mig| mig.uuid().ok()).map(Box::from).collect(),
            })
        });
        Ok(Inventory::new(gpus.collect()))
    }

    /// What each process computes on.
    ///
    /// # Errors
    /// When any GPU doesn't answer: a process that is only known to use one could use that one too.
    pub(super) fn uses(&self) -> Result<HashMap<u32, Use>, NvmlError> {
        let mut uses = HashMap::new();
        for index in 0..self.0.device_count()? {
            let device = match self.0.device_by_index(index) {
                Err(NvmlError::GpuLost) => continue,
                found => found?,
            };
            let Some(pci) = address(&device) else { continue };
            // Of a GPU that is divided, the whole one lists the processes of all instances.
            let mut on_this = HashMap::new();
            let processes = match device.running_compute_processes() {
                // Nobody computes on what has fallen off the bus.
                Err(NvmlError::GpuLost) => continue,
                listed => listed?,
            };
            for process in processes {
                on_this.insert(process.pid, Use::One { pci, mig: None });
            }
            for mig in migs(&device) {
                let Ok(uuid) = mig.uuid().map(Box::<str>::from) else { continue };
                for process in mig.running_compute_processes()? {
                    let on_instance = Use::One { pci, mig: Some(uuid.clone()) };
                    let known = on_this.insert(process.pid, on_instance);
                    if matches!(known, Some(Use::One { mig: Some(_), .. })) {
                        on_this.insert(process.pid, Use::One { pci, mig: None });
                    }
                }
            }
            for (pid, used) in on_this {
                uses.entry(pid).and_modify(|known| *known = Use::Several).or_insert(used);
            }
        }
        Ok(uses)
    }
}

fn address(device: &Device<'_>) -> Option<PciAddress> {
    device.pci_info().ok()?.bus_id.parse().ok()
}

/// The MIG instances of a GPU. One that isn't divided, or can't be, has none.
fn migs<'a>(device: &'a Device<'a>) -> impl Iterator<Item = Device<'a>> {
    let count = device.mig_device_count().unwrap_or(0);
    (0..count).filter_map(|index| device.mig_device_by_index(index).ok())
}
