//! What a process's title says: vLLM and SGLang give each of their processes one that holds its ranks.
//!
//! Both overwrite their command line with it (`setproctitle`; vLLM v1/executor/multiproc_executor.py, SGLang
//! srt/managers/scheduler.py), and with it their environment. What always holds: a rank is only believed where
//! the title fits as a whole, and a title that leaves the number of workers open isn't guessed from.

use std::fmt;

use super::Verdict;
use crate::placement::Ordinal;
use crate::placement::names::NameInfo;

/// What kind of process a [`Title`] belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// vLLM's `Worker`: it serves one GPU.
    VllmWorker,
    /// vLLM's `EngineCore`: it serves one GPU if its replica has only one, and else writes for several.
    VllmEngine,
    /// SGLang's `scheduler`: it serves one GPU.
    SglangScheduler,
}

/// The title of a process that says something about GPUs. Ranks are counted from 0; one that the title
/// doesn't mention belongs to a dimension of size one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Title {
    /// What kind of process it is.
    pub kind: Kind,
    /// Which data-parallel replica (`DP`).
    pub dp: Option<u32>,
    /// Which pipeline stage (`PP`).
    pub pp: Option<u32>,
    /// Which prefill-context-parallel rank (`PCP`; vLLM only).
    pub pcp: Option<u32>,
    /// Which tensor-parallel rank (`TP`).
    pub tp: Option<u32>,
}

impl Title {
    /// Reads a process title such as `VLLM::Worker_DP1_TP3` or `sglang::scheduler_TP0`.
    ///
    /// `None` for every other process, and for one of these whose title has no rank: that belongs to a
    /// server with a single GPU per replica and a single replica, and says nothing of which GPU it is.
    pub fn parse(title: &[u8]) -> Option<Self> {
        let at = title.windows(2).rposition(|w| w == b"::")?;
        // VLLM_PROCESS_NAME_PREFIX replaces the `VLLM`, with anything.
        let (prefix, name) = (&title[..at], &title[at + 2..]);
        let mut fields = name.split(|&b| b == b'_');
        let kind = match fields.next()? {
            b"Worker" => Kind::VllmWorker,
            b"EngineCore" => Kind::VllmEngine,
            b"scheduler" if prefix == b"sglang" => Kind::SglangScheduler,
            _ => return None,
        };
        let mut read = Self { kind, dp: None, pp: None, pcp: None, tp: None };
        let mut qualified = false;
        for field in fields {
            let letters = field.iter().take_while(|b| b.is_ascii_alphabetic()).count();
            let (dimension, number) = field.split_at(letters);
            // `MOE_DP1` and `ATTN_CP1` are other dimensions than `DP1` and `CP1`.
            let of_its_own = !std::mem::replace(&mut qualified, number.is_empty());
            let place = match dimension {
                b"DP" => &mut read.dp,
                b"PP" => &mut read.pp,
                b"PCP" => &mut read.pcp,
                b"TP" => &mut read.tp,
                // `DCP`, `EP` and the like divide the workers that the others count already.
                _ => continue,
            };
            if of_its_own && !number.is_empty() {
                *place = Some(std::str::from_utf8(number).ok()?.parse().ok()?);
            }
        }
        let says_something = read.dp.or(read.pp).or(read.pcp).or(read.tp).is_some();
        says_something.then_some(read)
    }
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::VllmWorker => "vLLM worker",
            Kind::VllmEngine => "vLLM engine",
            Kind::SglangScheduler => "SGLang scheduler",
        })?;
        for (name, rank) in [("DP", self.dp), ("PP", self.pp), ("PCP", self.pcp), ("TP", self.tp)] {
            if let Some(rank) = rank {
                write!(f, ", {name} {rank}")?;
            }
        }
        Ok(())
    }
}

/// The GPU of a process with this title that writes a file whose name says `info`, counted among those that
/// the process's server sees.
///
/// Both vLLM (config/parallel.py) and SGLang give replica `dp` the GPUs from `dp * world` on, and the worker
/// with rank `r` inside the replica the one with number `r` among them. No title says how many workers a
/// replica has; most names do.
pub(super) fn gpu_of_title(title: Title, info: Option<&NameInfo>) -> Verdict {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Target, names};
    use proptest::prelude::*;

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

    fn title(kind: Kind, ranks: [Option<u32>; 4]) -> Option<Title> {
        let [dp, pp, pcp, tp] = ranks;
        Some(Title { kind, dp, pp, pcp, tp })
    }

    #[test]
    fn titles_of_the_clients() {
        use Kind::{SglangScheduler, VllmEngine, VllmWorker};
        let cases = [
            ("VLLM::Worker_TP3", title(VllmWorker, [None, None, None, Some(3)])),
            ("VLLM::Worker_DP1_TP3", title(VllmWorker, [Some(1), None, None, Some(3)])),
            (
                "VLLM::Worker_DP1_PP2_PCP0_TP3_DCP1_EP7",
                title(VllmWorker, [Some(1), Some(2), Some(0), Some(3)]),
            ),
            ("VLLM::Worker_DP2_EP2", title(VllmWorker, [Some(2), None, None, None])),
            ("VLLM::EngineCore_DP5", title(VllmEngine, [Some(5), None, None, None])),
            ("my::own prefix_TP7::Worker_TP3", title(VllmWorker, [None, None, None, Some(3)])),
            ("sglang::scheduler_TP3", title(SglangScheduler, [None, None, None, Some(3)])),
            ("sglang::scheduler_DP1_PP0_TP5_EP5", title(SglangScheduler, [Some(1), Some(0), None, Some(5)])),
            (
                "sglang::scheduler_DP1_ATTN_CP1_MOE_DP3_TP5",
                title(SglangScheduler, [Some(1), None, None, Some(5)]),
            ),
        ];
        for (text, wanted) in cases {
            assert_eq!(Title::parse(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn other_processes_say_nothing() {
        for text in [
            "",
            "::",
            "VLLM::Worker",
            "VLLM::EngineCore",
            "VLLM::APIServer_1",
            "VLLM::DPCoordinator",
            "sglang::scheduler",
            "sglang::detokenizer_TP1",
            "other::scheduler_TP1",
            "ray::Worker.run_TP1",
            "ray::RayWorkerWrapper_TP1",
            "lmcache server",
            "/usr/bin/python3",
            "Worker_TP3",
            "VLLM::Worker_TP",
            "VLLM::Worker_TP4294967296",
            "VLLM::Worker_TP-1",
            "VLLM::Worker_TP3x",
        ] {
            assert_eq!(Title::parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(title in "(VLLM|sglang|:|\\PC){0,3}::(Worker|scheduler)(_|DP|PCP|TP|[0-9]|\\PC){0,12}") {
            Title::parse(title.as_bytes());
        }
    }
}
