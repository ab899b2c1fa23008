//! The GPUs that a process can see: the lists that CUDA and HIP read from the environment, counted among the
//! devices that its container has.
//!
//! What always holds: a list ends at its first entry that isn't a GPU, as CUDA's does (CUDA C++ Programming
//! Guide, "CUDA Environment Variables"); an entry whose GPU can't be told for certain still counts as one, and
//! is never taken for another.

use std::fmt;

use crate::placement::gpu::{Gpu, Inventory};
use crate::placement::process::Container;

/// As many GPUs as are looked at in one list; no server has more.
const MOST: usize = 64;

/// What the environment of a process says of the GPUs it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    /// The process whose environment it is: the one in question, or an ancestor.
    pub(crate) pid: u32,
    /// Whether CUDA counts the GPUs in the order of their PCI addresses (`CUDA_DEVICE_ORDER`); else it's the
    /// fastest first, which is the same order where all are of one model.
    pci_order: bool,
    list: Option<List>,
    /// The seed of Python's `hash()`.
    pub(crate) hash_seed: HashSeed,
}

/// What `PYTHONHASHSEED` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashSeed {
    /// Nothing: Python takes a random one.
    Unset,
    /// The word `random`, which means the same to Python.
    Random,
    /// A number.
    Fixed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct List {
    variable: Variable,
    text: Shown,
    entries: Box<[Entry]>,
}

/// The variable that a list comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variable {
    Cuda,
    Hip,
    Rocr,
}

impl Variable {
    /// In this order: AMD's runtime takes CUDA's variable too, and its own count in what ROCR's left.
    const ALL: [(Self, &'static str); 3] = [
        (Self::Cuda, "CUDA_VISIBLE_DEVICES"),
        (Self::Hip, "HIP_VISIBLE_DEVICES"),
        (Self::Rocr, "ROCR_VISIBLE_DEVICES"),
    ];
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Index(u32),
    /// `GPU-` and the beginning of a UUID.
    Gpu(Box<str>),
    /// `MIG-` and a UUID, or in the old form `MIG-GPU-UUID/GI/CI`.
    Mig(Box<str>),
    /// Something that is counted and can't be told.
    Opaque,
}

/// A few bytes of a list, for people.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    length: u8,
    cut: bool,
    bytes: [u8; 46],
}

impl Shown {
    fn new(text: &str) -> Self {
        let mut bytes = [0; 46];
        let length = text.floor_char_boundary(bytes.len());
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self { length: length as u8, cut: length < text.len(), bytes }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.bytes[..usize::from(self.length)]);
        write!(f, "{text}{}", if self.cut { "..." } else { "" })
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What `/proc/PID/environ` holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Environ {
    /// The environment that the process was started with.
    Readable(Environment),
    /// Nothing that is left of it: `setproctitle` writes the title over it and zeroes the rest.
    Wiped,
}

impl Environ {
    /// Reads the environment of process `pid`.
    pub(crate) fn parse(pid: u32, bytes: &[u8]) -> Self {
        let variables = || bytes.split(|&b| b == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
        let readable = bytes.is_empty() || bytes.split(|&b| b == 0).any(is_variable);
        if !readable {
            return Self::Wiped;
        }
        let value = |name: &str| {
            variables().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).map(str::trim)
        };
        let [cuda, hip, rocr] = Variable::ALL.map(|(variable, name)| Some((variable, value(name)?)));
        let list = cuda.or(hip).or(rocr).map(|(variable, text)| List {
            variable,
            text: Shown::new(text),
            // HIP's numbers count what ROCR has left: two lists that no file of ours says how to join.
            entries: match variable == Variable::Hip && rocr.is_some() {
                true => Box::new([Entry::Opaque]),
                false => entries(text),
            },
        });
        let pci_order = value("CUDA_DEVICE_ORDER") == Some("PCI_BUS_ID");
        // Python takes an empty one for none (`config_init_hash_seed` in Python/initconfig.c).
        let hash_seed = match value("PYTHONHASHSEED") {
            None | Some("") => HashSeed::Unset,
            Some("random") => HashSeed::Random,
            Some(_) => HashSeed::Fixed,
        };
        Self::Readable(Environment { pid, pci_order, list, hash_seed })
    }
}

/// Whether this is `NAME=value`, with a name as a shell would take it. The end of a title that was longer than
/// the command line is none.
fn is_variable(entry: &[u8]) -> bool {
    let Some(at) = entry.iter().position(|&b| b == b'=') else { return false };
    at > 0
        && entry[..at]
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'%' | b'(' | b')'))
}

fn entries(text: &str) -> Box<[Entry]> {
    let mut all = Vec::new();
    for entry in text.split(',').map(str::trim).take(MOST) {
        let entry = if !entry.is_empty() && entry.bytes().all(|b| b.is_ascii_digit()) {
            match entry.parse() {
                Ok(index) if index < 1024 => Entry::Index(index),
                _ => break,
            }
        } else if entry.starts_with("GPU-") {
            Entry::Gpu(entry.into())
        } else if entry.starts_with("MIG-") && all.is_empty() {
            // A process can use one instance.
            all.push(Entry::Mig(entry.into()));
            break;
        } else {
            // `-1`, `NoDevFiles`, nothing at all, or what no runtime takes.
            break;
        };
        // CUDA gives a process whose list names a GPU twice none at all.
        if all.contains(&entry) {
            return Box::default();
        }
        all.push(entry);
    }
    all.into()
}

/// The GPUs that a process can see, in its own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach<'a> {
    /// Where that comes from.
    pub(super) from: Origin,
    gpus: [Option<u16>; MOST],
    length: usize,
    mig: Option<&'a str>,
}

