"""Registered buffers, and which of them a piece of memory is in.

What always holds: a registration is good for one mount session and one process. One that is used after a
remount, or in a forked child, is made anew first, and so is one that a daemon after a crash doesn't know, so that
callers never see that it was gone.
"""

import errno
import os
import socket
import threading
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from . import _abi, _cuda
from ._abi import Error
from ._host import HostBuffer, memory_of

if TYPE_CHECKING:
    from ._mount import Mount

_PATIENCE = 5.0  # seconds that the socket of a daemon that has died is missed at most
_PAUSE = 0.01

READ = _abi.BUF_RD
WRITE = _abi.BUF_WR


class Registered:
    """Memory that the daemon moves data to and from. From `Mount.register` or `Mount.daemon_alloc`."""

    def __init__(self, mount: "Mount", obj: Any, access: int, address: int, length: int, gpu: bool) -> None:
        self.mount, self.object, self.access = mount, obj, access
        self.address, self.length, self.gpu = address, length, gpu
        self.path, self.reason = _abi.PATH_NONE, 0
        self._id, self._made_for = 0, (0, 0)
        self._lock = threading.Lock()

    def id(self) -> int:
        """The number by which the mount knows it now; it's registered again if that has to be."""
        wanted = (self.mount.session, os.getpid())
        with self._lock:
            if self._made_for != wanted or self._id == 0:
                self._id = self._register()
                self._made_for = wanted
            return self._id

    def renew(self, number: int) -> bool:
        """The mount doesn't know `number`, which was the buffer's: registers it again, if that can be."""
        wanted = (self.mount.session, os.getpid())
        with self._lock:
            if self._id == number:
                try:
                    self._id = self._register()
                except (OSError, _cuda.CudaError):
                    return False
                self._made_for = wanted
            return self._id != 0

    def _register(self) -> int:
        if isinstance(self.object, HostBuffer):
            fields = _Fields(kind=_abi.BUF_MEMFD, length=self.length, fd=self.object.memfd)
            answer = _register(self.mount, self.access, fields)
        else:
            export = _cuda.driver().export(self.address, self.length)
            kind = _abi.BUF_CUDA_IPC if export.handle else _abi.BUF_CUDA_VMM_FD
            fields = _Fields(
                kind, self.length, export.offset, export.alloc_size, export.fd, export.uuid, export.handle
            )
            try:
                answer = _register(self.mount, self.access, fields)
            finally:
                if export.fd >= 0:
                    os.close(export.fd)
        self.path, self.reason = answer.path, answer.reason
        return answer.buf_id

    def is_closed(self) -> bool:
        """Whether its memory was given back without a `release`."""
        return isinstance(self.object, HostBuffer) and self.object.closed

    def release(self) -> None:
        """Unregisters it, after the transfers that use it."""
        self.mount._regions.remove(self)
        with self._lock:
            number, self._id = self._id, 0
            current = self._made_for == (self.mount.session, os.getpid())
        if number and current:
            argument = bytearray(_abi.UNREG_BUF.pack(number, 0, 0))
            with self.mount._directory() as fd:
                try:
                    _abi.ioctl(fd, _abi.NR_UNREGISTER, argument)
                except Error as error:
                    if error.errno != errno.ENOENT:  # it went with a daemon that died
                        raise

    def __enter__(self) -> "Registered":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class DeviceBuffer(Registered):
    """GPU memory that the daemon has allocated: the drive can write to it without a copy. Has the CUDA array
    interface (`cupy.asarray(b)`, `torch.as_tensor(b, device="cuda")`), as bytes. Gone after a remount."""

    def __init__(self, mount: "Mount", uuid: bytes, length: int, access: int) -> None:
        cuda = _cuda.driver()
        self._ordinal = cuda.ordinal_of(uuid)
        answer = _register(mount, access, _Fields(kind=_abi.BUF_DAEMON_ALLOC, length=length, uuid=uuid))
        super().__init__(mount, None, access, 0, length, True)
        self._id, self._made_for = answer.buf_id, (mount.session, os.getpid())
        self.path, self.reason = answer.path, answer.reason
        try:
            self.address = cuda.open_handle(answer.handle, self._ordinal)
        except BaseException:
            super().release()
            raise

    def _register(self) -> int:
        # The memory went with the daemon, or is the parent process's.
        raise Error(errno.ENODEV, "REGISTER")

    def release(self) -> None:
        """Unmaps it and gives it back to the daemon."""
        if self.address:
            address, self.address = self.address, 0
            _cuda.driver().close_handle(address, self._ordinal)
        super().release()

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        return {"shape": (self.length,), "typestr": "|u1", "data": (self.address, False), "version": 3}


