//! The ioctl interface as it lies in memory: `packaging/kvfs_ioctl.h` in Rust.
//!
//! What always holds: every structure has the header's layout (a test compiles the header and compares), has
//! no padding, and may hold any bytes; nothing here decides what is valid (`decode` does).

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// `KVFS_ABI_VERSION`.
pub const VERSION: u32 = 1;
/// `KVFS_IOC_MAGIC`, the ioctl "type" byte.
pub const MAGIC: u8 = 0xBB;
/// `KVFS_IOC_MAX_SIZE`: 13 bits, as some architectures have (include/uapi/asm-generic/ioctl.h).
pub const MAX_SIZE: usize = 8191;
/// `KVFS_BATCH_MAX`.
pub const BATCH_MAX: usize = (MAX_SIZE - size_of::<Batch>()) / size_of::<Op>();
/// What an ioctl on a directory gives as `backing_id`.
pub const NO_BACKING: u32 = u32::MAX;

/// The numbers of the calls.
pub mod nr {
    /// `KVFS_IOC_QUERY`.
    pub const QUERY: u8 = 0;
    /// `KVFS_IOC_REGISTER`.
    pub const REGISTER: u8 = 1;
    /// `KVFS_IOC_UNREGISTER`.
    pub const UNREGISTER: u8 = 2;
    /// `KVFS_IOC_READ`.
    pub const READ: u8 = 3;
    /// `KVFS_IOC_WRITE`.
    pub const WRITE: u8 = 4;
    /// `KVFS_IOC_SUBMIT`.
    pub const SUBMIT: u8 = 5;
    /// `KVFS_IOC_LOCATE`.
    pub const LOCATE: u8 = 6;
    /// `KVFS_IOC_LOOKUP_PREFIX`.
    pub const LOOKUP_PREFIX: u8 = 7;
}

/// `KVFS_IOC`: the command word of a call (`_IOWR`, include/uapi/asm-generic/ioctl.h).
pub const fn command(nr: u8, size: usize) -> u32 {
    3 << 30 | (size as u32 & 0x3fff) << 16 | (MAGIC as u32) << 8 | nr as u32
}

/// `KVFS_F_*`: what the mount can do.
pub mod feature {
    /// Buffers in a memfd.
    pub const MEMFD: u64 = 1;
    /// Buffers in CUDA memory, by an IPC handle.
    pub const CUDA_IPC: u64 = 2;
    /// Buffers in CUDA memory, by the descriptor of a VMM allocation.
    pub const CUDA_VMM_FD: u64 = 4;
    /// Buffers in HIP memory.
    pub const HIP_IPC: u64 = 16;
    /// SUBMIT.
    pub const BATCH: u64 = 32;
    /// LOCATE is allowed.
    pub const LOCATE: u64 = 64;
    /// Descriptors can be sent through the socket in the mount.
    pub const FD_SOCKET: u64 = 128;
    /// Buffers that the daemon allocates.
    pub const DAEMON_ALLOC: u64 = 256;
    /// LOOKUP_PREFIX.
    pub const LOOKUP_PREFIX: u64 = 512;
}

/// `KVFS_PATH_*`: how the bytes of an op move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum Path {
    /// Not possible.
    None = 0,
    /// io_uring into the client's memory.
    UringHost = 1,
    /// io_uring into pinned host memory, then a copy to the GPU.
    Bounce = 2,
    /// cuFile into a ring in GPU memory, then a copy within the GPU.
    CufileStaged = 4,
    /// cuFile into a buffer that the daemon allocated.
    CufileDirect = 5,
    /// The same with hipFile.
    Hipfile = 6,
}

/// `KVFS_WHY_*`: why a path isn't a better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It is the best one.
    Best,
    /// Switched off by the mount's options.
    SwitchedOff,
    /// The probe hasn't ended yet.
    NotProbed,
    /// No driver library, or no GPU.
    NoGpu,
    /// The library isn't there, or lacks a function.
    NoCufile,
    /// cuFile is known to hang here: /proc/modules can't be read.
    WouldHang,
    /// The probe didn't end in its time.
    ProbeDeadline,
    /// The backing refuses `O_DIRECT`.
    NoDirectIo,
    /// The GPU's worker process has failed.
    Worker,
    /// The backing's own fault.
    Unreadable,
    /// The kernel or a container refuses io_uring.
    NoIoUring,
    /// cuFile's code: `CU_FILE_*`, 5000 and above.
    Cufile(u32),
}

impl Why {
    /// The number.
    pub fn code(self) -> u32 {
        match self {
            Why::Best => 0,
            Why::SwitchedOff => 1,
            Why::NotProbed => 2,
            Why::NoGpu => 3,
            Why::NoCufile => 4,
            Why::WouldHang => 5,
            Why::ProbeDeadline => 6,
            Why::NoDirectIo => 7,
            Why::Worker => 8,
            Why::Unreadable => 9,
            Why::NoIoUring => 10,
            Why::Cufile(code) => code,
        }
    }
}

