//! What every integration test stands on: a private place to mount things, volumes of each
//! file system, the real `kvfs` binary as a fixture, and plain syscalls with their errno.
//!
//! The tests need root, `/dev/fuse` and loop devices. Each test thread gets a mount namespace of
//! its own, so what a test mounts is invisible to the rest of the machine and goes with the test.
#![allow(dead_code, unused_imports)]

pub(crate) mod caps;
pub(crate) mod cli;
pub(crate) mod dir;
pub(crate) mod enabled;
pub(crate) mod killer;
pub(crate) mod lab;
pub(crate) mod mount;
pub(crate) mod ns;
pub(crate) mod process;
pub(crate) mod sys;
pub(crate) mod tree;
pub(crate) mod user;

pub(crate) use cli::{Outcome, kvfs};
pub(crate) use lab::{FsKind, Lab};
pub(crate) use mount::{Builder, Mount, Passthrough};
pub(crate) use nix::errno::Errno;
pub(crate) use sys::R;

/// An LMCache chunk name that `by_gpu` sends to backing `rank % n`; `i` keeps names apart.
pub(crate) fn ranked(rank: usize, i: usize) -> String {
    format!("meta-llama-Llama-3.1-8B-Instruct@8@{rank}@{:016x}@bfloat16.pt", 0x657a_aba7_09c5_0000 + i)
}

/// Bytes that differ at every offset a file system could mix up: position and seed both show.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| {
            let mut x = (i / 8).wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            x ^= x >> 31;
            x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (x >> ((i % 8) * 8)) as u8
        })
        .collect()
}
