//! What holds for every policy, whatever the backings, the names and those who ask.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use uuid::Uuid;

use super::nearest::tests::on;
use super::topology::tests::{Machine, all_names, device};
use super::*;

static MACHINE: LazyLock<Machine> = LazyLock::new(Machine::new);

/// Each policy of the table, and `nearest` on a machine that has something near.
fn policies() -> Vec<Box<dyn Policy>> {
    let evidence = || {
        let none = std::path::PathBuf::from("/nonexistent");
        let nothing = EvidenceConfig {
            proc_root: none.clone(),
            driver_root: none.clone(),
            nvml: Some(none),
            ..EvidenceConfig::default()
        };
        Arc::new(Evidence::new(nothing))
    };
    let mut all: Vec<_> = POLICIES.iter().map(|(_, make)| make(&evidence())).collect();
    for gpu in ["0000:04:00.0", "0000:85:00.0"] {
        all.push(Box::new(on(&MACHINE, Some(gpu))));
    }
    all
}

/// Whether a policy answers the same question the same way, and whatever the order of the list is.
fn answers_are_fixed(policy: &dyn Policy) -> bool {
    policy.name() != "round-robin"
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let free = prop_oneof![Just(0), 0..1_000_000_000_u64, any::<u64>(), Just(u64::MAX)];
    let weight = prop_oneof![Just(0), Just(1_000_000_000_000), any::<u64>()];
    let device = prop_oneof![select(all_names()).prop_map(device), 0..1000_u64, any::<u64>()];
    (any::<u128>(), weight, free, device, prop::bool::weighted(0.7)).prop_map(
        |(id, weight, free, device, usable)| {
            let id = Uuid::from_u128(id);
            Candidate { slot: 0, id, weight, free, device, usable }
        },
    )
}

/// Backings in the order of the list; their slots needn't be without gaps.
fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    (vec(candidate(), 0..12), 0..50_u8).prop_map(|(mut list, first)| {
        let mut seen = HashSet::new();
        list.retain(|candidate| seen.insert(candidate.id));
        (first..).zip(&mut list).for_each(|(slot, candidate)| candidate.slot = slot);
        list
    })
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let grammars = select(vec![
        "m@8@R@HASH@bfloat16.pt",
        "m@1@0@HASH@half.pt",
        "73/12/m%408%40R%40HASH%40half.kvcache.safetensors.tmp0123abcd",
        "73/12/m%408%40R%40HASH%40half.kvcache.safetensors.metadata",
        "m@0x080R080R@0@HASH.data",
        "HASH_Qwen-Qwen3-8B_R_8.bin",
        "m_0123456789ab_r0/abc/de_g0/HASH.bin_17.tmp",
        "some HASH file",
    ]);
    let known = (grammars, 0..8_u32, vec(any::<u64>(), 4)).prop_map(|(grammar, rank, hash)| {
        let hash = hash.iter().fold(String::new(), |mut text, part| {
            let _ = write!(text, "{part:016x}");
            text
        });
        grammar.replace("HASH", &hash).replace('R', &rank.to_string()).into_bytes()
    });
    prop_oneof![3 => known, 1 => vec(any::<u8>(), 0..40)]
}

/// Nobody to be seen, this process, and ids of nobody.
fn asker() -> impl Strategy<Value = Asker> {
    let tid = prop_oneof![Just(0), Just(std::process::id()), (1 << 23..=u32::MAX)];
    (tid, any::<u32>(), any::<u32>()).prop_map(|(tid, uid, gid)| Asker { tid, uid, gid })
}

