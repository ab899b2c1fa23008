"""kvfs's ioctls (packaging/kvfs_ioctl.h), by the standard library alone."""

import fcntl
import os
import struct

QUERY = struct.Struct("<IIQIIQQIIIIIIiIQQII4Q")
REGISTER = struct.Struct("<IIQQQiIQ16s64sQQQII4Q")
UNREGISTER = struct.Struct("<QIIQQ")
OP = struct.Struct("<IIQQQQQQq")
BATCH = struct.Struct("<IIIIQQ")

CUDA_IPC, CUDA_VMM_FD, DAEMON_ALLOC = 2, 3, 6
READ, WRITE = 1, 2
PATHS = {0: "none", 1: "uring_host", 2: "bounce", 4: "cufile_staged", 5: "cufile_direct", 6: "hipfile"}


def call(fd, nr, data):
    """Makes the ioctl; `data` is changed in place."""
    fcntl.ioctl(fd, 3 << 30 | len(data) << 16 | 0xBB << 8 | nr, data, True)


class Refused(RuntimeError):
    def __init__(self, errno, reason):
        super().__init__(f"REGISTER failed with {os.strerror(errno)}, reason {reason}")
        self.errno, self.reason = errno, reason


class Mount:
    """An open directory of a mount."""

    def __init__(self, point):
        self.fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)

    def query(self, fd=None):
        data = bytearray(QUERY.pack(1, *[0] * 22))
        call(self.fd if fd is None else fd, 0, data)
        field = QUERY.unpack(data)
        return {
            "max_io": field[5],
            "path": PATHS.get(field[11], field[11]),
            "why": field[17],
            "token": field[15],
        }

    def register(self, kind, uuid, length, offset=0, alloc_size=0, handle=bytes(64), fd=-1):
        """A buffer: its number, its path, why, and the handle."""
        method = 1 if fd >= 0 else 0
        data = bytearray(
            REGISTER.pack(kind, 3, length, offset, alloc_size, fd, method, 0, uuid, handle, *[0] * 9)
        )
        try:
            call(self.fd, 1, data)
        except OSError as e:
            raise Refused(e.errno, REGISTER.unpack(data)[14]) from None
        field = REGISTER.unpack(data)
        return field[12], PATHS.get(field[13], field[13]), field[14], field[9]

    def unregister(self, buffer):
        call(self.fd, 2, bytearray(UNREGISTER.pack(buffer, 0, 0, 0, 0)))

    def submit(self, ops):
        """Moves (opcode, token, buffer, buf_off, file_off, length); the results and the path."""
        data = bytearray(BATCH.pack(len(ops), 0, 0, 0, 0, 0))
        for opcode, token, buffer, buf_off, file_off, length in ops:
            data += OP.pack(opcode, 0, token, buffer, buf_off, file_off, length, 0, 0)
        call(self.fd, 5, data)
        results = [OP.unpack_from(data, BATCH.size + OP.size * n)[8] for n in range(len(ops))]
        return results, PATHS.get(BATCH.unpack_from(data)[3])
