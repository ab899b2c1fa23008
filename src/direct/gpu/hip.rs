//! AMD's HIP: the same as CUDA under other names. Off unless the mount asks for it, and never tried on an
//! AMD GPU.
//!
//! What always holds: what `device` says.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use libloading::Library;
use uuid::Uuid;

use super::device::{Address, Device, Fault, Handle, OpenError, Stream, call, check, functions};

/// `hipIpcMemHandle_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct IpcHandle([u8; 64]);

functions! {
    /// hip_runtime_api.h of ROCm 7.
    Functions {
        init = "hipInit": fn(u32);
        count = "hipGetDeviceCount": fn(*mut i32);
        uuid = "hipDeviceGetUuid": fn(*mut [u8; 16], i32);
        set_device = "hipSetDevice": fn(i32);
        alloc = "hipMalloc": fn(*mut u64, usize);
        free = "hipFree": fn(u64);
        memset = "hipMemset": fn(u64, i32, usize);
        device_sync = "hipDeviceSynchronize": fn();
        export = "hipIpcGetMemHandle": fn(*mut IpcHandle, u64);
        open = "hipIpcOpenMemHandle": fn(*mut u64, IpcHandle, u32);
        close = "hipIpcCloseMemHandle": fn(u64);
        extent = "hipMemGetAddressRange": fn(*mut u64, *mut usize, u64);
        pin = "hipHostRegister": fn(*mut c_void, usize, u32);
        stream = "hipStreamCreateWithFlags": fn(*mut *mut c_void, u32);
        sync = "hipStreamSynchronize": fn(*mut c_void);
        to_device = "hipMemcpyHtoDAsync": fn(u64, *const c_void, usize, *mut c_void);
        to_host = "hipMemcpyDtoHAsync": fn(*mut c_void, u64, usize, *mut c_void);
        within = "hipMemcpyDtoDAsync": fn(u64, u64, usize, *mut c_void);
    }
}

/// hipIpcMemLazyEnablePeerAccess
const LAZY_PEER_ACCESS: u32 = 1;
/// hipHostRegisterPortable
const PORTABLE: u32 = 1;
/// hipStreamNonBlocking
const NON_BLOCKING: u32 = 1;
/// hipErrorNotSupported
const NOT_SUPPORTED: i32 = 801;

/// The loaded runtime.
pub(super) struct Hip(Functions);

impl Hip {
    /// Loads the library and starts the runtime.
    pub(super) fn load() -> Result<Hip, OpenError> {
        // SAFETY: the runtime's library is made to be loaded like this.
        let library = ["libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6"]
            .into_iter()
            .find_map(|name| unsafe { Library::new(name) }.ok())
            .ok_or(OpenError::NoLibrary("libamdhip64.so"))?;
        // SAFETY: the signatures are hip_runtime_api.h's; it's never unloaded.
        let functions = unsafe { Functions::load(&library) }.map_err(OpenError::NoFunction)?;
        std::mem::forget(library);
        // SAFETY: 0 is the only value of its flags.
        check("hipInit", unsafe { (functions.init)(0) })?;
        Ok(Hip(functions))
    }

    /// The UUIDs of all GPUs that this process may use.
    pub(super) fn uuids(&self) -> Result<Vec<Uuid>, Fault> {
        let mut count = 0;
        // SAFETY: the pointer is to the number it fills in.
        check("hipGetDeviceCount", unsafe { (self.0.count)(&mut count) })?;
        (0..count)
            .map(|device| {
                let mut bytes = [0; 16];
                // SAFETY: a hipUUID is 16 bytes.
                check("hipDeviceGetUuid", unsafe { (self.0.uuid)(&mut bytes, device) })?;
                Ok(Uuid::from_bytes(bytes))
            })
            .collect()
    }

    /// Uses a GPU.
    pub(super) fn open(self, uuid: Uuid) -> Result<HipDevice, OpenError> {
        let uuids = self.uuids()?;
        let device = uuids.iter().position(|known| *known == uuid).ok_or(OpenError::NoSuchGpu(uuid))? as i32;
        let device = HipDevice { functions: self.0, device };
        device.bind()?;
        Ok(device)
    }
}

