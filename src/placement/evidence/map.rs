//! The operator's map of GPUs to backings, `--gpu-map`.
//!
//! What always holds: a map that was taken names only backings there are, and no GPU twice by the same name. A
//! GPU may still be named by its UUID and by its address; [`GpuMap::check`] finds that, once the GPUs are known.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::placement::gpu::{Gpu, Inventory, PciAddress};

/// Which backing a GPU's files go to, as the operator said it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuMap {
    entries: Vec<(Name, u8)>,
}

/// What a GPU is called in the map.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// `GPU-` or `MIG-` and a UUID, in lower case after the prefix.
    Uuid(String),
    Address(PciAddress),
}

/// Why a map can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GpuMapError {
    /// An entry that isn't `GPU=BACKING`.
    #[error("--gpu-map: {0:?} is not GPU=BACKING, for instance 0000:17:00.0=/nvme0/kv")]
    NoBacking(String),
    /// The left side is no name of a GPU.
    #[error(
        "--gpu-map: {0:?} is not a GPU: give its UUID (GPU-... or MIG-..., complete, as `nvidia-smi -L` lists it) or its PCI address (0000:17:00.0)"
    )]
    NotAGpu(String),
    /// The right side is no backing.
    #[error(
        "--gpu-map: {value:?} is not one of the {count} backings: give a path of the --backing list, or its number there, counted from 0"
    )]
    NotABacking {
        /// What was given.
        value: String,
        /// How many backings there are.
        count: usize,
    },
    /// The same GPU twice.
    #[error("--gpu-map: the GPU {0} is named twice: leave one of the two out")]
    Twice(String),
}

impl GpuMap {
    /// Reads the values of `--gpu-map`, each `GPU=BACKING[,GPU=BACKING...]`.
    ///
    /// # Errors
    /// The first fault, in a sentence that names it and says what would be right.
    pub fn parse<S: AsRef<str>>(values: &[S], backings: &[PathBuf]) -> Result<Self, GpuMapError> {
        let mut map = Self::default();
        let entries = values.iter().flat_map(|value| value.as_ref().split(','));
        for entry in entries.map(str::trim).filter(|entry| !entry.is_empty()) {
            let (gpu, backing) =
                entry.split_once('=').ok_or_else(|| GpuMapError::NoBacking(entry.to_owned()))?;
            let name = Name::parse(gpu.trim()).ok_or_else(|| GpuMapError::NotAGpu(gpu.trim().to_owned()))?;
            let slot = slot(backing.trim(), backings)?;
            if map.entries.iter().any(|(known, _)| *known == name) {
                return Err(GpuMapError::Twice(name.to_string()));
            }
            map.entries.push((name, slot));
        }
        Ok(map)
    }

    /// Compares the map with the GPUs there are; returns the names that are no GPU of this server.
    ///
    /// Not among them: what may be one that the driver doesn't tell yet, such as MIG instances, which only NVML
    /// knows.
    ///
    /// # Errors
    /// [`GpuMapError::Twice`] when two names are the same GPU's.
    pub fn check(&self, inventory: &Inventory) -> Result<Vec<String>, GpuMapError> {
        let mut seen = Vec::new();
        let mut strangers = Vec::new();
        for (name, _) in &self.entries {
            let number = match name {
                Name::Address(pci) => inventory.at(*pci),
                Name::Uuid(uuid) if uuid.starts_with(MIG) => continue,
                Name::Uuid(uuid) => inventory.with_uuid(uuid).next(),
            };
            match number {
                Some(number) if seen.contains(&number) => return Err(GpuMapError::Twice(name.to_string())),
                Some(number) => seen.push(number),
                None if matches!(name, Name::Uuid(_))
                    && !inventory.is_empty()
                    && !inventory.knows_all_uuids() => {}
                None => strangers.push(name.to_string()),
            }
        }
        Ok(strangers)
    }

    /// The backing that the map gives to the GPU; before it, to the MIG instance.
    pub(super) fn slot_of(&self, gpu: Option<&Gpu>, mig: Option<&str>) -> Option<u8> {
        if self.entries.is_empty() {
            return None;
        }
        let named = |is: &dyn Fn(&Name) -> bool| {
            self.entries.iter().find(|(name, _)| is(name)).map(|&(_, slot)| slot)
        };
        let has = |wanted: &str| {
            named(&|name| matches!(name, Name::Uuid(uuid) if uuid.eq_ignore_ascii_case(wanted)))
        };
        mig.and_then(has).or_else(|| {
            let gpu = gpu?;
            gpu.uuid.as_deref().and_then(has).or_else(|| named(&|name| *name == Name::Address(gpu.pci)))
        })
    }
}

const GPU: &str = "GPU-";
const MIG: &str = "MIG-";

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let prefix = text.get(..GPU.len())?;
        for known in [GPU, MIG] {
            if prefix.eq_ignore_ascii_case(known) {
                let uuid = text[known.len()..].to_ascii_lowercase();
                // 8-4-4-4-12, with the dashes: `uuid` would take other forms too, which no GPU is called by.
                let whole = uuid.len() == 36 && uuid::Uuid::try_parse(&uuid).is_ok();
                return whole.then(|| Self::Uuid(format!("{known}{uuid}")));
            }
        }
        text.parse().ok().map(Self::Address)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uuid(uuid) => f.write_str(uuid),
            Self::Address(pci) => write!(f, "{pci}"),
        }
    }
}

/// The place in the list of the backing with this path or number.
fn slot(value: &str, backings: &[PathBuf]) -> Result<u8, GpuMapError> {
    let path = Path::new(value.strip_prefix("file://").unwrap_or(value));
    let path = std::path::absolute(path).unwrap_or(path.to_owned());
    let place = backings.iter().position(|backing| *backing == path);
    let place = place.or_else(|| value.parse().ok().filter(|&number| number < backings.len()));
    place
        .and_then(|place| u8::try_from(place).ok())
        .ok_or_else(|| GpuMapError::NotABacking { value: value.to_owned(), count: backings.len() })
}
