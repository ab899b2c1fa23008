//! GPU memory on real mounts, with stand-ins for the GPU's libraries (`tests/gpu/standin`): what is moved to
//! and from it is compared with plain reads and writes. They prove the protocol and the bookkeeping, not the GPU.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "gpu/crash.rs"]
mod crash;
#[path = "gpu/machine.rs"]
mod machine;
#[path = "gpu/mounts.rs"]
mod mounts;
#[path = "gpu/real.rs"]
mod real;
#[path = "gpu/standin.rs"]
mod standin;
