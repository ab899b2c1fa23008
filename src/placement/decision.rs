//! What a policy answers: the backing, a code for the reason, and the reasoning for people.
//!
//! What always holds: a decision is a plain value, made without allocating; it's only turned into words
//! when somebody asks. The codes of [`Reason`] are stored with every file and never change their meaning.

use super::evidence::GpuFound;
use super::evidence::title::Title;
use super::names::NameInfo;
use super::topology::{Distance, Origin};
use std::fmt;

/// Why a file is on its backing, in the four bits that the index keeps of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// It was there when the mount started; who put it there isn't known.
    FoundAtScan = 0,
    /// The title of the process that created it says which GPU it serves.
    RankInTitle = 1,
    /// Its name holds the rank of the worker it belongs to.
    RankInName = 2,
    /// The hash of its name: the rule of `hash`, and of other policies that know nothing better.
    Hash = 3,
    /// The backing it belonged on took no new files.
    Spilled = 4,
    /// A lookup that the index couldn't answer found it on the backing.
    Probed = 5,
    /// It's a hard link to a file that is there, or was renamed from one.
    SameAsSource = 6,
    /// It's a directory: made on one backing, and on others where a file needed it.
    Directory = 7,
    /// The operator's map says which backing the GPU's files go to.
    GpuMap = 8,
    /// The driver (NVML) says which GPU the process that created it uses.
    Driver = 9,
    /// The list of visible devices of the process, or the only device node it has, says which GPU it is.
    VisibleDevices = 10,
    /// It was this backing's turn: the rule of `round-robin`.
    Turn = 11,
    /// It had the most room: the rule of `most-free`.
    MostFree = 12,
    /// It's the closest to the GPU or the processor: the rule of `nearest`.
    Nearest = 13,
    /// It was moved here, by a drain or a rebalance.
    Moved = 14,
}

impl Reason {
    const ALL: [Self; 15] = [
        Self::FoundAtScan,
        Self::RankInTitle,
        Self::RankInName,
        Self::Hash,
        Self::Spilled,
        Self::Probed,
        Self::SameAsSource,
        Self::Directory,
        Self::GpuMap,
        Self::Driver,
        Self::VisibleDevices,
        Self::Turn,
        Self::MostFree,
        Self::Nearest,
        Self::Moved,
    ];

    /// The reason as a number below 16.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FoundAtScan => "found_at_scan",
            Self::RankInTitle => "rank_in_title",
            Self::RankInName => "rank_in_name",
            Self::Hash => "hash",
            Self::Spilled => "spilled",
            Self::Probed => "probed",
            Self::SameAsSource => "same_as_source",
            Self::Directory => "directory",
            Self::GpuMap => "gpu_map",
            Self::Driver => "driver",
            Self::VisibleDevices => "visible_devices",
            Self::Turn => "turn",
            Self::MostFree => "most_free",
            Self::Nearest => "nearest",
            Self::Moved => "moved",
        }
    }

    /// The reason that has this code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FoundAtScan => "found there when the mount started",
            Self::RankInTitle => "rank in the process title",
            Self::RankInName => "rank in the file name",
            Self::Hash => "hash of the name",
            Self::Spilled => "spilled from a backing that took no new files",
            Self::Probed => "found there by a lookup",
            Self::SameAsSource => "same backing as the file it was linked or renamed from",
            Self::Directory => "directory",
            Self::GpuMap => "the operator's map of GPUs",
            Self::Driver => "the GPU that the driver says the process uses",
            Self::VisibleDevices => "the GPU that the process can see",
            Self::Turn => "its turn",
            Self::MostFree => "the most room",
            Self::Nearest => "the closest backing",
            Self::Moved => "moved here by a drain or a rebalance",
        })
    }
}

/// A backing, chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The chosen backing's slot.
    pub slot: u8,
    /// Why, in a form that is kept with the file.
    pub reason: Reason,
    /// Why, in a form for people: `Display` writes the whole reasoning.
    pub detail: Detail,
}

impl Decision {
    /// `slot` is where the file belongs, out of `backings` backings.
    pub(super) fn preferred(basis: Basis, slot: u8, backings: usize) -> Self {
        Self { slot, reason: basis.reason(), detail: Detail { basis, preferred: slot, slot, backings } }
    }

    /// The file belongs on `preferred`, which takes no new files; it goes to `slot`.
    pub(super) fn spilled(basis: Basis, preferred: u8, slot: u8, backings: usize) -> Self {
        Self { slot, reason: Reason::Spilled, detail: Detail { basis, preferred, slot, backings } }
    }
}

/// The reasoning behind a [`Decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    basis: Basis,
    preferred: u8,
    slot: u8,
    backings: usize,
}

