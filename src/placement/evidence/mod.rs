//! Which GPU a new file belongs to.
//!
//! In this order: what the driver says of the process; the local number that the process's title or the file's
//! name holds, counted among the GPUs that the process can see; the only device it has; that number as it
//! stands. The operator's map is looked up with the GPU that comes out. What always holds: a GPU that is known
//! to be one that the evidence can't name isn't guessed from less trusted evidence, not knowing is an answer,
//! and nobody waits for the driver. `docs/PLACEMENT.md` has the reasons.

mod found;
mod map;
pub(super) mod title;
pub(super) mod visible;

#[cfg(test)]
mod tests;

pub use found::GpuFound;
pub use map::{GpuMap, GpuMapError};

use std::path::PathBuf;
use std::sync::Arc;

use super::gpu::{Inventory, Seen, Sources, Watch};
use super::names::{self, NameInfo};
use super::process::{Process, Processes};
use super::{Asker, Ordinal, Target};
use found::How;
use title::gpu_of_title;
use visible::Reach;

/// What a title and a name say of the local number of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It's this one.
    Known(Ordinal),
    /// Nothing.
    Silent,
    /// That it's one which can't be told; a less trusted source that names one would be wrong.
    Unknowable,
}

/// Where evidence is found. The default is the machine's own.
#[derive(Debug, Clone)]
pub struct EvidenceConfig {
    /// The directory of the processes.
    pub proc_root: PathBuf,
    /// The NVIDIA driver's directory in `/proc/driver`.
    pub driver_root: PathBuf,
    /// NVML's library; the system's when it's not said.
    pub nvml: Option<PathBuf>,
    /// The operator's map.
    pub gpu_map: GpuMap,
}

impl Default for EvidenceConfig {
    fn default() -> Self {
        Self {
            proc_root: "/proc".into(),
            driver_root: "/proc/driver/nvidia".into(),
            nvml: None,
            gpu_map: GpuMap::default(),
        }
    }
}

/// All that is known of who asks.
pub struct Evidence {
    processes: Arc<Processes>,
    gpus: Watch,
    map: GpuMap,
}

impl Default for Evidence {
    fn default() -> Self {
        Self::new(EvidenceConfig::default())
    }
}

impl Evidence {
    /// With evidence from these places. Reads which GPUs the driver lists; asks it nothing else yet.
    pub fn new(config: EvidenceConfig) -> Self {
        let processes = Arc::new(Processes::new(config.proc_root));
        let pids_are_ours = processes.are_numbered_by_the_system();
        let sources = Sources { driver: config.driver_root, nvml: config.nvml, pids_are_ours };
        Self { processes, gpus: Watch::new(sources), map: config.gpu_map }
    }

    /// The processes that ask.
    pub fn processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// Compares the operator's map with the GPUs there are; returns the names that are none of this server's.
    ///
    /// # Errors
    /// [`GpuMapError::Twice`] when the map names a GPU by its UUID and by its address.
    pub fn check_map(&self) -> Result<Vec<String>, GpuMapError> {
        self.map.check(&self.gpus.seen().inventory)
    }

    /// The GPU that `target`, created by `asker`, belongs to.
    pub fn gpu_of(&self, asker: &Asker, target: &Target<'_>) -> Option<GpuFound> {
        let info = names::parse(target);
        match self.processes.of(asker.tid) {
            Some(process) => self.of_process(&process, info.as_ref()),
            None => self.as_it_stands(of_name(info.as_ref()), &self.gpus.seen()),
        }
    }

    fn of_process(&self, process: &Process, info: Option<&NameInfo>) -> Option<GpuFound> {
        let seen = self.gpus.asked();
        // What the process uses or sees says nothing of a file that it writes for some other's GPU.
        let for_others = info.filter(|info| info.client.writes_for_others() && info.telling_rank().is_some());
        if for_others.is_none()
            && let Some((number, gpu, mig)) = seen.only_gpu(process.pid, process.start)
        {
            return Some(GpuFound {
                number: number as u64,
                pci: Some(gpu.pci),
                mapped: self.map.slot_of(Some(gpu), mig),
                how: How::Driver { pid: process.pid },
            });
        }
        let local = match process.title {
            Some(title) if for_others.is_none() => gpu_of_title(title, info),
            _ => of_name(info),
        };
        let environment = process.environment.as_ref();
        let reach = Reach::of(process.pid, environment, &process.container, &seen.inventory);
        // A list that is shorter than the workers are many isn't theirs.
        let short = |reach: &Reach<'_>| {
            for_others.is_some_and(|info| info.world.is_some_and(|world| reach.len() < world as usize))
        };
        if let Some(reach) = reach.filter(|reach| !short(reach)) {
            return self.among(&reach, local, &seen).or_else(|| self.open(process, &seen));
        }
        if for_others.is_none()
            && let Some(found) = self.open(process, &seen)
        {
            return Some(found);
        }
        self.as_it_stands(local, &seen)
    }

    /// The GPU with this local number among those that the process can see.
    ///
    /// Where a server spans machines its numbers go on from one to the next, and each machine's part begins at
    /// a multiple of the GPUs it has there (vLLM config/parallel.py, SGLang srt/entrypoints/engine.py): hence
    /// the remainder.
    fn among(&self, reach: &Reach<'_>, local: Verdict, seen: &Seen) -> Option<GpuFound> {
        let (place, how) = match local {
            // The only one, whatever the number.
            _ if reach.len() == 1 => (0, How::Only(reach.from)),
            Verdict::Known(by) => {
                let place = (by.number() % reach.len() as u64) as usize;
                (place, How::Among { origin: reach.from, place: place as u8, by })
            }
            Verdict::Silent | Verdict::Unknowable => return None,
        };
        Some(self.found(reach.gpu(place)?, reach.mig(), how, &seen.inventory))
    }

    /// The only GPU whose device the process has open, with CUDA's memory device beside it.
    fn open(&self, process: &Process, seen: &Seen) -> Option<GpuFound> {
        let minor = process.open_device?;
        let number = match seen.inventory.is_empty() {
            true => minor as usize,
            false => seen.inventory.with_minor(minor)?,
        };
        let how = How::Open { pid: process.pid, minor };
        Some(self.found(number as u64, None, how, &seen.inventory))
    }

    fn as_it_stands(&self, local: Verdict, seen: &Seen) -> Option<GpuFound> {
        match local {
            Verdict::Known(by) => Some(self.found(by.number(), None, How::AsItStands(by), &seen.inventory)),
            Verdict::Silent | Verdict::Unknowable => None,
        }
    }

    fn found(&self, number: u64, mig: Option<&str>, how: How, inventory: &Inventory) -> GpuFound {
        let gpu = inventory.get(number);
        GpuFound { number, pci: gpu.map(|gpu| gpu.pci), mapped: self.map.slot_of(gpu, mig), how }
    }
}

/// The rank in a file's name, taken for a GPU's local number.
fn of_name(info: Option<&NameInfo>) -> Verdict {
    let known = info.and_then(|&info| Some(Ordinal::Name { gpu: info.telling_rank()?.into(), info }));
    known.map_or(Verdict::Silent, Verdict::Known)
}
