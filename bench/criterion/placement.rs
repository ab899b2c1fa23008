//! What it costs to decide where a new file goes: each policy, over 8 backings, for an LMCache chunk's name.
//!
//! `by_gpu` is asked for a rank in the name, which is what is left when nobody is known by process; and for a name that
//! says nothing, which ends in its hash. The caller is this process: it's looked up, as at every CREATE.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use kvfs::placement::{Asker, Candidate, Evidence, Policies, Target, names};
use uuid::Uuid;

const RANKED: &[u8] = b"meta-llama-Llama-3.1-8B-Instruct@8@3@657aaba709c54b87@bfloat16.pt";
const PLAIN: &[u8] = b"a-file-of-somebody-else-0123456789abcdef";

fn backings() -> Vec<Candidate> {
    let of = |slot: u8| Candidate {
        slot,
        id: Uuid::from_u128(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834 ^ u128::from(slot)),
        weight: 3_840_000_000_000,
        free: 1_000_000_000_000 + (u64::from(slot) << 30),
        device: u64::from(slot) + 1,
        usable: true,
    };
    (0..8).map(of).collect()
}

fn decide(c: &mut Criterion) {
    let (backings, policies) = (backings(), Policies::new("by_gpu", Arc::new(Evidence::default())).unwrap());
    let asker = Asker { tid: std::process::id(), uid: 0, gid: 0 };
    let mut group = c.benchmark_group("placement");
    for policy in ["by_gpu", "hash", "round-robin", "most-free", "nearest"] {
        for (what, path) in [("a rank in the name", RANKED), ("no rank", PLAIN)] {
            let (policy, target) = (policies.get(policy).unwrap(), Target { path });
            assert!(policy.choose(&asker, &target, &backings).is_some());
            group.bench_function(format!("{}, {what}", policy.name()), |b| {
                b.iter(|| policy.choose(black_box(&asker), black_box(&target), black_box(&backings)));
            });
        }
    }
    group
        .bench_function("a name's grammar", |b| b.iter(|| names::parse(black_box(&Target { path: RANKED }))));
}

criterion_group!(benches, decide);
criterion_main!(benches);
