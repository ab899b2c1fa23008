//! Which GPUs there are: from the NVIDIA driver's `/proc/driver/nvidia`, and from NVML where it answers.

use std::fs;
use std::path::Path;

use super::PciAddress;

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Where it is.
    pub pci: PciAddress,
    /// `GPU-` and a UUID. The driver doesn't know it before it has used the GPU for the first time.
    pub uuid: Option<Box<str>>,
    /// The N of its `/dev/nvidiaN`: the order in which the driver found the GPUs, not their number.
    pub minor: Option<u32>,
    /// What it's called.
    pub model: Option<Box<str>>,
    /// The UUIDs of its MIG instances, `MIG-` and a UUID. Only NVML knows them.
    pub migs: Vec<Box<str>>,
}

/// All GPUs of the server; each has the number that is its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    gpus: Vec<Gpu>,
}

impl Inventory {
    /// With these GPUs, in any order.
    pub fn new(mut gpus: Vec<Gpu>) -> Self {
        gpus.sort_by_key(|gpu| gpu.pci);
        gpus.dedup_by_key(|gpu| gpu.pci);
        Self { gpus }
    }

    /// As the NVIDIA driver lists them below its directory in `/proc/driver`: `gpus/*/information`.
    pub(super) fn read(driver: &Path) -> Self {
        let Ok(entries) = fs::read_dir(driver.join("gpus")) else { return Self::default() };
        let informations = entries.flatten().map(|entry| entry.path().join("information"));
        Self::new(informations.filter_map(|path| parse(&fs::read_to_string(path).ok()?)).collect())
    }

    /// All that this or `newer` knows; where both know something, it's the newer.
    pub(super) fn merge(mut self, newer: Self) -> Self {
        for gpu in newer.gpus {
            match self.gpus.iter_mut().find(|known| known.pci == gpu.pci) {
                None => self.gpus.push(gpu),
                Some(known) => {
                    known.uuid = gpu.uuid.or(known.uuid.take());
                    known.minor = gpu.minor.or(known.minor);
                    known.model = gpu.model.or(known.model.take());
                    known.migs = gpu.migs;
                }
            }
        }
        Self::new(self.gpus)
    }

    /// All of them, in the order of their numbers.
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// The GPU with this number.
    pub fn get(&self, number: u64) -> Option<&Gpu> {
        self.gpus.get(usize::try_from(number).ok()?)
    }

    /// Whether no GPU is known.
    pub fn is_empty(&self) -> bool {
        self.gpus.is_empty()
    }

    /// The number of the GPU at this address.
    pub fn at(&self, pci: PciAddress) -> Option<usize> {
        self.gpus.iter().position(|gpu| gpu.pci == pci)
    }

    /// The number of the GPU that has this minor.
    pub fn with_minor(&self, minor: u32) -> Option<usize> {
        self.gpus.iter().position(|gpu| gpu.minor == Some(minor))
    }

    /// The number of the GPU that has the MIG instance with this UUID.
    pub fn with_mig(&self, uuid: &str) -> Option<usize> {
        self.gpus.iter().position(|gpu| gpu.migs.iter().any(|mig| mig.eq_ignore_ascii_case(uuid)))
    }

    /// The numbers of the GPUs whose UUID begins like this, as CUDA matches them.
    pub fn with_uuid(&self, prefix: &str) -> impl Iterator<Item = usize> {
        let begins = move |gpu: &Gpu| {
            let head = gpu.uuid.as_deref().and_then(|uuid| uuid.get(..prefix.len()));
            head.is_some_and(|head| head.eq_ignore_ascii_case(prefix))
        };
        self.gpus.iter().enumerate().filter(move |(_, gpu)| begins(gpu)).map(|(number, _)| number)
    }

    /// Whether the UUIDs of all GPUs are known, so that one which isn't among them is no GPU of this server.
    pub fn knows_all_uuids(&self) -> bool {
        !self.is_empty() && self.gpus.iter().all(|gpu| gpu.uuid.is_some())
    }
}

/// Reads a file `information`: lines of a name, a colon and a value. Without an address, or of a GPU that the
/// driver was told to leave alone (`GPU Excluded`): nothing.
fn parse(information: &str) -> Option<Gpu> {
    let value = |name: &str| {
        let mut lines = information.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim())
    };
    if value("GPU Excluded").is_some_and(|excluded| excluded.eq_ignore_ascii_case("yes")) {
        return None;
    }
    Some(Gpu {
        pci: value("Bus Location")?.parse().ok()?,
        // "GPU-????????-????-..." before the first use.
        uuid: value("GPU UUID").filter(|uuid| !uuid.contains('?')).map(Box::from),
        minor: value("Device Minor").and_then(|minor| minor.parse().ok()),
        model: value("Model").filter(|model| !model.is_empty() && *model != "Unknown").map(Box::from),
        migs: Vec::new(),
    })
}
