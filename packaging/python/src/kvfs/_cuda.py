"""The CUDA driver's functions that sharing GPU memory takes, by ctypes; the library is loaded on first use.

What always holds: before a function that needs a context runs, the primary context of the memory's GPU is
current on the calling thread, and whatever was current before is again afterwards.
"""

import contextlib
import ctypes
import os
import threading
from ctypes import POINTER, byref, c_char, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_LEGACY_IPC = 13  # CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE
_POSIX_FD = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class CudaError(RuntimeError):
    """A function of the CUDA driver failed; `code` is its CUresult (0: the library isn't there)."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} failed with CUDA error {code}")
        self.function, self.code = function, code


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle: passed by value to cuIpcOpenMemHandle."""

    _fields_ = [("reserved", c_char * 64)]


class Export(NamedTuple):
    """GPU memory in a form that another process can open."""

    uuid: bytes
    offset: int
    alloc_size: int
    handle: Optional[bytes]  # a CUipcMemHandle, or
    fd: int  # the descriptor of a VMM allocation, to be closed by whoever gets this; else -1


class Driver:
    """libcuda, initialised."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(f"loading libcuda.so.1 ({error})", 0) from error
        self._primary: Dict[int, c_void_p] = {}
        self._lock = threading.Lock()
        self("cuInit", c_uint(0))

    def __call__(self, function: str, *arguments: Any) -> None:
        found = getattr(self._lib, function, None)
        if found is None:
            raise CudaError(f"{function} (not in this driver)", 0)
        code = found(*arguments)
        if code != 0:
            raise CudaError(function, code)

    def _attribute(self, which: int, pointer: int) -> int:
        value = c_int(0)
        self("cuPointerGetAttribute", byref(value), c_int(which), c_uint64(pointer))
        return value.value

    def ordinal(self, pointer: int) -> int:
        """The GPU that this memory is on, as this process counts them."""
        return self._attribute(_ORDINAL, pointer)

    def _context(self, ordinal: int) -> c_void_p:
        with self._lock:
            if ordinal not in self._primary:
                device, context = c_int(), c_void_p()
                self("cuDeviceGet", byref(device), c_int(ordinal))
                # Kept as long as the process lives, as every CUDA runtime does.
                self("cuDevicePrimaryCtxRetain", byref(context), device)
                self._primary[ordinal] = context
            return self._primary[ordinal]

    @contextlib.contextmanager
    def current(self, ordinal: int) -> Iterator[None]:
        """With the primary context of this GPU current on the thread."""
        self("cuCtxPushCurrent_v2", self._context(ordinal))
        try:
            yield
        finally:
            self("cuCtxPopCurrent_v2", byref(c_void_p()))

    def uuid(self, ordinal: int) -> bytes:
        """The GPU's UUID: 16 bytes."""
        device, uuid = c_int(), (c_char * 16)()
        self("cuDeviceGet", byref(device), c_int(ordinal))
        self("cuDeviceGetUuid_v2", uuid, device)
        return uuid.raw

    def ordinal_of(self, uuid: bytes) -> int:
        """The GPU with this UUID, as this process counts them."""
        count = c_int()
        self("cuDeviceGetCount", byref(count))
        for ordinal in range(count.value):
            if self.uuid(ordinal) == uuid:
                return ordinal
        raise LookupError(f"this process sees no GPU with UUID {uuid.hex()}")

    def export(self, pointer: int, length: int) -> Export:
        """Makes `length` bytes at `pointer` openable elsewhere: all of them must be in one allocation."""
        ordinal = self.ordinal(pointer)
        with self.current(ordinal):
            base, size = c_uint64(), c_size_t()
            self("cuMemGetAddressRange_v2", byref(base), byref(size), c_uint64(pointer))
            offset = pointer - base.value
            if offset + length > size.value:
                raise ValueError(
                    f"{length} bytes at {pointer:#x} are in several allocations (expandable segments?): "
                    f"register them one by one, this one has {size.value - offset}"
                )
            uuid = self.uuid(ordinal)
            try:
                legacy = self._attribute(_LEGACY_IPC, pointer) != 0
            except CudaError:  # drivers older than the question know no other memory
                legacy = True
            if legacy:
                handle = IpcHandle()
                self("cuIpcGetMemHandle", byref(handle), base)
                return Export(uuid, offset, size.value, bytes(handle), -1)
            allocation, fd = c_uint64(), c_int(-1)
            self("cuMemRetainAllocationHandle", byref(allocation), c_void_p(pointer))
            try:
                self("cuMemExportToShareableHandle", byref(fd), allocation, c_int(_POSIX_FD), c_uint64(0))
            finally:
                self("cuMemRelease", allocation)
            os.set_inheritable(fd.value, False)
            return Export(uuid, offset, size.value, None, fd.value)

    def open_handle(self, handle: bytes, ordinal: int) -> int:
        """Maps another process's allocation; the address."""
        pointer, opened = c_uint64(), IpcHandle.from_buffer_copy(handle)
        function = self._lib.cuIpcOpenMemHandle_v2
        function.argtypes = [POINTER(c_uint64), IpcHandle, c_uint]
        with self.current(ordinal):
            code = function(byref(pointer), opened, _LAZY_PEER_ACCESS)
        if code != 0:
            raise CudaError("cuIpcOpenMemHandle_v2", code)
        return pointer.value

    def close_handle(self, pointer: int, ordinal: int) -> None:
        """Undoes `open_handle`."""
        with self.current(ordinal):
            self("cuIpcCloseMemHandle", c_uint64(pointer))

    def synchronize(self, ordinal: int, stream: Optional[int]) -> None:
        """Waits for what was queued on a stream, or on the whole GPU by this process."""
        with self.current(ordinal):
            if stream is None:
                self("cuCtxSynchronize")
            else:
                self("cuStreamSynchronize", c_void_p(stream))

    def to_gpu(self, pointer: int, address: int, length: int) -> None:
        """Copies host memory to the GPU."""
        with self.current(self.ordinal(pointer)):
            self("cuMemcpyHtoD_v2", c_uint64(pointer), c_void_p(address), c_size_t(length))

    def from_gpu(self, address: int, pointer: int, length: int) -> None:
        """Copies GPU memory to the host."""
        with self.current(self.ordinal(pointer)):
            self("cuMemcpyDtoH_v2", c_void_p(address), c_uint64(pointer), c_size_t(length))


