//! The `nearest` policy: each new file goes to the backing that is closest to the GPU it belongs to.
//!
//! Which GPU that is, [`Evidence`] says; how far a backing is from it, [`Topology`]. Where the GPU isn't known,
//! the NUMA node that the asking thread is bound to counts, and where that isn't known either, the name's hash.
//! What always holds: backings that are equally near share the files by the hash of the name, so for one GPU a
//! name has one answer; and a backing that takes no new files moves only its own, to the nearest of the others.

use std::sync::Arc;

use super::hash::by_hash;
use super::topology::{Distance, Origin, Topology};
use super::{Asker, Basis, Candidate, Decision, Evidence, Policy, Target, names, rendezvous};

/// The name of the policy on the command line.
pub(super) const NAME: &str = "nearest";

type GpuOf = dyn Fn(&Asker, &Target<'_>) -> Option<Origin> + Send + Sync;

/// The closest by PCIe and NUMA.
pub struct Nearest {
    gpu_of: Box<GpuOf>,
    topology: Topology,
}

impl Nearest {
    /// The policy, with this to tell who asks.
    pub fn new(evidence: Arc<Evidence>) -> Self {
        let gpu_of = move |asker: &Asker, target: &Target<'_>| {
            let gpu = evidence.gpu_of(asker, target)?;
            Some(Origin::Gpu { number: gpu.number(), pci: gpu.pci()? })
        };
        Self { gpu_of: Box::new(gpu_of), topology: Topology::new("/sys") }
    }

    /// From where to measure, and how far it is from there to each backing: to one of them at least that's known.
    fn distances(
        &self,
        asker: &Asker,
        target: &Target<'_>,
        backings: &[Candidate],
    ) -> Option<(Origin, Vec<Distance>)> {
        let from = |origin: Origin| {
            let to = |backing: &Candidate| self.topology.distance(origin, backing.device, backing.id);
            let distances: Vec<Distance> = backings.iter().map(to).collect();
            distances.iter().any(|distance| *distance != Distance::Unknown).then_some((origin, distances))
        };
        let bound_to = || Some(Origin::Processors { node: self.topology.node_of(asker.tid)? });
        (self.gpu_of)(asker, target).and_then(from).or_else(|| bound_to().and_then(from))
    }
}

/// The nearest of these, and how near it is.
fn nearest<'a>(
    target: &Target<'_>,
    backings: impl Iterator<Item = (&'a Candidate, &'a Distance)> + Clone,
) -> Option<(Distance, &'a Candidate)> {
    let least = *backings.clone().map(|(_, distance)| distance).min()?;
    let nearest = backings.filter(|(_, distance)| **distance == least).map(|(backing, _)| backing);
    Some((least, rendezvous::choose(names::key(target.name()), nearest)?))
}

