//! Host memory: buffers in a client's memfd, and io_uring straight into them.

mod mapping;

pub(crate) use mapping::Mapping;
