//! Buffers in GPU memory, by what the CUDA driver gives out for sharing it. No CUDA library is used here.
//!
//! What always holds: the daemon writes into the memory only while a READ is under way; a client keeps the
//! allocation until the [`Registered`] is gone, and synchronises its stream before a WRITE, since the daemon
//! can't see it.

use std::os::fd::BorrowedFd;

use super::error::Error;
use super::mount::Mount;
use super::registered::{Access, Registered};
use crate::direct::abi::{self, kind};

/// A GPU: what `cuDeviceGetUuid_v2` says.
pub type GpuUuid = [u8; 16];

/// A region of an allocation of `cudaMalloc` or `cuMemAlloc`.
#[derive(Clone, Copy, Debug)]
pub struct CudaIpc {
    /// From `cuIpcGetMemHandle` of the allocation's start.
    pub handle: [u8; 64],
    /// The GPU it's on.
    pub gpu: GpuUuid,
    /// Where the region begins in the allocation, in bytes (see `cuMemGetAddressRange`).
    pub offset: u64,
    /// Bytes of the region.
    pub length: u64,
    /// Bytes of the allocation.
    pub alloc_size: u64,
}

/// A region of a VMM allocation (`cuMemCreate`).
#[derive(Clone, Copy, Debug)]
pub struct CudaVmm<'a> {
    /// From `cuMemExportToShareableHandle` with `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
    pub fd: BorrowedFd<'a>,
    /// The GPU it's on.
    pub gpu: GpuUuid,
    /// Where the region begins in the allocation, in bytes.
    pub offset: u64,
    /// Bytes of the region.
    pub length: u64,
    /// Bytes of the allocation.
    pub alloc_size: u64,
}

impl Mount {
    /// Registers a region of GPU memory that has an IPC handle.
    pub fn register_cuda_ipc(&self, region: &CudaIpc, access: Access) -> Result<Registered, Error> {
        let wanted = abi::RegBuf {
            kind: kind::CUDA_IPC,
            flags: access.bits(),
            length: region.length,
            offset: region.offset,
            alloc_size: region.alloc_size,
            gpu_uuid: region.gpu,
            handle: region.handle,
            ..Default::default()
        };
        self.register_with(wanted, None).map(|(registered, _)| registered)
    }

    /// Registers a region of GPU memory that was made to be shared by a descriptor.
    pub fn register_cuda_vmm(&self, region: &CudaVmm<'_>, access: Access) -> Result<Registered, Error> {
        let wanted = abi::RegBuf {
            kind: kind::CUDA_VMM_FD,
            flags: access.bits(),
            length: region.length,
            offset: region.offset,
            alloc_size: region.alloc_size,
            gpu_uuid: region.gpu,
            ..Default::default()
        };
        self.register_with(wanted, Some(region.fd)).map(|(registered, _)| registered)
    }

    /// Has the daemon allocate `length` bytes on a GPU, where it can let the drive write without a copy. The
    /// handle is for `cuIpcOpenMemHandle`; close it before the registration is dropped.
    pub fn allocate_on_gpu(
        &self,
        gpu: GpuUuid,
        length: u64,
        access: Access,
    ) -> Result<(Registered, [u8; 64]), Error> {
        let wanted = abi::RegBuf {
            kind: kind::DAEMON_ALLOC,
            flags: access.bits(),
            length,
            gpu_uuid: gpu,
            ..Default::default()
        };
        self.register_with(wanted, None).map(|(registered, answer)| (registered, answer.handle))
    }
}