/// `KVFS_BUF_*`: the kinds of buffers.
pub mod kind {
    /// A sealed memfd.
    pub const MEMFD: u32 = 1;
    /// A `CUipcMemHandle`.
    pub const CUDA_IPC: u32 = 2;
    /// The descriptor of a CUDA VMM allocation.
    pub const CUDA_VMM_FD: u32 = 3;
    /// A fabric handle: not supported.
    pub const CUDA_FABRIC: u32 = 4;
    /// A `hipIpcMemHandle_t`.
    pub const HIP_IPC: u32 = 5;
    /// Allocated by the daemon.
    pub const DAEMON_ALLOC: u32 = 6;
}

/// `KVFS_BUF_RD`: a READ may put data in it.
pub const BUF_RD: u32 = 1;
/// `KVFS_BUF_WR`: a WRITE may take data from it.
pub const BUF_WR: u32 = 2;
/// `KVFS_FD_NONE`.
pub const FD_NONE: u32 = 0;
/// `KVFS_FD_OF_CALLER`.
pub const FD_OF_CALLER: u32 = 1;
/// `KVFS_FD_SENT`.
pub const FD_SENT: u32 = 2;
/// `KVFS_UNREG_NOWAIT`.
pub const UNREG_NOWAIT: u32 = 1;
/// `KVFS_OP_READ`.
pub const OP_READ: u32 = 1;
/// `KVFS_OP_WRITE`.
pub const OP_WRITE: u32 = 2;
/// `KVFS_PREFIX_READAHEAD`.
pub const PREFIX_READAHEAD: u32 = 1;

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs)] // The header says what each field is.
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        const _: () = assert!(size_of::<$name>() == $size);

        impl Default for $name {
            fn default() -> Self {
                Self::new_zeroed()
            }
        }
    };
}

layout! {
    /// `struct kvfs_query`.
    Query 128 {
        abi: u32,
        flags: u32,
        features: u64,
        max_batch_ops: u32,
        max_buffers: u32,
        max_io_bytes: u64,
        max_buffer_bytes: u64,
        dio_off_align: u32,
        dio_mem_align: u32,
        optimal_io: u32,
        backing_id: u32,
        path_gpu: u32,
        path_host: u32,
        numa_node: i32,
        seen_tgid: u32,
        file_token: u64,
        session: u64,
        gpu_reason: u32,
        host_reason: u32,
        rsvd: [u64; 4],
    }
}

layout! {
    /// `struct kvfs_reg_buf`.
    RegBuf 192 {
        kind: u32,
        flags: u32,
        length: u64,
        offset: u64,
        alloc_size: u64,
        fd: i32,
        fd_method: u32,
        fd_token: u64,
        gpu_uuid: [u8; 16],
        handle: [u8; 64],
        parent_id: u64,
        parent_off: u64,
        buf_id: u64,
        path: u32,
        reason: u32,
        rsvd: [u64; 4],
    }
}

layout! {
    /// `struct kvfs_unreg_buf`.
    UnregBuf 32 {
        buf_id: u64,
        flags: u32,
        rsvd0: u32,
        rsvd: [u64; 2],
    }
}

layout! {
    /// `struct kvfs_op`.
    Op 64 {
        opcode: u32,
        flags: u32,
        file: u64,
        buf_id: u64,
        buf_off: u64,
        file_off: u64,
        length: u64,
        user_data: u64,
        result: i64,
    }
}

layout! {
    /// `struct kvfs_batch`.
    Batch 32 {
        nr_ops: u32,
        flags: u32,
        completed: u32,
        path: u32,
        rsvd: [u64; 2],
    }
}

layout! {
    /// `struct kvfs_locate`.
    Locate 4080 {
        flags: u32,
        backing_id: u32,
        dev_major: u32,
        dev_minor: u32,
        ino: u64,
        size: u64,
        dio_off_align: u32,
        fs_magic: u32,
        path_len: u32,
        rsvd0: u32,
        rsvd: [u64; 4],
        path: [u8; 4000],
    }
}

layout! {
    /// `struct kvfs_prefix`.
    Prefix 40 {
        nr_names: u32,
        flags: u32,
        names_len: u32,
        found: u32,
        queued: u32,
        rsvd0: u32,
        rsvd: [u64; 2],
    }
}

/// `KVFS_FD_SOCKET_NAME`.
pub const FD_SOCKET_NAME: &str = ".kvfs-socket";
/// `KVFS_FD_SOCKET_MAGIC`.
pub const FD_SOCKET_MAGIC: u32 = 0x6b76_6673;

layout! {
    /// `struct kvfs_fd_hello`.
    FdHello 8 {
        magic: u32,
        version: u32,
    }
}

layout! {
    /// `struct kvfs_fd_answer`.
    FdAnswer 16 {
        error: i32,
        rsvd0: u32,
        token: u64,
    }
}
