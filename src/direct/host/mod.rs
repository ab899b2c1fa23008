//! Host memory: buffers in a client's memfd, and io_uring straight into them.

mod engine;
mod lanes;
mod mapping;
mod pins;
mod plan;
mod ring;

pub(crate) use engine::{HostBuffer, HostEngine};
use mapping::Mapping;
pub(crate) use mapping::PAGE;
