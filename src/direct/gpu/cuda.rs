//! CUDA's driver interface.
//!
//! What always holds: what `device` says. The library and the types are cudarc's; its functions aren't used,
//! because they return an `enum`, in which a code of a newer driver is undefined behaviour, and panic where
//! an older driver lacks one. All types used here are the same since CUDA 11, so it doesn't matter which
//! version cudarc is built for.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};

use cudarc::driver::sys;
use uuid::Uuid;

use super::device::{Address, Device, Fault, Handle, OpenError, Stream, call, check, functions};

functions! {
    /// cuda.h, with the versions that its names stand for.
    Functions {
        init = "cuInit": fn(u32);
        count = "cuDeviceGetCount": fn(*mut i32);
        get = "cuDeviceGet": fn(*mut i32, i32);
        // The first knows MIG instances; it came with CUDA 11.4.
        uuid = "cuDeviceGetUuid_v2" | "cuDeviceGetUuid": fn(*mut [u8; 16], i32);
        retain = "cuDevicePrimaryCtxRetain": fn(*mut *mut c_void, i32);
        set_current = "cuCtxSetCurrent": fn(*mut c_void);
        alloc = "cuMemAlloc_v2": fn(*mut u64, usize);
        free = "cuMemFree_v2": fn(u64);
        memset = "cuMemsetD8_v2": fn(u64, u8, usize);
        context_sync = "cuCtxSynchronize": fn();
        export = "cuIpcGetMemHandle": fn(*mut sys::CUipcMemHandle_st, u64);
        open = "cuIpcOpenMemHandle_v2": fn(*mut u64, sys::CUipcMemHandle_st, u32);
        close = "cuIpcCloseMemHandle": fn(u64);
        import = "cuMemImportFromShareableHandle": fn(*mut u64, *mut c_void, u32);
        release = "cuMemRelease": fn(u64);
        reserve = "cuMemAddressReserve": fn(*mut u64, usize, usize, u64, u64);
        unreserve = "cuMemAddressFree": fn(u64, usize);
        map = "cuMemMap": fn(u64, usize, usize, u64, u64);
        unmap = "cuMemUnmap": fn(u64, usize);
        set_access = "cuMemSetAccess": fn(u64, usize, *const sys::CUmemAccessDesc_st, usize);
        extent = "cuMemGetAddressRange_v2": fn(*mut u64, *mut usize, u64);
        pin = "cuMemHostRegister_v2": fn(*mut c_void, usize, u32);
        stream = "cuStreamCreate": fn(*mut *mut c_void, u32);
        sync = "cuStreamSynchronize": fn(*mut c_void);
        to_device = "cuMemcpyHtoDAsync_v2": fn(u64, *const c_void, usize, *mut c_void);
        to_host = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, u64, usize, *mut c_void);
        within = "cuMemcpyDtoDAsync_v2": fn(u64, u64, usize, *mut c_void);
    }
}

/// CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
const LAZY_PEER_ACCESS: u32 = 1;
/// CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
const POSIX_FD: u32 = 1;
/// CU_MEMHOSTREGISTER_PORTABLE: pinned for every context, whichever thread asks.
const PORTABLE: u32 = 1;
/// CU_STREAM_NON_BLOCKING: doesn't wait for the default stream.
const NON_BLOCKING: u32 = 1;

/// The loaded driver.
pub(super) struct Cuda(Functions);

impl Cuda {
    /// Loads the library and starts the driver.
    pub(super) fn load() -> Result<Cuda, OpenError> {
        // SAFETY: the driver's library is made to be loaded like this.
        if !unsafe { sys::is_culib_present() } {
            return Err(OpenError::NoLibrary("libcuda.so.1"));
        }
        // SAFETY: just loaded, so this doesn't panic; the signatures are cuda.h's. It's never unloaded.
        let functions = unsafe { Functions::load(sys::culib()) }.map_err(OpenError::NoFunction)?;
        // SAFETY: 0 is the only value of its flags.
        check("cuInit", unsafe { (functions.init)(0) })?;
        Ok(Cuda(functions))
    }

    /// The UUIDs of all GPUs that this process may use.
    pub(super) fn uuids(&self) -> Result<Vec<Uuid>, Fault> {
        let mut count = 0;
        // SAFETY: the pointer is to the number it fills in.
        check("cuDeviceGetCount", unsafe { (self.0.count)(&mut count) })?;
        (0..count).map(|ordinal| self.uuid(ordinal)).collect()
    }

    fn uuid(&self, ordinal: i32) -> Result<Uuid, Fault> {
        let (mut device, mut bytes) = (0, [0; 16]);
        // SAFETY: the pointers are to what they fill in; a CUuuid is 16 bytes.
        unsafe {
            check("cuDeviceGet", (self.0.get)(&mut device, ordinal))?;
            check("cuDeviceGetUuid", (self.0.uuid)(&mut bytes, device))?;
        }
        Ok(Uuid::from_bytes(bytes))
    }

    /// Makes a context on a GPU.
    pub(super) fn open(self, uuid: Uuid) -> Result<CudaDevice, OpenError> {
        let uuids = self.uuids()?;
        let ordinal = uuids.iter().position(|known| *known == uuid).ok_or(OpenError::NoSuchGpu(uuid))? as i32;
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the pointers are to what they fill in.
        unsafe {
            check("cuDeviceGet", (self.0.get)(&mut device, ordinal))?;
            check("cuDevicePrimaryCtxRetain", (self.0.retain)(&mut context, device))?;
        }
        let device = CudaDevice { functions: self.0, device, context: context as usize };
        device.bind()?;
        Ok(device)
    }
}

