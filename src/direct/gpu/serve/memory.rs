//! Buffers in the worker: memory that others share with it, and its own that it shares.
//!
//! What always holds: an allocation of another process is mapped once, however many buffers are in it, and
//! unmapped with the last (an import that stays pins the memory of a dead process); a buffer is within its
//! allocation; cuFile lets go of memory before it's freed (NVIDIA's kernel module may lock up otherwise);
//! memory of our own is whole 2 MiB pages, with zeros in it, so that sharing it shows nothing else.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::direct::abi::Why;
use crate::direct::gpu::cufile::Cufile;
use crate::direct::gpu::device::{Address, Device, Fault, Handle};
use crate::direct::gpu::proto::{Made, Origin, Refused};

/// CUDA shares whole pages of this size, and what else is in them (cudaIpcGetMemHandle's documentation).
const PAGE: u64 = 2 << 20;

/// Why there is no buffer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Invalid(&'static str),
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Error {
    pub(super) fn sticky(&self) -> Option<Fault> {
        match self {
            Error::Fault(fault) if fault.is_sticky() => Some(*fault),
            _ => None,
        }
    }

    pub(super) fn refused(&self) -> Refused {
        let (errno, code) = match self {
            Error::Invalid(_) => (libc::EINVAL, 0),
            // CUDA_ERROR_OUT_OF_MEMORY and hipErrorOutOfMemory.
            Error::Fault(Fault { code: 2, .. }) => (libc::ENOMEM, 2),
            Error::Fault(fault) => (libc::EIO, fault.code),
        };
        Refused { errno, code, message: self.to_string() }
    }
}

/// A buffer; what it stands on goes with it.
pub(super) struct Buffer {
    /// Where it begins.
    pub(super) at: Address,
    /// In bytes.
    pub(super) length: u64,
    /// What moves straight into it, if anything does: it's registered there from `at` on.
    pub(super) registered: Option<&'static Cufile>,
    base: Base,
    shared: Arc<Shared>,
}

enum Base {
    Opened(Handle),
    Imported(Address, u64),
    Own(Address),
}

struct Shared {
    device: Arc<dyn Device>,
    /// What is mapped by a handle: where, and for how many buffers. Held while mapping and unmapping.
    opened: Mutex<HashMap<Handle, (Address, usize)>>,
}

/// All of them.
pub(super) struct Memory {
    shared: Arc<Shared>,
    buffers: Mutex<HashMap<u64, Arc<Buffer>>>,
}

impl Memory {
    pub(super) fn new(device: Arc<dyn Device>) -> Memory {
        Memory { shared: Arc::new(Shared { device, opened: Mutex::default() }), buffers: Mutex::default() }
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Buffer>> {
        self.buffers.lock().get(&id).cloned()
    }

    /// Lets go of a buffer; its memory goes with the last op on it.
    pub(super) fn drop(&self, id: u64) {
        let gone = self.buffers.lock().remove(&id);
        drop(gone);
    }

    /// Makes a buffer. `cufile` is what registers memory of our own.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn make(
        &self,
        id: u64,
        origin: Origin,
        fd: Option<OwnedFd>,
        alloc_size: u64,
        offset: u64,
        length: u64,
        cufile: impl FnOnce() -> Result<&'static Cufile, Why>,
    ) -> Result<Made, Error> {
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > alloc_size) {
            return Err(Error::Invalid("the buffer isn't within its allocation"));
        }
        let device = &self.shared.device;
        let whole = length.checked_next_multiple_of(PAGE).ok_or(Error::Invalid("the buffer is too large"))?;
        let (at, base) = match origin {
            Origin::Ipc(handle) => (self.shared.open(handle)?, Base::Opened(handle)),
            Origin::Fd => {
                let fd = fd.ok_or(Error::Invalid("the descriptor didn't come"))?;
                let at = device.import(fd.as_fd(), alloc_size)?;
                (at, Base::Imported(at, alloc_size))
            }
            Origin::Own => {
                let at = device.alloc(whole)?;
                (at, Base::Own(at))
            }
        };
        let mut made = Made { handle: None, direct: Err(Why::Best) };
        // From here on its `Drop` takes back what there is of it.
        let mut buffer =
            Buffer { at: at + offset, length, registered: None, base, shared: self.shared.clone() };
        match buffer.base {
            Base::Own(at) => {
                device.clear(at, whole)?;
                made.handle = Some(device.export(at)?);
                let registered = cufile().and_then(|cufile| {
                    cufile.register_memory(at, whole).map_err(|e| e.why())?;
                    Ok(cufile)
                });
                made.direct = registered.map(drop);
                buffer.registered = registered.ok();
            }
            // The client's word for the size, checked where the driver knows it.
            Base::Opened(_) => {
                if let Ok((base, bytes)) = device.extent(at)
                    && offset + length > (base + bytes).saturating_sub(at)
                {
                    return Err(Error::Invalid("the shared allocation is smaller"));
                }
            }
            Base::Imported(..) => {}
        }
        self.buffers.lock().insert(id, Arc::new(buffer));
        Ok(made)
    }
}

impl Shared {
    fn open(&self, handle: Handle) -> Result<Address, Fault> {
        let mut opened = self.opened.lock();
        if let Some((at, buffers)) = opened.get_mut(&handle) {
            *buffers += 1;
            return Ok(*at);
        }
        let at = self.device.open(&handle)?;
        opened.insert(handle, (at, 1));
        Ok(at)
    }

    fn close(&self, handle: &Handle) -> Result<(), Fault> {
        let mut opened = self.opened.lock();
        let Some((at, buffers)) = opened.get_mut(handle) else { return Ok(()) };
        *buffers -= 1;
        if *buffers > 0 {
            return Ok(());
        }
        let at = *at;
        opened.remove(handle);
        self.device.close(at)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let device = &self.shared.device;
        // Every thread that drops one has bound the device. An error changes nothing: the memory is let go of.
        let _ = match &self.base {
            Base::Opened(handle) => self.shared.close(handle),
            Base::Imported(at, bytes) => device.unimport(*at, *bytes),
            Base::Own(at) => {
                if let Some(cufile) = self.registered {
                    let _ = cufile.deregister_memory(*at);
                }
                device.free(*at)
            }
        };
    }
}