/// What says which GPUs a process can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A list in the environment of this process.
    List { variable: Variable, text: Shown, pid: u32 },
    /// The devices of its container: so many.
    Devices { count: u8, pid: u32 },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List { variable, text, pid } => {
                let named = Variable::ALL.iter().find(|(known, _)| known == variable);
                write!(f, "{}={text} of process {pid}", named.map_or("", |(_, name)| name))
            }
            Self::Devices { count: 1, pid } => {
                write!(f, "the only GPU device in the container of process {pid}")
            }
            Self::Devices { count, pid } => {
                write!(f, "the {count} GPU devices in the container of process {pid}")
            }
        }
    }
}

impl<'a> Reach<'a> {
    /// Puts together what says which GPUs the process `pid` can see: its environment and its container. `None`
    /// when neither says anything, or that it sees none.
    pub(super) fn of(
        pid: u32,
        environment: Option<&'a Environment>,
        container: &Container,
        inventory: &Inventory,
    ) -> Option<Self> {
        let base = Base { container, inventory, pci_order: environment.is_some_and(|e| e.pci_order) };
        let listed = environment.and_then(|environment| Some((environment.pid, environment.list.as_ref()?)));
        let from = match (listed, container) {
            (Some((pid, list)), _) => Origin::List { variable: list.variable, text: list.text, pid },
            (None, Container::Devices(minors)) if !minors.is_empty() => {
                Origin::Devices { count: minors.len().min(255) as u8, pid }
            }
            (None, _) => return None,
        };
        let mut reach = Self { from, gpus: [None; MOST], length: 0, mig: None };
        let entries = match listed {
            Some((_, list)) => &list.entries[..],
            None => {
                (0..MOST as u32).map_while(|index| base.gpu(index)).for_each(|gpu| reach.push(gpu));
                &[]
            }
        };
        for entry in entries {
            let gpu = match entry {
                Entry::Index(index) => base.gpu(*index),
                Entry::Gpu(prefix) => of_uuid(prefix, inventory),
                Entry::Mig(uuid) => {
                    reach.mig = Some(uuid);
                    of_mig(uuid, inventory)
                }
                Entry::Opaque => Some(None),
            };
            match gpu {
                Some(gpu) => reach.push(gpu),
                None => break,
            }
        }
        (reach.length > 0).then_some(reach)
    }

    fn push(&mut self, gpu: Option<usize>) {
        if let Some(place) = self.gpus.get_mut(self.length) {
            *place = gpu.and_then(|gpu| u16::try_from(gpu).ok());
            self.length += 1;
        }
    }

    /// How many there are; at least one.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The GPU at this place; `None` when it can't be told which that is.
    pub(super) fn gpu(&self, place: usize) -> Option<u64> {
        self.gpus[..self.length].get(place).copied().flatten().map(u64::from)
    }

    /// The UUID of the MIG instance that it is, if it's one.
    pub(super) fn mig(&self) -> Option<&'a str> {
        self.mig
    }
}

/// What an index counts in.
struct Base<'a> {
    container: &'a Container,
    inventory: &'a Inventory,
    pci_order: bool,
}

impl Base<'_> {
    /// The GPU that CUDA gives this index; `Some(None)` if there is one and it can't be told which.
    fn gpu(&self, index: u32) -> Option<Option<usize>> {
        let (index, gpus) = (index as usize, self.inventory.gpus());
        match self.container {
            // Without a driver that lists them there is nothing to translate by: numbers stand as they are.
            Container::None if gpus.is_empty() => Some(Some(index)),
            Container::None => (index < gpus.len()).then(|| self.ordered(gpus.iter()).then_some(index)),
            Container::Unknown => Some(None),
            // Perhaps GPUs of another make.
            Container::Devices(minors) if gpus.is_empty() && minors.is_empty() => Some(Some(index)),
            Container::Devices(minors) if gpus.is_empty() => {
                minors.get(index).map(|&minor| Some(minor as usize))
            }
            Container::Devices(minors) => {
                let is_there = |gpu: &Gpu| gpu.minor.is_some_and(|minor| minors.contains(&minor));
                let there = gpus.iter().enumerate().filter(|(_, gpu)| is_there(gpu));
                if there.clone().count() < minors.len() {
                    return (index < minors.len()).then_some(None);
                }
                let (number, _) = there.clone().nth(index)?;
                Some(self.ordered(there.map(|(_, gpu)| gpu)).then_some(number))
            }
        }
    }

    /// Whether CUDA counts these in the order of their addresses: it's told to, or they are of one model, so that
    /// none of them is the fastest.
    fn ordered<'g>(&self, mut gpus: impl Iterator<Item = &'g Gpu> + Clone) -> bool {
        let mut rest = gpus.clone().skip(1).peekable();
        let first = gpus.next().and_then(|gpu| gpu.model.as_deref());
        self.pci_order
            || rest.peek().is_none()
            || first.is_some() && rest.all(|gpu| gpu.model.as_deref() == first)
    }
}

/// The GPU whose UUID begins so: exactly one, as CUDA wants it. `None` when it's certain that there is none.
fn of_uuid(prefix: &str, inventory: &Inventory) -> Option<Option<usize>> {
    let mut matching = inventory.with_uuid(prefix);
    match (matching.next(), matching.next()) {
        (Some(gpu), None) => Some(Some(gpu)),
        (Some(_), Some(_)) => None,
        (None, _) => (!inventory.knows_all_uuids()).then_some(None),
    }
}

fn of_mig(uuid: &str, inventory: &Inventory) -> Option<Option<usize>> {
    // MIG-GPU-UUID/GI/CI
    if let Some(old) = uuid.strip_prefix("MIG-").filter(|rest| rest.starts_with("GPU-")) {
        return of_uuid(old.split('/').next().unwrap_or(old), inventory);
    }
    Some(inventory.with_mig(uuid))
}
