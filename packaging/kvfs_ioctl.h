/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * kvfs ioctl interface, version 1.
 *
 * Moves data between an open file of a kvfs mount and a buffer that the client has registered, without a
 * copy through the client. Layout is the same for 64-bit and 32-bit clients; no pointers; little-endian
 * hosts only.
 *
 * Rules for all calls:
 *  - A call is known by its number (KVFS_IOC_NR); the size in the command is the version of its argument:
 *    shorter than version 1: EINVAL; longer: what follows version 1 must be zero, else E2BIG. The answer
 *    has the size of the command, padded with zeros.
 *  - Fields named rsvd and flag bits without a name must be zero, else EINVAL.
 *  - An unknown number: ENOTTY, as from any file system that isn't kvfs.
 *  - The caller must be visible in the daemon's pid namespace for everything but QUERY (kvfs_query.seen_tgid
 *    is its process id there, 0 if it isn't visible); else EPERM.
 *  - No call waits longer than the daemon's deadline (30 seconds unless the mount says otherwise).
 *
 * All calls work on any open file of the mount, whatever it's open for, and on open directories except
 * where noted. docs/DIRECT.md explains them.
 */
#ifndef KVFS_IOCTL_H
#define KVFS_IOCTL_H

typedef unsigned char kvfs_u8;
typedef unsigned int kvfs_u32;
typedef int kvfs_s32;
typedef unsigned long long kvfs_u64 __attribute__((aligned(8)));
typedef long long kvfs_s64 __attribute__((aligned(8)));

#define KVFS_IOC_MAGIC 0xBB /* not in Documentation/userspace-api/ioctl/ioctl-number.rst */
/* Always read and write, and never larger than 8191: the size has 13 bits on some architectures. */
#define KVFS_IOC(nr, size) ((3u << 30) | ((kvfs_u32)(size) << 16) | (KVFS_IOC_MAGIC << 8) | (nr))
#define KVFS_IOC_NR(cmd) ((cmd) & 0xffu)
#define KVFS_IOC_MAX_SIZE 8191u
#define KVFS_ABI_VERSION 1u

/* How the bytes of an op move. Higher is not better: see kvfs_query.path_gpu and path_host. */
enum {
	KVFS_PATH_NONE = 0,          /* not possible here */
	KVFS_PATH_URING_HOST = 1,    /* io_uring into the client's memory */
	KVFS_PATH_BOUNCE = 2,        /* io_uring into pinned host memory, then a copy to the GPU */
	KVFS_PATH_CUFILE_COMPAT = 3, /* never used for data; kept so that the number isn't */
	KVFS_PATH_CUFILE_STAGED = 4, /* cuFile into a ring in GPU memory, then a copy within the GPU */
	KVFS_PATH_CUFILE_DIRECT = 5, /* cuFile into a buffer that the daemon allocated */
	KVFS_PATH_HIPFILE = 6        /* the same with hipFile */
};

/* Why a path isn't a better one. */
enum {
	KVFS_WHY_BEST = 0,         /* it is the best one */
	KVFS_WHY_SWITCHED_OFF = 1, /* by the mount's options */
	KVFS_WHY_NOT_PROBED = 2,   /* the probe hasn't ended yet */
	KVFS_WHY_NO_GPU = 3,       /* no driver library, or no GPU */
	KVFS_WHY_NO_CUFILE = 4,    /* the library isn't there, or lacks a function */
	KVFS_WHY_WOULD_HANG = 5,   /* it's known to hang here (/proc/modules can't be read) */
	KVFS_WHY_PROBE_DEADLINE = 6,
	KVFS_WHY_NO_DIRECT_IO = 7, /* the backing refuses O_DIRECT */
	KVFS_WHY_WORKER = 8,       /* the GPU's worker process has failed */
	KVFS_WHY_UNREADABLE = 9,   /* the backing's own fault */
	KVFS_WHY_NO_IO_URING = 10, /* the kernel or a container refuses it: read and write the file instead */
	KVFS_WHY_CUFILE = 5000     /* and above: the cuFile code */
};

/* ---- QUERY: what the mount can do, and how it sees the caller and the file ---- */

#define KVFS_F_MEMFD 1ull
#define KVFS_F_CUDA_IPC 2ull
#define KVFS_F_CUDA_VMM_FD 4ull
#define KVFS_F_CUDA_FABRIC 8ull
#define KVFS_F_HIP_IPC 16ull
#define KVFS_F_BATCH 32ull
#define KVFS_F_LOCATE 64ull
#define KVFS_F_FD_SOCKET 128ull
#define KVFS_F_DAEMON_ALLOC 256ull
#define KVFS_F_LOOKUP_PREFIX 512ull