/// A GPU of NVIDIA's.
pub(super) struct CudaDevice {
    functions: Functions,
    device: i32,
    /// A `CUcontext`; kept until the process ends.
    context: usize,
}

impl CudaDevice {
    fn map(&self, memory: u64, bytes: usize) -> Result<Address, Fault> {
        let f = &self.functions;
        let access = sys::CUmemAccessDesc_st {
            location: sys::CUmemLocation_st {
                type_: sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE,
                id: self.device,
            },
            flags: sys::CUmemAccess_flags_enum::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let mut at = 0;
        // SAFETY: the pointers are to what they fill in or read; addresses are this process's own.
        unsafe {
            check("cuMemAddressReserve", (f.reserve)(&mut at, bytes, 0, 0, 0))?;
            let mapped = check("cuMemMap", (f.map)(at, bytes, 0, memory, 0));
            if let Err(fault) = mapped {
                let _ = (f.unreserve)(at, bytes);
                return Err(fault);
            }
            let allowed = check("cuMemSetAccess", (f.set_access)(at, bytes, &access, 1));
            if let Err(fault) = allowed {
                let _ = self.unimport(at, bytes as u64);
                return Err(fault);
            }
        }
        Ok(at)
    }
}

impl Device for CudaDevice {
    fn bind(&self) -> Result<(), Fault> {
        call!("cuCtxSetCurrent", (self.functions.set_current)(self.context as *mut c_void))
    }

    fn alloc(&self, bytes: u64) -> Result<Address, Fault> {
        let mut at = 0;
        call!("cuMemAlloc", (self.functions.alloc)(&mut at, bytes as usize))?;
        Ok(at)
    }

    fn clear(&self, at: Address, bytes: u64) -> Result<(), Fault> {
        call!("cuMemsetD8", (self.functions.memset)(at, 0, bytes as usize))?;
        call!("cuCtxSynchronize", (self.functions.context_sync)())
    }

    fn free(&self, at: Address) -> Result<(), Fault> {
        call!("cuMemFree", (self.functions.free)(at))
    }

    fn export(&self, at: Address) -> Result<Handle, Fault> {
        let mut handle = sys::CUipcMemHandle_st { reserved: [0; 64] };
        call!("cuIpcGetMemHandle", (self.functions.export)(&mut handle, at))?;
        Ok(Handle(handle.reserved.map(|b| b as u8)))
    }

    fn open(&self, handle: &Handle) -> Result<Address, Fault> {
        let handle = sys::CUipcMemHandle_st { reserved: handle.0.map(|b| b as _) };
        let mut at = 0;
        call!("cuIpcOpenMemHandle", (self.functions.open)(&mut at, handle, LAZY_PEER_ACCESS))?;
        Ok(at)
    }

    fn close(&self, at: Address) -> Result<(), Fault> {
        call!("cuIpcCloseMemHandle", (self.functions.close)(at))
    }

    fn import(&self, fd: BorrowedFd<'_>, bytes: u64) -> Result<Address, Fault> {
        let mut memory = 0;
        let fd = fd.as_raw_fd() as usize as *mut c_void;
        call!("cuMemImportFromShareableHandle", (self.functions.import)(&mut memory, fd, POSIX_FD))?;
        let at = self.map(memory, bytes as usize);
        // The mapping keeps it.
        let _ = call!("cuMemRelease", (self.functions.release)(memory));
        at
    }

    fn unimport(&self, at: Address, bytes: u64) -> Result<(), Fault> {
        call!("cuMemUnmap", (self.functions.unmap)(at, bytes as usize))?;
        call!("cuMemAddressFree", (self.functions.unreserve)(at, bytes as usize))
    }

    fn extent(&self, at: Address) -> Result<(Address, u64), Fault> {
        let (mut base, mut bytes) = (0, 0);
        call!("cuMemGetAddressRange", (self.functions.extent)(&mut base, &mut bytes, at))?;
        Ok((base, bytes as u64))
    }

    fn pin(&self, at: *mut u8, bytes: usize) -> Result<(), Fault> {
        call!("cuMemHostRegister", (self.functions.pin)(at.cast(), bytes, PORTABLE))
    }

    fn stream(&self) -> Result<Stream, Fault> {
        let mut stream = std::ptr::null_mut();
        call!("cuStreamCreate", (self.functions.stream)(&mut stream, NON_BLOCKING))?;
        Ok(Stream(stream as usize))
    }

    unsafe fn to_device(&self, to: Address, from: *const u8, len: usize, on: Stream) -> Result<(), Fault> {
        let (from, on) = (from.cast(), on.0 as *mut c_void);
        call!("cuMemcpyHtoDAsync", (self.functions.to_device)(to, from, len, on))
    }

    unsafe fn to_host(&self, to: *mut u8, from: Address, len: usize, on: Stream) -> Result<(), Fault> {
        let (to, on) = (to.cast(), on.0 as *mut c_void);
        call!("cuMemcpyDtoHAsync", (self.functions.to_host)(to, from, len, on))
    }

    fn within(&self, to: Address, from: Address, len: usize, on: Stream) -> Result<(), Fault> {
        call!("cuMemcpyDtoDAsync", (self.functions.within)(to, from, len, on.0 as *mut c_void))
    }

    fn sync(&self, on: Stream) -> Result<(), Fault> {
        call!("cuStreamSynchronize", (self.functions.sync)(on.0 as *mut c_void))
    }
}
