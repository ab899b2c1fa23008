"""The CUDA driver by ctypes: what a client of kvfs needs of it, and nothing to install."""

import ctypes
import mmap
import os
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

POSIX_FD = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


class CudaError(RuntimeError):
    def __init__(self, call, code):
        super().__init__(f"{call} failed with {code}")
        self.code = code


class Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class Prop(ctypes.Structure):
    """CUmemAllocationProp"""

    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("win32", c_void_p),
        ("flags", ctypes.c_uint8 * 8),
    ]


class Access(ctypes.Structure):
    """CUmemAccessDesc"""

    _fields_ = [("location", Location), ("flags", c_int)]


class Ipc(ctypes.Structure):
    """CUipcMemHandle"""

    _fields_ = [("bytes", ctypes.c_uint8 * 64)]


class Cuda:
    """A context on the first GPU."""

    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        if count.value == 0:
            raise CudaError("cuDeviceGetCount", 100)
        self.device = c_int()
        self.call("cuDeviceGet", byref(self.device), 0)
        uuid = (ctypes.c_uint8 * 16)()
        self.call("cuDeviceGetUuid_v2", byref(uuid), self.device)
        self.uuid = bytes(uuid)
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, self.device)
        self.name = name.value.decode()
        self.context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), self.device)
        self.bind()

    def call(self, name, *args):
        code = getattr(self.lib, name)(*args)
        if code:
            raise CudaError(name, code)

    def bind(self):
        """Makes it the calling thread's."""
        self.call("cuCtxSetCurrent", self.context)

    def driver(self):
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return version.value

    def free_bytes(self):
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def alloc(self, size):
        at = c_uint64()
        self.call("cuMemAlloc_v2", byref(at), c_size_t(size))
        return at.value

    def free(self, at):
        self.call("cuMemFree_v2", c_uint64(at))

    def export(self, at):
        handle = Ipc()
        self.call("cuIpcGetMemHandle", byref(handle), c_uint64(at))
        return bytes(handle.bytes)

    def open(self, handle):
        at = c_uint64()
        self.call("cuIpcOpenMemHandle_v2", byref(at), Ipc((ctypes.c_uint8 * 64)(*handle)), 1)
        return at.value

    def put(self, at, data):
        self.call("cuMemcpyHtoD_v2", c_uint64(at), ctypes.c_char_p(data), c_size_t(len(data)))
        self.call("cuCtxSynchronize")

    def get(self, at, size):
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, c_uint64(at), c_size_t(size))
        return data.raw

    def clear(self, at, size, byte=0):
        self.call("cuMemsetD8_v2", c_uint64(at), ctypes.c_uint8(byte), c_size_t(size))
        self.call("cuCtxSynchronize")

    def within(self, to, source, size):
        self.call("cuMemcpyDtoD_v2", c_uint64(to), c_uint64(source), c_size_t(size))
        self.call("cuCtxSynchronize")

    def pinned(self, size):
        """Page-aligned host memory that the GPU copies from: the mapping and its address."""
        memory = mmap.mmap(-1, size)
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.call("cuMemHostRegister_v2", c_void_p(at), c_size_t(size), 1)
        return memory, at

    def to_device(self, to, host, size):
        self.call("cuMemcpyHtoD_v2", c_uint64(to), c_void_p(host), c_size_t(size))

    def vmm(self, size):
        """Memory made to be shared by a descriptor: that, its address and its size."""
        prop = Prop(1, POSIX_FD, Location(1, self.device.value), None)
        step, memory, fd = c_size_t(), c_uint64(), c_int()
        self.call("cuMemGetAllocationGranularity", byref(step), byref(prop), 0)
        size = -(-size // step.value) * step.value
        self.call("cuMemCreate", byref(memory), c_size_t(size), byref(prop), c_uint64(0))
        self.call("cuMemExportToShareableHandle", byref(fd), memory, POSIX_FD, c_uint64(0))
        os.set_inheritable(fd.value, True)
        return fd.value, self.map(memory, size), size

    def import_fd(self, fd, size):
        memory = c_uint64()
        self.call("cuMemImportFromShareableHandle", byref(memory), c_void_p(fd), POSIX_FD)
        return self.map(memory, size)

    def map(self, memory, size):
        at = c_uint64()
        self.call("cuMemAddressReserve", byref(at), c_size_t(size), c_size_t(0), c_uint64(0), c_uint64(0))
        self.call("cuMemMap", at, c_size_t(size), c_size_t(0), memory, c_uint64(0))
        access = Access(Location(1, self.device.value), 3)
        self.call("cuMemSetAccess", at, c_size_t(size), byref(access), c_size_t(1))
        return at.value
