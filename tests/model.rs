//! The whole of `fs/` against a model of a POSIX tree, in this process and without a mount.
//!
//! `model/model.rs` says what should happen, `model/ops.rs` makes up what is done, `model/harness.rs` and
//! `model/steps.rs` do it to both sides, `model/check.rs` compares everything there is; `model/stress.rs` lets
//! threads loose on a few names. `model/cases.rs` has, by hand, what was found to go wrong.
#![allow(clippy::unwrap_used)]

#[path = "model/behind.rs"]
mod behind;
#[path = "model/cases.rs"]
mod cases;
#[path = "model/check.rs"]
mod check;
#[path = "model/harness.rs"]
mod harness;
#[path = "model/model.rs"]
mod model;
#[path = "model/ops.rs"]
mod ops;
#[path = "model/steps.rs"]
mod steps;
#[path = "model/stress.rs"]
mod stress;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn config() -> ProptestConfig {
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/regressions.txt");
    // `PROPTEST_CASES` lets it run for longer.
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(300),
        max_shrink_iters: 3000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn behaves_as_one_posix_tree(steps in ops::steps()) {
        harness::run(&steps)?;
    }
}