/// A GPU of AMD's.
pub(super) struct HipDevice {
    functions: Functions,
    device: i32,
}

impl Device for HipDevice {
    fn bind(&self) -> Result<(), Fault> {
        call!("hipSetDevice", (self.functions.set_device)(self.device))
    }

    fn alloc(&self, bytes: u64) -> Result<Address, Fault> {
        let mut at = 0;
        call!("hipMalloc", (self.functions.alloc)(&mut at, bytes as usize))?;
        Ok(at)
    }

    fn clear(&self, at: Address, bytes: u64) -> Result<(), Fault> {
        call!("hipMemset", (self.functions.memset)(at, 0, bytes as usize))?;
        call!("hipDeviceSynchronize", (self.functions.device_sync)())
    }

    fn free(&self, at: Address) -> Result<(), Fault> {
        call!("hipFree", (self.functions.free)(at))
    }

    fn export(&self, at: Address) -> Result<Handle, Fault> {
        let mut handle = IpcHandle([0; 64]);
        call!("hipIpcGetMemHandle", (self.functions.export)(&mut handle, at))?;
        Ok(Handle(handle.0))
    }

    fn open(&self, handle: &Handle) -> Result<Address, Fault> {
        let mut at = 0;
        let handle = IpcHandle(handle.0);
        call!("hipIpcOpenMemHandle", (self.functions.open)(&mut at, handle, LAZY_PEER_ACCESS))?;
        Ok(at)
    }

    fn close(&self, at: Address) -> Result<(), Fault> {
        call!("hipIpcCloseMemHandle", (self.functions.close)(at))
    }

    fn import(&self, _: BorrowedFd<'_>, _: u64) -> Result<Address, Fault> {
        Err(Fault { call: "hipMemImportFromShareableHandle", code: NOT_SUPPORTED })
    }

    fn unimport(&self, _: Address, _: u64) -> Result<(), Fault> {
        Err(Fault { call: "hipMemUnmap", code: NOT_SUPPORTED })
    }

    fn extent(&self, at: Address) -> Result<(Address, u64), Fault> {
        let (mut base, mut bytes) = (0, 0);
        call!("hipMemGetAddressRange", (self.functions.extent)(&mut base, &mut bytes, at))?;
        Ok((base, bytes as u64))
    }

    fn pin(&self, at: *mut u8, bytes: usize) -> Result<(), Fault> {
        call!("hipHostRegister", (self.functions.pin)(at.cast(), bytes, PORTABLE))
    }

    fn stream(&self) -> Result<Stream, Fault> {
        let mut stream = std::ptr::null_mut();
        call!("hipStreamCreateWithFlags", (self.functions.stream)(&mut stream, NON_BLOCKING))?;
        Ok(Stream(stream as usize))
    }

    unsafe fn to_device(&self, to: Address, from: *const u8, len: usize, on: Stream) -> Result<(), Fault> {
        let (from, on) = (from.cast(), on.0 as *mut c_void);
        call!("hipMemcpyHtoDAsync", (self.functions.to_device)(to, from, len, on))
    }

    unsafe fn to_host(&self, to: *mut u8, from: Address, len: usize, on: Stream) -> Result<(), Fault> {
        let (to, on) = (to.cast(), on.0 as *mut c_void);
        call!("hipMemcpyDtoHAsync", (self.functions.to_host)(to, from, len, on))
    }

    fn within(&self, to: Address, from: Address, len: usize, on: Stream) -> Result<(), Fault> {
        call!("hipMemcpyDtoDAsync", (self.functions.within)(to, from, len, on.0 as *mut c_void))
    }

    fn sync(&self, on: Stream) -> Result<(), Fault> {
        call!("hipStreamSynchronize", (self.functions.sync)(on.0 as *mut c_void))
    }
}