proptest! {
    #[test]
    fn a_usable_backing_is_chosen_and_no_other(
        list in candidates(),
        questions in vec((asker(), path()), 1..20),
    ) {
        let usable: HashSet<u8> = list.iter().filter(|c| c.usable).map(|c| c.slot).collect();
        for policy in policies() {
            for (asker, path) in &questions {
                let target = Target { path };
                let decision = policy.choose(asker, &target, &list);
                prop_assert_eq!(decision.is_some(), !usable.is_empty(), "{}", policy.name());
                if let Some(decision) = decision {
                    prop_assert!(usable.contains(&decision.slot), "{}: {decision:?}", policy.name());
                    let words = decision.detail.to_string();
                    let ending = format!(" = backing {}", decision.slot);
                    prop_assert!(words.ends_with(&ending), "{words}");
                    prop_assert_eq!(Reason::from_code(decision.reason.code()), Some(decision.reason));
                }
                prop_assert!(policy.explain(&target, &list).starts_with(policy.name()));
            }
        }
    }

    #[test]
    fn answers_that_are_fixed_stay_the_same(
        list in candidates(),
        asker in asker(),
        path in path(),
        swaps in vec(any::<(Index, Index)>(), 12),
        others in vec(path(), 3),
    ) {
        let mut shuffled = list.clone();
        if !list.is_empty() {
            for (a, b) in swaps {
                shuffled.swap(a.index(list.len()), b.index(list.len()));
            }
        }
        for policy in policies().into_iter().filter(|policy| answers_are_fixed(&**policy)) {
            let target = Target { path: &path };
            let first = policy.choose(&asker, &target, &list);
            for other in &others {
                policy.choose(&asker, &Target { path: other }, &list);
            }
            prop_assert_eq!(policy.choose(&asker, &target, &list), first, "{}", policy.name());
            // The list's order is by_gpu's rule.
            if policy.name() != "by_gpu" {
                let slot = |decision: Option<Decision>| decision.map(|d| (d.slot, d.reason));
                let again = policy.choose(&asker, &target, &shuffled);
                prop_assert_eq!(slot(again), slot(first), "{}", policy.name());
            }
        }
    }

    /// What one backing's being unusable changes: of files that the rule places by name, its own alone.
    #[test]
    fn an_unusable_backing_moves_only_its_own(
        mut list in candidates(),
        asker in asker(),
        paths in vec(path(), 1..20),
        out in any::<Index>(),
    ) {
        prop_assume!(list.len() > 1);
        list.iter_mut().for_each(|c| c.usable = true);
        let mut fewer = list.clone();
        let out = out.index(list.len());
        fewer[out].usable = false;
        for policy in policies() {
            if !answers_are_fixed(&*policy) || policy.name() == "most-free" {
                continue;
            }
            for path in &paths {
                let target = Target { path };
                let before = policy.choose(&asker, &target, &list).expect("all are usable");
                let after = policy.choose(&asker, &target, &fewer).expect("one is usable");
                let moved = before.slot == list[out].slot;
                prop_assert_eq!(after.reason == Reason::Spilled, moved, "{}", policy.name());
                prop_assert!(moved || after == before, "{}: {before:?} {after:?}", policy.name());
            }
        }
    }

    /// Over any stretch, whatever becomes unusable in it: those that stay usable get equally many.
    #[test]
    fn round_robin_is_fair(
        list in candidates(),
        steps in vec((any::<Index>(), any::<bool>(), 1..20_usize), 1..10),
    ) {
        prop_assume!(!list.is_empty());
        let policy = RoundRobin::new();
        let mut now = list.clone();
        let mut counts = vec![0_u32; list.len()];
        let steady = |list: &[Candidate], now: &[Candidate], steps: &[(Index, bool, usize)]| -> Vec<usize> {
            let touched: HashSet<usize> = steps.iter().map(|(which, ..)| which.index(list.len())).collect();
            (0..list.len()).filter(|i| now[*i].usable && !touched.contains(i)).collect()
        };
        let steady = steady(&list, &now, &steps);
        for (which, usable, files) in &steps {
            now[which.index(list.len())].usable = *usable;
            for _ in 0..*files {
                if let Some(decision) = policy.choose(&Asker::default(), &Target { path: b"a" }, &now) {
                    counts[usize::from(decision.slot - list[0].slot)] += 1;
                }
            }
        }
        let of_steady = || steady.iter().map(|i| counts[*i]);
        let (least, most) = (of_steady().min().unwrap_or(0), of_steady().max().unwrap_or(0));
        prop_assert!(most - least <= 1, "{counts:?}, of which {steady:?} were always usable");
    }
}

/// A million names, as the clients write them.
fn real_names() -> impl Iterator<Item = String> {
    (0..1_000_000_u64).map(|i| {
        // Hashes of tokens are as good as random.
        let hash = xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes());
        let long = format!("{hash:016x}{i:016x}{hash:016x}{:016x}", !hash);
        let (rank, layer) = (i % 8, i % 32);
        match hash % 6 {
            0 => format!("meta-llama-Llama-3.1-8B-Instruct@8@{rank}@{hash:x}@bfloat16.pt"),
            1 => format!("Qwen-Qwen3-8B@2@1@{hash:x}@half@{layer}@user%alice.pt"),
            2 => format!("73/12/m%408%40{rank}%40{hash:x}%40half.kvcache.safetensors.tmp72ec72f3"),
            3 => format!("meta-llama-SEP-Llama-3.1-8B-Instruct@0x080{rank}080{rank}@0@{long}.data"),
            4 => format!("{long}_meta-llama-Llama-3.1-8B-Instruct_{rank}_8.bin"),
            _ => format!("m_0123456789ab_r{rank}/{}/{}_g0/{long}.bin", &long[..3], &long[3..5]),
        }
    })
}

#[test]
fn a_million_names_are_spread_evenly_and_a_ninth_backing_takes_a_ninth() {
    let nine = rendezvous::tests::backings(9);
    let slot = |path: &str, list: &[Candidate]| {
        let decision = Hash.choose(&Asker::default(), &Target { path: path.as_bytes() }, list);
        usize::from(decision.expect("all are usable").slot)
    };
    let (mut counts, mut to_the_ninth) = ([0_u32; 8], 0_u32);
    for (i, name) in real_names().enumerate() {
        let of_eight = slot(&name, &nine[..8]);
        counts[of_eight] += 1;
        if i % 10 == 0 {
            let of_nine = slot(&name, &nine);
            assert!(of_nine == of_eight || of_nine == 8, "{name} went from {of_eight} to {of_nine}");
            to_the_ninth += u32::from(of_nine == 8);
        }
    }
    assert!(counts.iter().all(|n| (f64::from(*n) / 125_000.0 - 1.0).abs() < 0.015), "{counts:?}");
    // 11111, with a deviation of 99.
    assert!((10_611..=11_611).contains(&to_the_ninth), "{to_the_ninth}");
}
