//! The `by_gpu` policy: the files of a GPU go to the backing with its number, modulo the number of backings.
//!
//! Which GPU that is, [`Evidence`] says. What always holds: the modulus counts all backings, so that a full
//! drive moves nobody else's files; and a GPU that isn't known means hashing the name, never GPU 0.

use std::sync::Arc;

use super::hash::{by_hash, settle};
use super::{Asker, Basis, Candidate, Decision, Evidence, Policy, Target};

/// The name of the policy on the command line.
pub(super) const NAME: &str = "by_gpu";

/// GPU number modulo the number of backings.
pub struct ByGpu {
    evidence: Arc<Evidence>,
}

impl ByGpu {
    /// The policy, with this to tell who asks.
    pub fn new(evidence: Arc<Evidence>) -> Self {
        Self { evidence }
    }
}

impl Policy for ByGpu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn choose(&self, asker: &Asker, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision> {
        let Some(gpu) = self.evidence.gpu_of(asker, target) else {
            return by_hash(Basis::NoGpuKnown, target, backings);
        };
        let mapped = gpu.mapped().and_then(|slot| backings.iter().find(|backing| backing.slot == slot));
        if let Some(backing) = mapped {
            return settle(Basis::Mapped(gpu), backing, target, backings);
        }
        let index = gpu.number().checked_rem(backings.len() as u64)?;
        settle(Basis::Gpu(gpu), &backings[index as usize], target, backings)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{FakeServer, gpu_uuid};
    use super::super::{EvidenceConfig, GpuMap, Reason, rendezvous::tests::backings};
    use super::*;

    /// The policy on a server that has one process, with thread 42.
    fn with_process(title: &str) -> (ByGpu, FakeServer) {
        let server = FakeServer::new();
        server.start(42).title(title);
        (ByGpu::new(Arc::new(server.evidence())), server)
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
    fn the_operators_map_comes_before_the_number() {
        let mut four = backings(4);
        let server = FakeServer::new();
        server.gpus(4);
        server.start(42).environ("CUDA_VISIBLE_DEVICES=3");
        let paths: Vec<_> = (0..4).map(|i| format!("/nvme{i}").into()).collect();
        let gpu_map = GpuMap::parse(&[format!("{}=/nvme1", gpu_uuid(3))], &paths).unwrap();
        let policy = ByGpu::new(Arc::new(Evidence::new(EvidenceConfig { gpu_map, ..server.config() })));
        let decision = choose(&policy, "m@1@0@ab@half.pt", &four).unwrap();
        assert_eq!((decision.slot, decision.reason), (1, Reason::GpuMap));
        assert_eq!(
            decision.detail.to_string(),
            "GPU 3 from CUDA_VISIBLE_DEVICES=3 of process 42; the operator's map gives it backing 1"
        );
        // Full: as with any other preference.
        four[1].usable = false;
        let decision = choose(&policy, "m@1@0@ab@half.pt", &four).unwrap();
        assert_eq!(decision.reason, Reason::Spilled);
        assert_ne!(decision.slot, 1);
        // A backing that is no longer in the list can't be given: then it's the number.
        four.remove(1);
        let decision = choose(&policy, "m@1@0@ab@half.pt", &four).unwrap();
        assert_eq!((decision.slot, decision.reason), (0, Reason::VisibleDevices));
    }

    #[test]
    fn the_slot_is_the_lists_not_the_number() {
        let mut list = backings(4);
        list.remove(1);
        let (policy, _root) = with_process("python3\0");
        assert_eq!(choose(&policy, "m@8@1@ab@half.pt", &list).map(|d| d.slot), Some(2));
    }
}
