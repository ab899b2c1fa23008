"""Host memory that can be shared with the daemon, and where any buffer's bytes are.

What always holds: a HostBuffer's memfd can't shrink (the daemon takes no other) and all its pages are there
from the start.
"""

import ctypes
import fcntl
import mmap
import os
from typing import Any, Tuple

_F_ADD_SEALS = 1033
_F_SEAL_SHRINK = 2
_MAP_POPULATE = 0x8000
_MFD_HUGETLB = 0x4
_MFD_HUGE_2MB = 21 << 26


class HostBuffer(mmap.mmap):
    """Memory in a sealed memfd, as writable as a bytearray: `memoryview(b)`, `numpy.frombuffer(b, ...)`,
    `torch.frombuffer(b, ...)`. Only such memory can be moved to and from by the daemon itself.

    `size` is in bytes and rounded up to whole pages; `huge` takes 2 MiB pages, from the pool that an
    administrator has set aside. OSError (ENOSPC, ENOMEM) when the memory isn't there.
    """

    memfd: int

    def __new__(cls, size: int, *, huge: bool = False) -> "HostBuffer":
        if size <= 0:
            raise ValueError("a buffer has one byte at least")
        page = 2 << 20 if huge else 4096
        size = (size + page - 1) // page * page
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | ((_MFD_HUGETLB | _MFD_HUGE_2MB) if huge else 0)
        memfd = os.memfd_create("kvfs-buffer", flags)
        try:
            os.ftruncate(memfd, size)
            # Says so when there isn't enough, instead of killing whoever touches the missing page.
            os.posix_fallocate(memfd, 0, size)
            fcntl.fcntl(memfd, _F_ADD_SEALS, _F_SEAL_SHRINK)
            self = super().__new__(cls, memfd, size, flags=mmap.MAP_SHARED | _MAP_POPULATE)
        except BaseException:
            os.close(memfd)
            raise
        self.memfd = memfd
        return self

    def close(self) -> None:
        """Gives the memory back. BufferError as long as something still looks into it."""
        super().close()
        if self.memfd >= 0:
            os.close(self.memfd)
            self.memfd = -1

    def __del__(self) -> None:
        # The mapping goes by itself when the last view of it does.
        memfd = getattr(self, "memfd", -1)
        if memfd >= 0:
            os.close(memfd)
            self.memfd = -1


def memory_of(view: memoryview) -> Tuple[int, int]:
    """(address, bytes) of a writable view's memory; address 0 if it can't be told, as for read-only ones."""
    if view.readonly or view.nbytes == 0 or not view.c_contiguous:
        return 0, view.nbytes
    return ctypes.addressof(ctypes.c_char.from_buffer(view)), view.nbytes


def bytes_of(obj: Any) -> memoryview:
    """A view of bytes of anything with the buffer protocol, or of a tensor in host memory."""
    try:
        view = memoryview(obj)
    except TypeError:
        pass
    else:
        if not view.c_contiguous:
            raise ValueError("the buffer must be contiguous")
        return view.cast("B") if view.nbytes else view
    # torch: tensors of some dtypes have no buffer protocol.
    if hasattr(obj, "data_ptr") and hasattr(obj, "element_size"):
        if not obj.is_contiguous():
            raise ValueError("the tensor must be contiguous")
        nbytes = obj.numel() * obj.element_size()
        return memoryview((ctypes.c_char * nbytes).from_address(obj.data_ptr())).cast("B")
    raise TypeError(f"{type(obj).__name__} has neither the buffer protocol nor data_ptr()")
