"""kvfs for Python: KV-cache files to and from registered host and GPU memory, many in one call.

    import kvfs

    with kvfs.Mount("/mnt/kv") as mount:
        buffer = kvfs.HostBuffer(64 << 20)
        mount.register(buffer)
        with mount.open("chunk") as file:
            nbytes = file.read(buffer)

Everything works on any other directory too, by `os.preadv` and `os.pwritev`; `Mount.direct` says which it is.
"""

from ._abi import Error
from ._buffers import READ, WRITE, DeviceBuffer, Registered
from ._cuda import CudaError
from ._host import HostBuffer
from ._mount import Facts, File, Located, Mount
from ._transfer import Batch, Outcome

__all__ = [
    "READ",
    "WRITE",
    "Batch",
    "CudaError",
    "DeviceBuffer",
    "Error",
    "Facts",
    "File",
    "HostBuffer",
    "Located",
    "Mount",
    "Outcome",
    "Registered",
]
__version__ = "0.1.0"
