//! The `by_gpu` policy: the files of a GPU go to the backing with its number, modulo the number of backings.
//!
//! Which GPU that is comes from a list of [`Source`]s, the most trusted first. What always holds: the modulus
//! counts all backings, so that a full drive moves nobody else's files; and a GPU that isn't known, or is
//! known to be one that the evidence can't name, means hashing the name, never GPU 0.

use super::hash::{by_hash, settle};
use super::names::{self, NameInfo};
use super::process::{Kind, Title, Titles};
use super::{Asker, Basis, Candidate, Decision, Ordinal, Policy, Target};

/// The name of the policy on the command line.
pub(super) const NAME: &str = "by_gpu";

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

/// GPU number modulo the number of backings.
pub struct ByGpu {
    sources: Vec<Box<dyn Source>>,
}

impl ByGpu {
    /// The policy, with the processes that ask looked up in this `/proc`.
    pub fn new(titles: Titles) -> Self {
        Self { sources: vec![Box::new(FromTitle(titles)), Box::new(FromName)] }
    }

    fn ordinal(&self, asker: &Asker, target: &Target<'_>) -> Option<Ordinal> {
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

impl Default for ByGpu {
    fn default() -> Self {
        Self::new(Titles::new("/proc"))
    }
}

impl Policy for ByGpu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn choose(&self, asker: &Asker, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision> {
        let Some(ordinal) = self.ordinal(asker, target) else {
            return by_hash(Basis::NoGpuKnown, target, backings);
        };
        let index = ordinal.number().checked_rem(backings.len() as u64)?;
        settle(Basis::Ordinal(ordinal), &backings[index as usize], target, backings)
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

#[cfg(test)]
mod tests {
    use super::super::{Reason, rendezvous::tests::backings};
    use super::*;
    use std::fs;

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

    /// The policy on a `/proc` that has one process, with thread 42.
    fn with_process(title: &str) -> (ByGpu, tempfile::TempDir) {
        let root = tempfile::TempDir::new().unwrap();
        fs::create_dir(root.path().join("42")).unwrap();
        fs::write(root.path().join("42/cmdline"), title).unwrap();
        (ByGpu::new(Titles::new(root.path())), root)
    }

    fn choose(policy: &ByGpu, path: &str, backings: &[Candidate]) -> Option<Decision> {
        policy.choose(&Asker { tid: 42, uid: 0, gid: 0 }, &Target { path: path.as_bytes() }, backings)
    }

    #[test]
    fn the_title_is_trusted_before_the_name() {
        let four = backings(4);
        let (policy, _root) = with_process("VLLM::Worker_DP1_TP2\0");
        let decision = choose(&policy, "m@4@2@ab@half.pt", &four).unwrap();
        assert_eq!((decision.slot, decision.reason), (2, Reason::RankInTitle));
        assert_eq!(
            decision.detail.to_string(),
            "GPU 6 from the process title (vLLM worker, DP 1, TP 2, 4 GPUs per replica), 6 % 4 = backing 2"
        );

        let (policy, _root) = with_process("lmcache\0server\0");
        let decision = choose(&policy, "m@4@3@ab@half.pt", &four).unwrap();
        assert_eq!((decision.slot, decision.reason), (3, Reason::RankInName));
        assert_eq!(
            decision.detail.to_string(),
            "rank 3 from the file name (LMCache local_disk), 3 % 4 = backing 3"
        );
        let target = Target { path: b"m@4@3@ab@half.pt" };
        assert_eq!(
            policy.explain(&target, &four),
            "by_gpu, from the name alone: rank 3 from the file name (LMCache local_disk), 3 % 4 = backing 3"
        );
    }

    #[test]
    fn what_is_not_known_goes_to_all_backings() {
        let list = backings(4);
        let (single, _root) = with_process("VLLM::EngineCore\0");
        let (replica, _root2) = with_process("VLLM::Worker_DP1_TP0\0");
        for (policy, pattern) in
            [(&single, "m@1@0@HASH@half.pt"), (&single, "some HASH file"), (&replica, "m@1@0@HASH@half.pt")]
        {
            let mut counts = [0; 4];
            for i in 0..400 {
                let path = pattern.replace("HASH", &format!("{i:x}"));
                let decision = choose(policy, &path, &list).unwrap();
                assert_eq!(decision.reason, Reason::Hash);
                assert!(decision.detail.to_string().starts_with("which GPU isn't known; hash of the name"));
                counts[usize::from(decision.slot)] += 1;
            }
            assert!(counts.iter().all(|&n| n > 60), "{counts:?}");
        }
    }

    #[test]
    fn a_full_backing_spills_and_moves_nobody_else() {
        let mut list = backings(4);
        list[3].usable = false;
        let (policy, _root) = with_process("python3\0");
        let spilled = choose(&policy, "m@8@7@ab@half.pt", &list).unwrap();
        assert_eq!(spilled.reason, Reason::Spilled);
        assert_ne!(spilled.slot, 3);
        let wanted = format!(
            "rank 7 from the file name (LMCache local_disk), 7 % 4 = backing 3, which took no new files; \
             hash among the others = backing {}",
            spilled.slot
        );
        assert_eq!(spilled.detail.to_string(), wanted);
        for rank in [0, 1, 2, 4, 5, 6] {
            let decision = choose(&policy, &format!("m@8@{rank}@ab@half.pt"), &list).unwrap();
            assert_eq!((decision.slot, decision.reason), (rank % 4, Reason::RankInName));
        }
        list.iter_mut().for_each(|backing| backing.usable = false);
        assert_eq!(choose(&policy, "m@8@7@ab@half.pt", &list), None);
        assert_eq!(choose(&policy, "m@8@7@ab@half.pt", &[]), None);
    }

    #[test]
    fn the_slot_is_the_lists_not_the_number() {
        let mut list = backings(4);
        list.remove(1);
        let (policy, _root) = with_process("python3\0");
        assert_eq!(choose(&policy, "m@8@1@ab@half.pt", &list).map(|d| d.slot), Some(2));
    }
}
