//! Which GPU a new file belongs to.
//!
//! That comes from a list of [`Source`]s, the most trusted first. What always holds: a GPU that is known to be
//! one that the evidence can't name isn't guessed from less trusted evidence, and not knowing is an answer.

use super::names::{self, NameInfo};
use super::pci::PciAddress;
use super::process::{Kind, Title, Titles};
use super::{Asker, Ordinal, Target};

/// What a source of evidence knows about the GPU that a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It's this one.
    Known(Ordinal),
    /// Nothing: the next source may know.
    Silent,
    /// That it's one which can't be told; a less trusted source that names one would be wrong.
    Unknowable,
}

/// A source of evidence. `info` is what the file's name says.
trait Source: Send + Sync {
    fn verdict(&self, asker: &Asker, info: Option<&NameInfo>) -> Verdict;
}

/// All that is known of who asks.
pub struct Evidence {
    sources: Vec<Box<dyn Source>>,
}

impl Evidence {
    /// With the processes that ask looked up in this `/proc`.
    pub fn new(titles: Titles) -> Self {
        Self { sources: vec![Box::new(FromTitle(titles)), Box::new(FromName)] }
    }

    /// The number of the GPU that `target`, created by `asker`, belongs to.
    pub fn ordinal(&self, asker: &Asker, target: &Target<'_>) -> Option<Ordinal> {
        let info = names::parse(target);
        for source in &self.sources {
            match source.verdict(asker, info.as_ref()) {
                Verdict::Known(ordinal) => return Some(ordinal),
                Verdict::Silent => {}
                Verdict::Unknowable => return None,
            }
        }
        None
    }
}

impl Default for Evidence {
    fn default() -> Self {
        Self::new(Titles::new("/proc"))
    }
}

/// The title of the process that asks.
struct FromTitle(Titles);

impl Source for FromTitle {
    fn verdict(&self, asker: &Asker, info: Option<&NameInfo>) -> Verdict {
        self.0.of(asker.tid).map_or(Verdict::Silent, |title| gpu_of_title(title, info))
    }
}

/// The rank in the file's name, taken for the number of a GPU.
struct FromName;

impl Source for FromName {
    fn verdict(&self, _: &Asker, info: Option<&NameInfo>) -> Verdict {
        let gpu = info.and_then(|&info| Some(Ordinal::Name { gpu: info.telling_rank()?.into(), info }));
        gpu.map_or(Verdict::Silent, Verdict::Known)
    }
}

/// The GPU of a process with this title that writes a file whose name says `info`.
///
/// Both vLLM (config/parallel.py) and SGLang give replica `dp` the GPUs from `dp * world` on, and the worker
/// with rank `r` inside the replica the one with number `r` among them. No title says how many workers a
/// replica has; most names do.
fn gpu_of_title(title: Title, info: Option<&NameInfo>) -> Verdict {
    let named = info.and_then(|info| Some((info.rank?, info.world?)));
    let shared = named.filter(|&(_, world)| world > 1);
    let several = [title.pp, title.pcp, title.tp].into_iter().flatten().count() > 1;
    let attention_dp = title.kind == Kind::SglangScheduler && title.dp.is_some();

    // The rank inside the replica, and the number of workers of a replica if that is known.
    let (rank, world) = match (title.kind, title.pp.or(title.pcp).or(title.tp)) {
        // It writes its worker's files and, in other configurations, those of all workers: if the name has no
        // rank, the file belongs to all of them.
        (Kind::VllmEngine, _) => match named {
            Some((rank, world)) => (rank, Some(world)),
            None => return Verdict::Unknowable,
        },
        // Alone in its replica.
        (_, None) => (0, Some(1)),
        // The rank is made of several, in a way that depends on their sizes: the name has done it.
        (_, Some(_)) if several => match shared {
            Some((rank, world)) if !attention_dp => (rank, Some(world)),
            _ => return Verdict::Unknowable,
        },
        // With SGLang's data-parallel attention the replicas share one tensor-parallel group, whose rank is
        // in the title and counts all GPUs. The name has the rank in the replica, which differs then.
        (Kind::SglangScheduler, Some(rank))
            if attention_dp && shared.is_some_and(|(named, _)| named != rank) =>
        {
            return known(rank.into(), title, None);
        }
        // LMCache's names say "0 of 1" with some models, and a name may be some other process's.
        (_, Some(rank)) => (rank, shared.filter(|&(named, _)| named == rank).map(|(_, world)| world)),
    };
    match (title.dp.unwrap_or(0), world) {
        (0, _) => known(rank.into(), title, None),
        (dp, Some(world)) => known(u64::from(dp) * u64::from(world) + u64::from(rank), title, Some(world)),
        (_, None) => Verdict::Unknowable,
    }
}

fn known(gpu: u64, title: Title, world: Option<u32>) -> Verdict {
    Verdict::Known(Ordinal::Title { gpu, title, world })
}

/// A GPU of this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuFound {
    number: u64,
    pci: Option<PciAddress>,
}

impl GpuFound {
    /// Its number, counted from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its PCI address, if that is known.
    pub fn pci(&self) -> Option<PciAddress> {
        self.pci
    }
}

impl Evidence {
    /// The GPU that `target`, created by `asker`, belongs to.
    pub fn gpu_of(&self, asker: &Asker, target: &Target<'_>) -> Option<GpuFound> {
        static GPUS: std::sync::OnceLock<Vec<PciAddress>> = std::sync::OnceLock::new();
        let number = self.ordinal(asker, target)?.number();
        let pci = GPUS.get_or_init(nvidia_gpus).get(usize::try_from(number).ok()?).copied();
        Some(GpuFound { number, pci })
    }
}