_driver: Optional[Driver] = None
_loading = threading.Lock()


def driver() -> Driver:
    """The driver; CudaError if there is none."""
    global _driver
    with _loading:
        if _driver is None:
            _driver = Driver()
        return _driver


def region_of(obj: Any) -> Optional[Tuple[int, int]]:
    """(device pointer, bytes) of a tensor or array in GPU memory; None if it isn't one."""
    # torch: by its own methods, since the interface doesn't know all its dtypes.
    if hasattr(obj, "is_cuda") and hasattr(obj, "data_ptr"):
        if not obj.is_cuda:
            return None
        if not obj.is_contiguous():
            raise ValueError("the tensor must be contiguous")
        return int(obj.data_ptr()), obj.numel() * obj.element_size()
    interface = getattr(obj, "__cuda_array_interface__", None)
    if interface is None:
        return None
    nbytes = int(interface["typestr"][2:])
    for extent in interface["shape"]:
        nbytes *= extent
    if interface.get("strides") is not None and not _contiguous(interface):
        raise ValueError("the array must be contiguous")
    return int(interface["data"][0]), nbytes


def _contiguous(interface: Dict[str, Any]) -> bool:
    expected = int(interface["typestr"][2:])
    for extent, stride in zip(reversed(interface["shape"]), reversed(interface["strides"])):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True
