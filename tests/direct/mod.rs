//! One file for each topic; `raw` makes the calls, `process` other clients, `frozen` backings that stand still.

mod abi;
mod access;
mod append;
mod buffers;
mod calls;
mod coherence;
mod engine;
mod frozen;
mod fuzz;
mod hostile;
mod locate;
mod many;
mod prefix;
mod process;
mod raw;
mod sending;
mod socket;
mod stall;
mod storm;
mod truncation;

/// Both ways that data of plain reads and writes can take.
macro_rules! both {
    ($($case:ident),* $(,)?) => {
        mod auto { $(#[test] fn $case() { super::$case(crate::common::Passthrough::Auto); })* }
        mod off { $(#[test] fn $case() { super::$case(crate::common::Passthrough::Off); })* }
    };
}
use both;
