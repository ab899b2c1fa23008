//! The client's side of the fast path: `packaging/kvfs_ioctl.h` for Rust programs.
//!
//! ```no_run
//! use kvfs::client::{Access, Batch, File, HostBuffer, Mount, Pages};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mount = Mount::open("/mnt/kv")?;
//! let buffer = HostBuffer::new(64 << 20, Pages::Ordinary)?;
//! let registered = mount.register(&buffer, Access::Both)?;
//! let file = File::open("/mnt/kv/chunk")?;
//! let bytes = file.read(0, &registered, 0, 32 << 20)?;
//! let mut batch = Batch::new();
//! batch.read(&file, 0, &registered, 0, 1 << 20);
//! batch.read(&file, 1 << 20, &registered, 1 << 20, 1 << 20);
//! for result in batch.submit(&mount) {
//!     println!("{} bytes", result?);
//! }
//! # Ok(()) }
//! ```
//!
//! What always holds: nothing here is needed to use a mount. Every error leaves the file readable and writable
//! with `pread` and `pwrite`, and a program that gets one can go on with those.

mod batch;
mod call;
mod error;
mod file;
mod gpu;
mod memory;
mod mount;
mod prefix;
mod registered;
mod socket;

pub use batch::Batch;
pub use error::{Call, Error, OpError};
pub use file::{File, Located};
pub use gpu::{CudaIpc, CudaVmm, GpuUuid};
pub use memory::{HostBuffer, Pages};
pub use mount::{Abilities, Facts, Mount, Transport};
pub use prefix::Prefix;
pub use registered::{Access, Registered};

fn socket_name() -> &'static str {
    crate::direct::abi::FD_SOCKET_NAME
}