struct kvfs_query {
	kvfs_u32 abi;              /* in: the highest the client knows, at least 1; out: the one spoken */
	kvfs_u32 flags;            /* 0 */
	kvfs_u64 features;         /* out, as all that follow: KVFS_F_* */
	kvfs_u32 max_batch_ops;    /* of one SUBMIT */
	kvfs_u32 max_buffers;      /* of one user */
	kvfs_u64 max_io_bytes;     /* of one call, all its ops together */
	kvfs_u64 max_buffer_bytes; /* of one user, all buffers together */
	kvfs_u32 dio_off_align;    /* file offsets and lengths that are multiples of this need no page cache */
	kvfs_u32 dio_mem_align;    /* the same for offsets in a buffer */
	kvfs_u32 optimal_io;       /* bytes of one op from which on more brings little */
	kvfs_u32 backing_id;       /* the file's slot; 0xffffffff for a directory */
	kvfs_u32 path_gpu;         /* KVFS_PATH_* that an op on this file takes now ... */
	kvfs_u32 path_host;
	kvfs_s32 numa_node;        /* of the backing; -1 unknown */
	kvfs_u32 seen_tgid;        /* the caller as the daemon sees it */
	kvfs_u64 file_token;       /* names this open file in ops issued on another; 0 for a directory */
	kvfs_u64 session;          /* another number for each mount: buffers and tokens are gone when it changes.
	                              A daemon that takes another's place after a crash has the same */
	kvfs_u32 gpu_reason;       /* ... and KVFS_WHY_* it isn't a better one */
	kvfs_u32 host_reason;
	kvfs_u64 rsvd[4];
};

/* ---- REGISTER, UNREGISTER ---- */

enum {
	KVFS_BUF_MEMFD = 1,        /* fd: a memfd with F_SEAL_SHRINK, every page of the region present */
	KVFS_BUF_CUDA_IPC = 2,     /* handle: a CUipcMemHandle; alloc_size: of the whole allocation */
	KVFS_BUF_CUDA_VMM_FD = 3,  /* fd: from cuMemExportToShareableHandle (POSIX_FILE_DESCRIPTOR) */
	KVFS_BUF_CUDA_FABRIC = 4,  /* reserved: EOPNOTSUPP */
	KVFS_BUF_HIP_IPC = 5,      /* handle: a hipIpcMemHandle_t */
	KVFS_BUF_DAEMON_ALLOC = 6  /* allocated by the daemon on the GPU gpu_uuid; handle is filled in */
};

#define KVFS_BUF_RD 1u /* a READ may put data in it (file to buffer) */
#define KVFS_BUF_WR 2u /* a WRITE may take data from it (buffer to file) */

#define KVFS_FD_NONE 0u
#define KVFS_FD_OF_CALLER 1u /* fd is a descriptor of the calling process (pidfd_getfd) */
#define KVFS_FD_SENT 2u      /* fd_token is what the socket answered */

/*
 * A buffer belongs to the process that registered it: another, its children too, gets EPERM. It goes with
 * UNREGISTER, with that process, or with the last close of the file it was registered on; not with a
 * directory, which a mount never sees closed. Ops that are under way keep its memory.
 *
 * Errors: EDQUOT the user has as many buffers, or as large, as one may; EBADF not a memfd; EPERM not sealed
 * against shrinking, or the daemon may not take the descriptor (send it through the socket); ERANGE beyond the
 * end; ENODATA pages that aren't there yet; EACCES the descriptor doesn't allow the access; EBUSY descriptors
 * that were refused before can't be closed; EOPNOTSUPP not with this mount; EIO with a CUDA code in reason.
 */
struct kvfs_reg_buf {
	kvfs_u32 kind;       /* KVFS_BUF_* */
	kvfs_u32 flags;      /* KVFS_BUF_RD | KVFS_BUF_WR, at least one */
	kvfs_u64 length;     /* of the region, in bytes; not 0 */
	kvfs_u64 offset;     /* of the region in the memfd or in the shared allocation; a multiple of 4096 in a memfd */
	kvfs_u64 alloc_size; /* of the shared allocation; 0 for a memfd */
	kvfs_s32 fd;         /* -1 if unused */
	kvfs_u32 fd_method;  /* KVFS_FD_* */
	kvfs_u64 fd_token;
	kvfs_u8 gpu_uuid[16]; /* cuDeviceGetUuid; zeros for a memfd */
	kvfs_u8 handle[64];
	kvfs_u64 parent_id;  /* 0 */
	kvfs_u64 parent_off; /* 0 */
	kvfs_u64 buf_id;     /* out: never 0 */
	kvfs_u32 path;       /* out: KVFS_PATH_* by which its ops go */
	kvfs_u32 reason;     /* out: KVFS_WHY_*, or the CUDA code of a failure (with EIO) */
	kvfs_u64 rsvd[4];
};

#define KVFS_UNREG_NOWAIT 1u /* EBUSY instead of waiting for ops under way */

struct kvfs_unreg_buf {
	kvfs_u64 buf_id;
	kvfs_u32 flags;
	kvfs_u32 rsvd0;
	kvfs_u64 rsvd[2];
};

/* ---- READ, WRITE, SUBMIT ---- */

