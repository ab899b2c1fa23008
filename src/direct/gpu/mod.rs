//! GPU memory: a worker process per GPU.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::abi::{Path, Why};
use super::engine::{Engine, Op};
use crate::index::Slot;

/// A buffer on a GPU.
pub(crate) struct GpuBuffer;

pub(crate) struct GpuOptions {
    pub(crate) enabled: bool,
    pub(crate) hipfile: bool,
    pub(crate) deadline: Duration,
}

impl Default for GpuOptions {
    fn default() -> Self {
        GpuOptions { enabled: true, hipfile: false, deadline: Duration::from_secs(30) }
    }
}

pub(crate) struct Gpus;

pub(crate) enum GpuRequest {
    Ipc { uuid: [u8; 16], handle: [u8; 64], alloc_size: u64, offset: u64, length: u64 },
    Hip { uuid: [u8; 16], handle: [u8; 64], alloc_size: u64, offset: u64, length: u64 },
    Vmm { uuid: [u8; 16], fd: OwnedFd, alloc_size: u64, offset: u64, length: u64 },
    Alloc { uuid: [u8; 16], length: u64 },
}

pub(crate) struct Granted {
    pub(crate) buffer: GpuBuffer,
    pub(crate) path: Path,
    pub(crate) why: Why,
    pub(crate) handle: Option<[u8; 64]>,
}

pub(crate) struct GpuError;

impl GpuError {
    pub(crate) fn errno(&self) -> i32 {
        libc::EOPNOTSUPP
    }

    pub(crate) fn reason(&self) -> u32 {
        Why::NoGpu.code()
    }
}

impl Gpus {
    pub(crate) fn new(_: GpuOptions) -> Arc<Gpus> {
        Arc::new(Gpus)
    }
    pub(crate) fn probe(self: &Arc<Gpus>, _: Vec<(Slot, PathBuf)>) {}
    pub(crate) fn path(&self, _: Slot) -> (Path, Why) {
        (Path::None, Why::NoGpu)
    }
    pub(crate) fn features(&self) -> u64 {
        0
    }
    pub(crate) fn register(self: &Arc<Gpus>, _: GpuRequest) -> Result<Granted, GpuError> {
        Err(GpuError)
    }
    pub(crate) fn forget(&self, _: u64) {}
}

impl Engine for Gpus {
    fn path(&self) -> Path {
        Path::Bounce
    }

    fn submit(&self, ops: Vec<Op>) {
        for op in ops {
            op.fail(libc::ENODEV);
        }
    }
}
