//! GPU memory: a worker process per GPU.

/// A buffer on a GPU.
pub(crate) struct GpuBuffer;
