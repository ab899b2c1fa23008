"""The ioctl interface as it lies in memory: `packaging/kvfs_ioctl.h` in Python.

What always holds: each format has the header's size (a test compiles the header and compares), little-endian
and without padding; nothing here decides what is valid.
"""

import errno
import fcntl
import struct
from typing import Dict, Optional

VERSION = 1
MAGIC = 0xBB
MAX_SIZE = 8191

# Numbers of the calls.
NR_QUERY, NR_REGISTER, NR_UNREGISTER, NR_READ, NR_WRITE, NR_SUBMIT, NR_LOCATE, NR_LOOKUP_PREFIX = range(8)
CALLS = ("QUERY", "REGISTER", "UNREGISTER", "READ", "WRITE", "SUBMIT", "LOCATE", "LOOKUP_PREFIX")

F_MEMFD, F_CUDA_IPC, F_CUDA_VMM_FD = 1, 2, 4
F_BATCH, F_LOCATE, F_FD_SOCKET, F_DAEMON_ALLOC, F_LOOKUP_PREFIX = 32, 64, 128, 256, 512
FEATURES: Dict[str, int] = {
    "memfd": F_MEMFD,
    "cuda_ipc": F_CUDA_IPC,
    "cuda_vmm_fd": F_CUDA_VMM_FD,
    "cuda_fabric": 8,
    "hip_ipc": 16,
    "batch": F_BATCH,
    "locate": F_LOCATE,
    "fd_socket": F_FD_SOCKET,
    "daemon_alloc": F_DAEMON_ALLOC,
    "lookup_prefix": F_LOOKUP_PREFIX,
}

PATHS: Dict[int, str] = {
    0: "none",
    1: "uring_host",
    2: "bounce",
    4: "cufile_staged",
    5: "cufile_direct",
    6: "hipfile",
}
PATH_NONE = 0

BUF_MEMFD, BUF_CUDA_IPC, BUF_CUDA_VMM_FD, BUF_DAEMON_ALLOC = 1, 2, 3, 6
BUF_RD, BUF_WR = 1, 2
FD_NONE, FD_OF_CALLER, FD_SENT = 0, 1, 2
OP_READ, OP_WRITE = 1, 2
PREFIX_READAHEAD = 1
NO_BACKING = 0xFFFFFFFF

QUERY = struct.Struct("<IIQIIQQIIIIIIiIQQII32x")
REG_BUF = struct.Struct("<IIQQQiIQ16s64sQQQII32x")
UNREG_BUF = struct.Struct("<QII16x")
OP = struct.Struct("<IIQQQQQQq")
BATCH = struct.Struct("<IIII16x")
LOCATE = struct.Struct("<IIIIQQIIII32x4000s")
PREFIX = struct.Struct("<IIIIII16x")
FD_HELLO = struct.Struct("<II")
FD_ANSWER = struct.Struct("<iIQ")

BATCH_MAX = (MAX_SIZE - BATCH.size) // OP.size
PREFIX_NAMES_MAX = MAX_SIZE - PREFIX.size

FD_SOCKET_NAME = ".kvfs-socket"
FD_SOCKET_MAGIC = 0x6B766673

_HINTS = {
    ("LOCATE", errno.EPERM): "the mount was made without --allow-locate",
    ("REGISTER", errno.EDQUOT): "this user's registered buffers are at their limit; drop some",
    ("REGISTER", errno.EOPNOTSUPP): "this mount can't do this kind of buffer",
    ("REGISTER", errno.EPERM): "the daemon can't see this process, or may not take its descriptors",
    ("REGISTER", errno.ENODATA): "not all pages of the memfd are there",
    (None, errno.EACCES): "the buffer wasn't registered for this direction",
    (None, errno.EBADF): "the file isn't open for this",
    (None, errno.ENOENT): "the buffer isn't registered any more",
    (None, errno.EPERM): "the buffer or the file is another process's",
    (None, errno.ERANGE): "beyond the end of the registered region",
    (None, errno.ENOTCONN): "the daemon is gone: `kvfs umount --lazy`, and mount again",
    (None, errno.ENOTTY): "not a file of a kvfs mount with the fast path",
}


class Error(OSError):
    """A call or a transfer failed. `errno` is set as in every OSError; `code` is the result of a failed
    transfer (-errno, or -(cuFile code)), `reason` why a buffer can't be registered (`KVFS_WHY_*`, or a CUDA
    code when errno is EIO). The file can still be used with `os.preadv` and `os.pwritev`.
    """

    def __init__(self, number: int, call: str, code: int = 0, reason: int = 0) -> None:
        hint = _HINTS.get((call, number)) or _HINTS.get((None, number))
        text = f"{call}: {_text(number)}" + (f": {hint}" if hint else "")
        if code <= -5000:
            text += f" (cuFile or hipFile code {-code})"
        if reason:
            text += f" (reason {reason})"
        super().__init__(number, text)
        self.call, self.code, self.reason = call, code, reason


def _text(number: int) -> str:
    return f"{errno.errorcode.get(number, number)}"


def error_of(result: int, call: str) -> Error:
    """The error of a transfer whose `kvfs_op.result` is negative."""
    number = -result if -4095 <= result < 0 else errno.EIO
    return Error(number, call, code=result)


def command(number: int, size: int) -> int:
    """`KVFS_IOC`: the command word of a call."""
    return 3 << 30 | size << 16 | MAGIC << 8 | number


def ioctl(fd: int, number: int, argument: bytearray) -> None:
    """Makes a call; `argument` holds the answer afterwards, also when the call fails (an Error)."""
    failed: Optional[int] = None
    try:
        fcntl.ioctl(fd, command(number, len(argument)), argument, True)
    except OSError as error:
        failed = error.errno or errno.EIO
    if failed is not None:
        raise Error(failed, CALLS[number])
