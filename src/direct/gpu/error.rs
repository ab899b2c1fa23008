//! Why there is no buffer on a GPU.

use super::proto::Refused;
use crate::direct::abi::Why;

/// What REGISTER answers; with it, `errno` and `reason`.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum GpuError {
    /// By the mount's options.
    #[error("transfers to GPU memory are switched off")]
    Off,
    /// It takes longer than the deadline to find out what there is.
    #[error("the GPUs haven't been looked at yet")]
    NotProbed,
    /// None, or of another make.
    #[error("there is no GPU for this kind of buffer")]
    NoGpu,
    /// Others, but not this one.
    #[error("there is no GPU with this UUID")]
    NoSuchGpu,
    /// Nothing in it, or not within its allocation.
    #[error("the buffer isn't within its allocation")]
    Invalid,
    /// The daemon has allocated as much as it may.
    #[error("the daemon allocates no more GPU memory")]
    Limit,
    /// The worker's answer.
    #[error("{}", .0.message)]
    Refused(Refused),
    /// The worker doesn't live, or has died over it.
    #[error("the GPU's worker process has failed: {0}")]
    Worker(String),
    /// No answer in time.
    #[error("the GPU's worker process took too long")]
    Deadline,
}

impl GpuError {
    /// What the ioctl fails with.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            GpuError::Off | GpuError::NoGpu => libc::EOPNOTSUPP,
            GpuError::NotProbed => libc::EAGAIN,
            GpuError::NoSuchGpu => libc::ENODEV,
            GpuError::Invalid => libc::EINVAL,
            GpuError::Limit => libc::ENOMEM,
            GpuError::Refused(refused) => refused.errno,
            GpuError::Worker(_) => libc::EIO,
            GpuError::Deadline => libc::ETIMEDOUT,
        }
    }

    /// `kvfs_reg_buf.reason`: the driver's code, else `KVFS_WHY_*`.
    pub(crate) fn reason(&self) -> u32 {
        match self {
            GpuError::Off => Why::SwitchedOff.code(),
            GpuError::NotProbed => Why::NotProbed.code(),
            GpuError::NoGpu | GpuError::NoSuchGpu => Why::NoGpu.code(),
            GpuError::Invalid | GpuError::Limit => 0,
            GpuError::Refused(refused) => u32::try_from(refused.code).unwrap_or(0),
            GpuError::Worker(_) | GpuError::Deadline => Why::Worker.code(),
        }
    }
}
