//! A GPU as the worker and the probe use it, whoever made it.
//!
//! What always holds: no call panics and none needs anything of the machine to be loaded; what a driver
//! answers is kept as the number it is, so that a code from a newer driver is only an unknown error. A thread
//! calls `bind` before anything else.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

/// An address in GPU memory. Nothing in this process may follow it.
pub(super) type Address = u64;

/// A queue of copies on the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream(pub(super) usize);

/// What names shared GPU memory: a `CUipcMemHandle` or a `hipIpcMemHandle_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub(crate) struct Handle(pub(crate) [u8; 64]);

impl From<Handle> for Vec<u8> {
    fn from(handle: Handle) -> Vec<u8> {
        handle.0.to_vec()
    }
}

impl TryFrom<Vec<u8>> for Handle {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Handle, Self::Error> {
        bytes.try_into().map(Handle).map_err(|_| "a handle has 64 bytes")
    }
}

/// A call that the driver refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed with {code}")]
pub(super) struct Fault {
    /// The function.
    pub(super) call: &'static str,
    /// `CUresult` or `hipError_t`.
    pub(super) code: i32,
}

impl Fault {
    /// Whether everything on this GPU fails in this process from now on. The codes are the same in cuda.h
    /// (of CUDA 13) and hip_runtime_api.h, where the latter has them.
    pub(super) fn is_sticky(self) -> bool {
        matches!(
            self.code,
            4       // DEINITIALIZED
            | 46    // DEVICE_UNAVAILABLE
            | 214   // ECC_UNCORRECTABLE
            | 220   // NVLINK_UNCORRECTABLE
            | 226   // CONTAINED
            | 700..=702 // ILLEGAL_ADDRESS, LAUNCH_OUT_OF_RESOURCES, LAUNCH_TIMEOUT
            | 709   // CONTEXT_IS_DESTROYED
            | 710   // ASSERT
            | 714..=721 // of the hardware, up to LAUNCH_FAILED and TENSOR_MEMORY_LEAK
            | 999 // UNKNOWN
        )
    }
}

/// Why there is no GPU to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The library isn't there.
    #[error("{0} can't be loaded")]
    NoLibrary(&'static str),
    /// It's there, but of another age or make.
    #[error("the driver's library lacks {0}")]
    NoFunction(&'static str),
    /// It answers with an error.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It has no such GPU.
    #[error("there is no GPU with the UUID {0}")]
    NoSuchGpu(uuid::Uuid),
}

/// One GPU, and this process's context on it.
pub(super) trait Device: Send + Sync {
    /// Makes the GPU the calling thread's.
    fn bind(&self) -> Result<(), Fault>;
    /// New memory, in bytes.
    fn alloc(&self, bytes: u64) -> Result<Address, Fault>;
    /// Fills memory with zeros, and waits for it.
    fn clear(&self, at: Address, bytes: u64) -> Result<(), Fault>;
    /// Gives memory of `alloc` back.
    fn free(&self, at: Address) -> Result<(), Fault>;
    /// Names memory of `alloc` for other processes.
    fn export(&self, at: Address) -> Result<Handle, Fault>;
    /// Maps what another process named. Once for each handle until it's closed.
    fn open(&self, handle: &Handle) -> Result<Address, Fault>;
    /// Unmaps what `open` mapped.
    fn close(&self, at: Address) -> Result<(), Fault>;
    /// Maps the memory behind a descriptor.
    fn import(&self, fd: BorrowedFd<'_>, bytes: u64) -> Result<Address, Fault>;
    /// Unmaps what `import` mapped.
    fn unimport(&self, at: Address, bytes: u64) -> Result<(), Fault>;
    /// The allocation that an address is in: its start and its bytes.
    fn extent(&self, at: Address) -> Result<(Address, u64), Fault>;
    /// Tells the driver that host memory stays where it is, so that copies need no detour.
    fn pin(&self, at: *mut u8, bytes: usize) -> Result<(), Fault>;
    /// A new stream.
    fn stream(&self) -> Result<Stream, Fault>;
    /// Copies from host memory.
    ///
    /// # Safety
    /// `from` is valid for `len` bytes until `sync` has returned.
    unsafe fn to_device(&self, to: Address, from: *const u8, len: usize, on: Stream) -> Result<(), Fault>;
    /// Copies to host memory.
    ///
    /// # Safety
    /// `to` is valid for `len` bytes, and nobody else's, until `sync` has returned.
    unsafe fn to_host(&self, to: *mut u8, from: Address, len: usize, on: Stream) -> Result<(), Fault>;
    /// Copies within the GPU.
    fn within(&self, to: Address, from: Address, len: usize, on: Stream) -> Result<(), Fault>;
    /// Waits for everything on the stream.
    fn sync(&self, on: Stream) -> Result<(), Fault>;
}

/// Declares a table of C functions that return a number, and a way to look them up. A function may have
/// several names: the first that's there is taken.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($field:ident = $($symbol:literal)|+: fn($($arg:ty),* $(,)?);)* }) => {
        $(#[$doc])*
        struct $table { $($field: unsafe extern "C" fn($($arg),*) -> i32,)* }

        impl $table {
            /// Looks them all up; the error is the name of one that isn't there.
            ///
            /// # Safety
            /// What the library has under these names has these signatures. The table isn't used after the
            /// library is unloaded.
            unsafe fn load(library: &libloading::Library) -> Result<$table, &'static str> {
                Ok($table {
                    $($field: [$($symbol),+]
                        .into_iter()
                        // SAFETY: the caller vouches for the signature.
                        .find_map(|name| unsafe { library.get(name.as_bytes()) }.ok().map(|f| *f))
                        .ok_or([$($symbol),+][0])?,)*
                })
            }
        }
    };
}
pub(super) use functions;

/// What a driver's function answered.
pub(super) fn check(call: &'static str, code: i32) -> Result<(), Fault> {
    if code == 0 { Ok(()) } else { Err(Fault { call, code }) }
}

/// Calls a driver's function for a [`Device`].
macro_rules! call {
    ($name:literal, $call:expr) => {{
        // SAFETY: pointers are to what the call reads or fills in, and live through it; addresses in the GPU
        // are checked by the driver and never followed here.
        check($name, unsafe { $call })
    }};
}
pub(super) use call;