/// NVIDIA's GPUs in the order of their PCI addresses.
fn nvidia_gpus() -> Vec<PciAddress> {
    let devices = std::path::Path::new("/sys/bus/pci/devices");
    let names = std::fs::read_dir(devices).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_gpu = |address: &PciAddress| {
        let read =
            |what| std::fs::read_to_string(devices.join(address.to_string()).join(what)).unwrap_or_default();
        let class = read("class");
        read("vendor").trim() == "0x10de" && (class.starts_with("0x0300") || class.starts_with("0x0302"))
    };
    let mut gpus: Vec<PciAddress> =
        names.filter_map(|name| name.to_str()?.parse().ok()).filter(is_gpu).collect();
    gpus.sort();
    gpus
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(path: &str) -> Option<NameInfo> {
        names::parse(&Target { path: path.as_bytes() })
    }

    /// The GPU that a title and a name lead to; `Err` says why there is none.
    fn gpu(title: &str, path: &str) -> Result<u64, Verdict> {
        let title = Title::parse(title.as_bytes()).ok_or(Verdict::Silent)?;
        match gpu_of_title(title, info(path).as_ref()) {
            Verdict::Known(ordinal) => Ok(ordinal.number()),
            other => Err(other),
        }
    }

    const PAGE: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn vllm_workers() {
        // Without replicas the title is enough.
        assert_eq!(gpu("VLLM::Worker_TP3", "anything"), Ok(3));
        assert_eq!(gpu("VLLM::Worker_TP0", "m@1@0@ab@half.pt"), Ok(0));
        assert_eq!(gpu("VLLM::Worker_PP1", "anything"), Ok(1));
        assert_eq!(gpu("VLLM::Worker_DP0_TP3", "anything"), Ok(3));
        // Replicas of one worker.
        assert_eq!(gpu("VLLM::Worker_DP5", "m@1@0@ab@half.pt"), Ok(5));
        assert_eq!(gpu("VLLM::Worker_DP2_EP2", "anything"), Ok(2));
        // Replicas of four: GPU 7 is worker 3 of replica 1.
        assert_eq!(gpu("VLLM::Worker_DP1_TP3", "m@4@3@ab@half.pt"), Ok(7));
        assert_eq!(gpu("VLLM::Worker_DP1_PP1_TP1", "m@4@3@ab@half.pt"), Ok(7));
        assert_eq!(gpu("VLLM::Worker_PP1_TP1", "m@4@3@ab@half.pt"), Ok(3));
        // The name doesn't say how many, says "0 of 1", or isn't the worker's own.
        assert_eq!(gpu("VLLM::Worker_DP1_TP3", "anything"), Err(Verdict::Unknowable));
        assert_eq!(gpu("VLLM::Worker_DP1_TP0", "m@1@0@ab@half.pt"), Err(Verdict::Unknowable));
        assert_eq!(gpu("VLLM::Worker_DP1_TP3", "m@4@2@ab@half.pt"), Err(Verdict::Unknowable));
        assert_eq!(gpu("VLLM::Worker_PP1_TP1", "anything"), Err(Verdict::Unknowable));
        assert_eq!(gpu("VLLM::Worker_DP4294967295_TP1", "m@4294967295@1@ab.pt").map(|n| n % 7), Ok(3));
    }

    #[test]
    fn vllm_engines() {
        assert_eq!(gpu("VLLM::EngineCore_DP3", "m@1@0@ab@half.pt"), Ok(3));
        assert_eq!(gpu("VLLM::EngineCore_DP0", "m@1@0@ab@half.pt"), Ok(0));
        assert_eq!(gpu("VLLM::EngineCore_DP1", "m@4@3@ab@half.pt"), Ok(7));
        let block = "m_0123456789ab_r0/abc/de_g0/9f.bin";
        assert_eq!(gpu("VLLM::EngineCore_DP1", block), Err(Verdict::Unknowable));
        assert_eq!(gpu("VLLM::EngineCore_DP0", block), Err(Verdict::Unknowable));
        assert_eq!(gpu("VLLM::EngineCore", block), Err(Verdict::Silent));
    }

    #[test]
    fn sglang_schedulers() {
        let name = |ranks: &str| format!("{PAGE}_m{ranks}.bin");
        assert_eq!(gpu("sglang::scheduler_TP3", &name("_3_8")), Ok(3));
        assert_eq!(gpu("sglang::scheduler_TP3", ".92e8b147cac04cd698f123b918400c1b.tmp"), Ok(3));
        assert_eq!(gpu("sglang::scheduler_PP1_TP3", &name("_3_4_2_1")), Ok(7));
        // Replicas with GPUs of their own: the ranks agree.
        assert_eq!(gpu("sglang::scheduler_DP1_TP3", &name("_3_4")), Ok(7));
        assert_eq!(gpu("sglang::scheduler_DP1", &name("_0_1")), Ok(1));
        // Data-parallel attention: the title counts all GPUs, the name those of the replica.
        assert_eq!(gpu("sglang::scheduler_DP1_TP5", &name("_1_4")), Ok(5));
        // One or the other.
        assert_eq!(gpu("sglang::scheduler_DP1_TP5", &name("")), Err(Verdict::Unknowable));
        assert_eq!(gpu("sglang::scheduler_DP1_PP0_TP1", &name("_1_4_2_0")), Err(Verdict::Unknowable));
    }
}