impl Detail {
    /// The number of the GPU that the file belongs to, where that was found out.
    pub fn gpu(&self) -> Option<u64> {
        match self.basis {
            Basis::Gpu(gpu) | Basis::Mapped(gpu) => Some(gpu.number()),
            _ => None,
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.basis {
            Basis::Gpu(gpu) => {
                write!(f, "{gpu}, {} % {} = backing {}", gpu.number(), self.backings, self.preferred)?;
            }
            Basis::Mapped(gpu) => write!(f, "{gpu}; the operator's map gives it backing {}", self.preferred)?,
            Basis::Hash => write!(f, "hash of the name = backing {}", self.preferred)?,
            Basis::NoGpuKnown => {
                write!(f, "which GPU isn't known; hash of the name = backing {}", self.preferred)?;
            }
            Basis::Turn => write!(f, "its turn = backing {}", self.preferred)?,
            Basis::WithItsData => write!(f, "with its data, whose turn it was = backing {}", self.preferred)?,
            Basis::MostFree { free, alike } => {
                write!(f, "the most room: {} free", Bytes(free))?;
                if alike > 0 {
                    write!(f, ", as {alike} other{}; hash among these", if alike == 1 { "" } else { "s" })?;
                }
                write!(f, " = backing {}", self.preferred)?;
            }
            Basis::Nearest { origin, distance } => {
                write!(f, "{distance} as {origin} = backing {}", self.preferred)?;
            }
            Basis::NearestUnknown => {
                write!(f, "which is nearest isn't known; hash of the name = backing {}", self.preferred)?;
            }
        }
        if self.slot != self.preferred {
            let rule = match self.basis {
                Basis::Nearest { .. } => "the nearest of the others",
                _ => "hash among the others",
            };
            write!(f, ", which took no new files; {rule} = backing {}", self.slot)?;
        }
        Ok(())
    }
}

/// What the preferred backing was derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The number of the GPU that the file belongs to.
    Gpu(GpuFound),
    /// What the operator's map says of that GPU.
    Mapped(GpuFound),
    /// The hash of the name, as the policy's own rule.
    Hash,
    /// The hash of the name, because nothing says which GPU the file belongs to.
    NoGpuKnown,
    /// The order of the list: the one after the last file's.
    Turn,
    /// The backing of the data that this metadata is of.
    WithItsData,
    /// The room there is.
    MostFree {
        /// The chosen backing's, in bytes.
        free: u64,
        /// How many other backings have about as much.
        alike: u8,
    },
    /// The way to it in the machine.
    Nearest {
        /// From where.
        origin: Origin,
        /// How long it is.
        distance: Distance,
    },
    /// The hash of the name, because nothing says which backing is nearest.
    NearestUnknown,
}

impl Basis {
    fn reason(self) -> Reason {
        match self {
            Self::Gpu(gpu) => gpu.reason(),
            Self::Mapped(_) => Reason::GpuMap,
            Self::Hash | Self::NoGpuKnown | Self::NearestUnknown => Reason::Hash,
            Self::Turn | Self::WithItsData => Reason::Turn,
            Self::MostFree { .. } => Reason::MostFree,
            Self::Nearest { .. } => Reason::Nearest,
        }
    }
}

/// A size for people, in the units of `kvfs status`.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut size = self.0 as f64;
        let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter().peekable();
        let mut unit = units.next().unwrap_or_default();
        while size >= 1024.0 && units.peek().is_some() {
            size /= 1024.0;
            unit = units.next().unwrap_or_default();
        }
        if unit == "B" { write!(f, "{size} B") } else { write!(f, "{size:.1} {unit}") }
    }
}

/// The local number of a GPU, counted among those that a server sees, with the evidence for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordinal {
    /// From the title of the process that asked, with the number of GPUs per replica where that was used.
    Title {
        /// The GPU's number.
        gpu: u64,
        /// The title.
        title: Title,
        /// GPUs per data-parallel replica, if the number depended on it.
        world: Option<u32>,
    },
    /// From the rank in the file name.
    Name {
        /// The GPU's number.
        gpu: u64,
        /// What the name says.
        info: NameInfo,
    },
}

impl Ordinal {
    /// The GPU's number, counted from 0.
    pub fn number(&self) -> u64 {
        match *self {
            Self::Title { gpu, .. } | Self::Name { gpu, .. } => gpu,
        }
    }
}

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Title { gpu, title, world } => {
                write!(f, "GPU {gpu} from the process title ({title}")?;
                match world {
                    Some(world) => write!(f, ", {world} GPUs per replica)"),
                    None => f.write_str(")"),
                }
            }
            Self::Name { gpu, info } => write!(f, "rank {gpu} from the file name ({})", info.client),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_fit_four_bits_and_come_back() {
        for (code, reason) in (0..).zip(Reason::ALL) {
            assert_eq!(reason.code(), code);
            assert_eq!(Reason::from_code(code), Some(reason));
        }
        assert!(Reason::ALL.len() <= 16);
        assert_eq!(Reason::from_code(15), None);
        assert_eq!(Reason::from_code(255), None);
    }
}