#define KVFS_OP_READ 1u  /* from the file to the buffer */
#define KVFS_OP_WRITE 2u /* from the buffer to the file */

/*
 * One transfer. The call answers 0 when it was looked at; what became of it is in result:
 *   >= 0         bytes moved: fewer than length only at the end of the file (READ)
 *   -1 .. -4095  -errno
 *   <= -5000     -(cuFile or hipFile code)
 * A WRITE that fails may have written a part.
 */
struct kvfs_op {
	kvfs_u32 opcode;    /* KVFS_OP_*; for READ and WRITE the call's own */
	kvfs_u32 flags;     /* 0 */
	kvfs_u64 file;      /* 0: the file of the ioctl; else a file_token that this process was given */
	kvfs_u64 buf_id;
	kvfs_u64 buf_off;
	kvfs_u64 file_off;
	kvfs_u64 length;
	kvfs_u64 user_data; /* the client's own, untouched */
	kvfs_s64 result;    /* out */
};

/* SUBMIT: this header, and nr_ops times struct kvfs_op right after it. Ops run in any order, at the same
 * time. */
struct kvfs_batch {
	kvfs_u32 nr_ops;
	kvfs_u32 flags;     /* 0 */
	kvfs_u32 completed; /* out: ops whose result isn't negative */
	kvfs_u32 path;      /* out: KVFS_PATH_* that served the ops; the lowest number if there were several */
	kvfs_u64 rsvd[2];
};

#define KVFS_BATCH_MAX ((KVFS_IOC_MAX_SIZE - sizeof(struct kvfs_batch)) / sizeof(struct kvfs_op))

/* ---- LOCATE: where the file really is; only if the mount was made with --allow-locate, else EPERM ---- */

struct kvfs_locate {
	kvfs_u32 flags; /* 0 */
	kvfs_u32 backing_id;
	kvfs_u32 dev_major, dev_minor; /* with ino: to verify by fstat that the path still is this file */
	kvfs_u64 ino, size;
	kvfs_u32 dio_off_align;
	kvfs_u32 fs_magic; /* statfs.f_type of the backing */
	kvfs_u32 path_len;
	kvfs_u32 rsvd0;
	kvfs_u64 rsvd[4];
	kvfs_u8 path[4000]; /* as the daemon sees it; not terminated */
};

/* ---- LOOKUP_PREFIX: how many of the names, in their order, exist before the first that doesn't ---- */

#define KVFS_PREFIX_READAHEAD 1u /* bring those into the page cache, in the background */

/* This header, and right after it names_len bytes: nr_names names, each with a zero byte behind it. Names are
 * relative to the directory that the ioctl is made on, may contain '/', and must be readable for READAHEAD. */
struct kvfs_prefix {
	kvfs_u32 nr_names;
	kvfs_u32 flags;
	kvfs_u32 names_len;
	kvfs_u32 found;  /* out */
	kvfs_u32 queued; /* out: files that are being read ahead */
	kvfs_u32 rsvd0;
	kvfs_u64 rsvd[2];
};

#define KVFS_PREFIX_NAMES_MAX (KVFS_IOC_MAX_SIZE - sizeof(struct kvfs_prefix))

#define KVFS_IOC_QUERY KVFS_IOC(0, sizeof(struct kvfs_query))
#define KVFS_IOC_REGISTER KVFS_IOC(1, sizeof(struct kvfs_reg_buf))
#define KVFS_IOC_UNREGISTER KVFS_IOC(2, sizeof(struct kvfs_unreg_buf))
#define KVFS_IOC_READ KVFS_IOC(3, sizeof(struct kvfs_op))
#define KVFS_IOC_WRITE KVFS_IOC(4, sizeof(struct kvfs_op))
#define KVFS_IOC_SUBMIT(n) KVFS_IOC(5, sizeof(struct kvfs_batch) + (n) * sizeof(struct kvfs_op))
#define KVFS_IOC_LOCATE KVFS_IOC(6, sizeof(struct kvfs_locate))
#define KVFS_IOC_LOOKUP_PREFIX(names_len) KVFS_IOC(7, sizeof(struct kvfs_prefix) + (names_len))

/* ---- The socket for descriptors: KVFS_FD_SOCKET_NAME in the root of the mount ----
 *
 * AF_UNIX, SOCK_SEQPACKET. A client sends one message, struct kvfs_fd_hello, with one descriptor
 * (SCM_RIGHTS), and receives struct kvfs_fd_answer. The token is good for one REGISTER of the same process
 * within a minute. The name isn't listed.
 */
#define KVFS_FD_SOCKET_NAME ".kvfs-socket"
#define KVFS_FD_SOCKET_MAGIC 0x6b766673u /* "kvfs" */

struct kvfs_fd_hello {
	kvfs_u32 magic;
	kvfs_u32 version; /* KVFS_ABI_VERSION */
};

struct kvfs_fd_answer {
	kvfs_s32 error; /* 0, or an errno */
	kvfs_u32 rsvd0;
	kvfs_u64 token;
};

#endif
