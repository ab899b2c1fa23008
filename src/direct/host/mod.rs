//! Host memory: buffers in a client's memfd, and io_uring straight into them.

mod engine;
mod mapping;
mod plan;
mod ring;

pub(crate) use engine::HostEngine;
pub(crate) use mapping::{Mapping, PAGE};