class _Fields:
    """What REGISTER is told of a region."""

    def __init__(
        self,
        kind: int,
        length: int,
        offset: int = 0,
        alloc_size: int = 0,
        fd: int = -1,
        uuid: bytes = bytes(16),
        handle: Optional[bytes] = None,
    ) -> None:
        self.kind, self.length, self.offset, self.alloc_size = kind, length, offset, alloc_size
        self.fd, self.uuid, self.handle = fd, uuid, handle or bytes(64)


class _Answer:
    def __init__(self, argument: bytearray) -> None:
        fields = _abi.REG_BUF.unpack(argument)
        self.handle: bytes = fields[9]
        self.buf_id: int = fields[12]
        self.path: int = fields[13]
        self.reason: int = fields[14]


def _register(mount: "Mount", access: int, fields: _Fields) -> _Answer:
    """REGISTER; a descriptor goes by its number if the daemon may take it, else through the socket."""
    with mount._directory() as directory:
        method = _abi.FD_OF_CALLER if fields.fd >= 0 else _abi.FD_NONE
        try:
            return _register_once(directory, access, fields, fields.fd, method, 0)
        except Error as error:
            # It's asked anew where there was none: the socket comes a moment after the mount.
            if error.errno != errno.EPERM or fields.fd < 0:
                raise
            if not mount.has("fd_socket") and not mount.query().has("fd_socket"):
                raise
        until = time.monotonic() + _PATIENCE
        while True:
            # With a daemon that dies the socket goes, and what was sent to it; another comes with the next.
            try:
                token = _send_fd(mount.root(), fields.fd)
                return _register_once(directory, access, fields, -1, _abi.FD_SENT, token)
            except OSError as error:
                if error.errno not in _GONE or time.monotonic() > until:
                    raise
            time.sleep(_PAUSE)


_GONE = (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)


def _register_once(directory: int, access: int, f: _Fields, fd: int, method: int, token: int) -> _Answer:
    argument = bytearray(
        _abi.REG_BUF.pack(
            *(f.kind, access, f.length, f.offset, f.alloc_size),
            *(fd, method, token, f.uuid, f.handle),
            *(0, 0, 0, 0, 0),
        )
    )
    try:
        _abi.ioctl(directory, _abi.NR_REGISTER, argument)
    except Error as error:
        raise Error(error.errno or 0, "REGISTER", reason=_Answer(argument).reason) from None
    return _Answer(argument)


def _send_fd(root: str, fd: int) -> int:
    """Hands a descriptor to the daemon; the token that names it."""
    # A socket's address has room for 107 bytes only; what's longer is reached by the open directory.
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = os.path.join(root, _abi.FD_SOCKET_NAME)
        if len(os.fsencode(path)) > 107:
            path = f"/proc/self/fd/{directory}/{_abi.FD_SOCKET_NAME}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stream:
            stream.settimeout(30)
            stream.connect(path)
            socket.send_fds(stream, [_abi.FD_HELLO.pack(_abi.FD_SOCKET_MAGIC, _abi.VERSION)], [fd])
            answer = stream.recv(_abi.FD_ANSWER.size)
    finally:
        os.close(directory)
    if len(answer) != _abi.FD_ANSWER.size:
        raise Error(errno.ECONNRESET, "the socket for descriptors")
    number, _, token = _abi.FD_ANSWER.unpack(answer)
    if number != 0:
        raise Error(number, "the socket for descriptors")
    return int(token)


class Regions:
    """The registered memory of a mount, by address. Host and GPU memory share one address space."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: List[int] = []
        self._regions: List[Registered] = []

    def add(self, region: Registered) -> None:
        """Enters one. What it overlaps must have been released."""
        with self._lock:
            at = bisect_right(self._starts, region.address)
            self._starts.insert(at, region.address)
            self._regions.insert(at, region)

    def remove(self, region: Registered) -> None:
        """Forgets one; no matter if it isn't there."""
        with self._lock:
            if region in self._regions:
                at = self._regions.index(region)
                del self._starts[at], self._regions[at]

    def all(self) -> List[Registered]:
        """Those there are."""
        with self._lock:
            return list(self._regions)

    def find(self, address: int, length: int) -> Optional[Tuple[Registered, int]]:
        """The region that all of this memory is in, and where in it."""
        if address == 0:
            return None
        with self._lock:
            at = bisect_right(self._starts, address) - 1
            # A closed buffer's address may be other memory's by now.
            while at >= 0 and self._regions[at].is_closed():
                del self._starts[at], self._regions[at]
                at -= 1
            if at < 0:
                return None
            region = self._regions[at]
        offset = address - region.address
        return (region, offset) if offset + length <= region.length else None


def host_region(buffer: HostBuffer) -> Tuple[int, int]:
    """(address, bytes) of a HostBuffer."""
    with memoryview(buffer) as view:
        return memory_of(view)