impl Policy for Nearest {
    fn name(&self) -> &'static str {
        NAME
    }

    fn choose(&self, asker: &Asker, target: &Target<'_>, backings: &[Candidate]) -> Option<Decision> {
        let Some((origin, distances)) = self.distances(asker, target, backings) else {
            return by_hash(Basis::NearestUnknown, target, backings);
        };
        let all = backings.iter().zip(&distances);
        let (distance, preferred) = nearest(target, all.clone())?;
        let basis = Basis::Nearest { origin, distance };
        if preferred.usable {
            return Some(Decision::preferred(basis, preferred.slot, backings.len()));
        }
        let (_, taken) = nearest(target, all.filter(|(backing, _)| backing.usable))?;
        Some(Decision::spilled(basis, preferred.slot, taken.slot, backings.len()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::topology::tests::{Machine, device};
    use super::super::{Reason, rendezvous::tests::backings};
    use super::*;

    /// The policy on such a machine, with files that all belong to the GPU at this address.
    pub(in crate::placement) fn on(machine: &Machine, gpu: Option<&str>) -> Nearest {
        let origin = gpu.map(|pci| Origin::Gpu { number: 3, pci: pci.parse().expect("an address") });
        Nearest { gpu_of: Box::new(move |_, _| origin), topology: machine.topology() }
    }

    /// Backings on the disks with these names.
    fn on_disks(names: &[&str]) -> Vec<Candidate> {
        let mut list = backings(names.len() as u8);
        list.iter_mut().zip(names).for_each(|(backing, name)| backing.device = device(name));
        list
    }

    fn choose(policy: &Nearest, i: usize, backings: &[Candidate]) -> Decision {
        let path = format!("dir/chunk-{i}.pt");
        let target = Target { path: path.as_bytes() };
        policy.choose(&Asker::default(), &target, backings).expect("one is usable")
    }

    fn counts<const N: usize>(policy: &Nearest, backings: &[Candidate]) -> [u32; N] {
        let mut counts = [0; N];
        (0..600).for_each(|i| counts[usize::from(choose(policy, i, backings).slot)] += 1);
        counts
    }

    #[test]
    fn the_nearest_of_all() {
        let machine = Machine::new();
        let policy = on(&machine, Some("0000:04:00.0"));
        let list = on_disks(&["loop0", "nvme3n1", "nvme0n1", "nvme1n1"]);
        assert_eq!(counts(&policy, &list), [0, 0, 600, 0]);
        let decision = choose(&policy, 0, &list);
        assert_eq!(decision.reason, Reason::Nearest);
        assert_eq!(decision.detail.to_string(), "same PCIe switch as GPU 3 (0000:04:00.0) = backing 2");
        let target = Target { path: b"a" };
        assert_eq!(
            policy.explain(&target, &list),
            "nearest, from the name alone: same PCIe switch as GPU 3 (0000:04:00.0) = backing 2"
        );
        // Where no distance is short, the one that's known.
        let list = on_disks(&["loop0", "nvme3n1", "nvme4n1"]);
        let detail = choose(&policy, 0, &list).detail.to_string();
        assert_eq!(detail, "not the same NUMA node as GPU 3 (0000:04:00.0) = backing 1");
    }

    #[test]
    fn the_equally_near_share_by_hash_and_spill_to_the_nearest() {
        let machine = Machine::new();
        let policy = on(&machine, Some("0000:04:00.0"));
        let mut list = on_disks(&["nvme1n1", "nvme3n1", "nvme1n1p1", "nvme2n1"]);
        let before: Vec<Decision> = (0..600).map(|i| choose(&policy, i, &list)).collect();
        let shares = counts::<4>(&policy, &list);
        assert!(shares[0] > 250 && shares[2] > 250 && shares[1] + shares[3] == 0, "{shares:?}");
        list[2].usable = false;
        for (i, before) in before.iter().enumerate() {
            let after = choose(&policy, i, &list);
            let reason = if before.slot == 2 { Reason::Spilled } else { Reason::Nearest };
            assert_eq!((after.slot, after.reason), (0, reason));
        }
        // The next class, and not just any of the others.
        list[0].usable = false;
        assert_eq!(counts(&policy, &list), [0, 0, 0, 600]);
        let detail = choose(&policy, 0, &list).detail.to_string();
        assert!(
            detail.contains("which took no new files; the nearest of the others = backing 3"),
            "{detail}"
        );
        list.iter_mut().for_each(|backing| backing.usable = false);
        assert_eq!(policy.choose(&Asker::default(), &Target { path: b"a" }, &list), None);
        assert_eq!(policy.choose(&Asker::default(), &Target { path: b"a" }, &[]), None);
    }

    #[test]
    fn nothing_known_is_a_hash() {
        let machine = Machine::new();
        let near = on_disks(&["nvme0n1", "nvme1n1", "nvme2n1", "nvme3n1"]);
        let unknown = on_disks(&["loop0", "nvme4n1", "gone", "loop0"]);
        for (gpu, list) in [(None, &near), (Some("0000:ee:00.0"), &near), (Some("0000:04:00.0"), &unknown)] {
            let policy = on(&machine, gpu);
            for i in 0..100 {
                let path = format!("dir/chunk-{i}.pt");
                let hashed =
                    super::super::Hash.choose(&Asker::default(), &Target { path: path.as_bytes() }, list);
                let decision = choose(&policy, i, list);
                assert_eq!((Some(decision.slot), decision.reason), (hashed.map(|d| d.slot), Reason::Hash));
                let detail = decision.detail.to_string();
                assert!(detail.starts_with("which is nearest isn't known; hash of the name ="), "{detail}");
            }
        }
    }

    #[test]
    fn without_a_gpu_the_node_that_the_thread_is_bound_to() {
        let mut machine = Machine::new();
        let list = on_disks(&["nvme0n1", "nvme3n1"]);
        for node in [1, 0] {
            machine.bind_this_thread_to(node);
            let (policy, wanted) = (on(&machine, None), if node == 1 { 1 } else { 0 });
            let asker =
                Asker { tid: rustix::thread::gettid().as_raw_pid().unsigned_abs(), ..Asker::default() };
            let decision = policy.choose(&asker, &Target { path: b"a" }, &list).expect("all are usable");
            assert_eq!((decision.slot, decision.reason), (wanted, Reason::Nearest));
            let detail = decision.detail.to_string();
            let text = format!("same NUMA node as the process, which is bound to node {node} =");
            assert!(detail.contains(&text), "{detail}");
            // A GPU that's known counts more.
            let policy = on(&machine, Some("0000:04:00.0"));
            let slot = policy.choose(&asker, &Target { path: b"a" }, &list).map(|d| d.slot);
            assert_eq!(slot, Some(0));
        }
    }
}
