"""A directory in a kvfs mount, and its open files; any other directory works too, without the fast path.

What always holds: a mount that had the fast path when it was opened is never taken for an ordinary directory
later, as when it was unmounted under us; and nothing here keeps a mount busy but the files that are open.
"""

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from . import _abi, _cuda
from ._abi import Error
from ._buffers import READ, WRITE, DeviceBuffer, Registered, Regions, host_region
from ._host import HostBuffer

StrPath = Union[str, "os.PathLike[str]"]


class Facts(NamedTuple):
    """What a mount says of itself and of an open file. Sizes in bytes."""

    features: int
    max_batch_ops: int
    max_buffers: int
    max_io_bytes: int
    max_buffer_bytes: int
    dio_off_align: int
    dio_mem_align: int
    optimal_io: int
    backing_id: int
    path_gpu: int
    path_host: int
    numa_node: int
    seen_tgid: int
    file_token: int
    session: int
    gpu_reason: int
    host_reason: int

    def has(self, feature: str) -> bool:
        """Whether the mount can do this (`memfd`, `cuda_ipc`, `batch`, `lookup_prefix`, ...)."""
        return bool(self.features & _abi.FEATURES[feature])


class Located(NamedTuple):
    """Where a file really is. Open `path`, then compare device and inode with `os.fstat`."""

    path: str
    backing_id: Optional[int]
    device: Tuple[int, int]
    inode: int
    size: int
    dio_off_align: int


def query(fd: int) -> Facts:
    """QUERY; an Error with ENOTTY (or another errno) where there is no fast path."""
    argument = bytearray(_abi.QUERY.size)
    _abi.QUERY.pack_into(argument, 0, _abi.VERSION, *([0] * 18))
    _abi.ioctl(fd, _abi.NR_QUERY, argument)
    spoken, _, *fields = _abi.QUERY.unpack(argument)
    if spoken != _abi.VERSION:
        raise Error(errno.EPROTO, "QUERY")
    return Facts(*fields)


class File:
    """An open file, in the mount or anywhere else. Close it, or use it in a `with`."""

    def __init__(self, mount: "Mount", path: StrPath, flags: int, mode: int) -> None:
        self.mount, self.token, self.session = mount, 0, 0
        self._fd = os.open(mount.path_of(path), flags | os.O_CLOEXEC, mode)
        try:
            if mount.direct:
                facts = query(self._fd)
                self.token, self.session = facts.file_token, facts.session
                mount._renew(facts)
        except Error as error:
            self.close()
            if error.errno == errno.ENOTTY:
                raise Error(errno.ENODEV, "QUERY") from error  # what was mounted here isn't any more
            raise
        except BaseException:
            self.close()
            raise

    def renew(self, token: int) -> bool:
        """The mount doesn't know `token`, which was the file's: asks for another. False if it's the same."""
        if self.token == token:
            self.token = query(self._fd).file_token
        return self.token != token

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        """Closes it; transfers that were submitted go on."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._fd).st_size

    def query(self) -> Facts:
        """What the mount says of it; an Error with ENOTTY if it isn't in one."""
        return query(self._fd)

    def read(
        self, buffer: Any, *, file_offset: int = 0, buffer_offset: int = 0, length: Optional[int] = None
    ) -> int:
        """From the file to the buffer: the bytes moved, fewer than asked only at the end of the file."""
        from ._transfer import Batch

        batch = Batch(self.mount)
        batch.read(self, buffer, file_offset=file_offset, buffer_offset=buffer_offset, length=length)
        return batch.submit()[0].check()

    def write(
        self,
        buffer: Any,
        *,
        file_offset: int = 0,
        buffer_offset: int = 0,
        length: Optional[int] = None,
        synchronize: bool = True,
        stream: Optional[int] = None,
    ) -> int:
        """From the buffer to the file: always all bytes. One that fails may have written a part. For GPU
        memory see `Batch.submit`."""
        from ._transfer import Batch

        batch = Batch(self.mount)
        batch.write(self, buffer, file_offset=file_offset, buffer_offset=buffer_offset, length=length)
        return batch.submit(synchronize=synchronize, stream=stream)[0].check()

    def locate(self) -> Located:
        """Where it really is: PermissionError if the mount was made without --allow-locate. A file outside of
        a mount is where it is."""
        if not self.mount.direct:
            stat = os.fstat(self._fd)
            device = (os.major(stat.st_dev), os.minor(stat.st_dev))
            path = os.readlink(f"/proc/self/fd/{self._fd}")
            return Located(path, None, device, stat.st_ino, stat.st_size, 4096)
        argument = bytearray(_abi.LOCATE.size)
        try:
            _abi.ioctl(self._fd, _abi.NR_LOCATE, argument)
        except Error as error:
            if error.errno == errno.EPERM:
                raise PermissionError(errno.EPERM, str(error)) from None
            raise
        _, backing, major, minor, inode, size, align, _, length, _, path = _abi.LOCATE.unpack(argument)
        return Located(os.fsdecode(path[:length]), backing, (major, minor), inode, size, align)


class Mount:
    """A directory, by preference in a kvfs mount.

    `direct` says whether the fast path is there, `why_not` why it isn't; everything works either way, with
    `os.preadv` and `os.pwritev` where it has to. With `require` no fast path is an Error instead.
    """

    def __init__(self, path: StrPath, *, require: bool = False, plain_threads: int = 4) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.why_not: Optional[str] = None
        self.facts: Optional[Facts] = None
        self.session = 0
        self._regions = Regions()
        self._plain_threads = plain_threads
        self._pool: Optional[ThreadPoolExecutor] = None
        self._lock = threading.Lock()
        with self._directory() as fd:
            try:
                facts = query(fd)
            except Error as error:
                # Only these say that there is nothing of the kind; a dead daemon is a fault.
                if require or error.errno not in (errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self.why_not = "not a kvfs mount with the fast path"
            else:
                if facts.seen_tgid == 0:
                    self.why_not = "the daemon runs in another pid namespace and can't see this process"
                    if require:
                        raise Error(errno.EPERM, "QUERY")
                else:
                    self.facts, self.session = facts, facts.session

    @property
    def direct(self) -> bool:
        """Whether it has the fast path."""
        return self.facts is not None

    def has(self, feature: str) -> bool:
        """Whether the fast path can do this; see `Facts.has`."""
        return self.facts is not None and self.facts.has(feature)

    def path_of(self, name: StrPath) -> str:
        """A path relative to the mount's directory, or an absolute one as it is."""
        return os.path.join(self.path, os.fspath(name))

    def open(self, name: StrPath, flags: int = os.O_RDONLY, mode: int = 0o666) -> File:
        """Opens a file with the flags of `os.open`."""
        return File(self, name, flags, mode)

    def register(self, obj: Any, *, access: int = READ | WRITE) -> Registered:
        """Registers a HostBuffer or GPU memory (anything with the CUDA array interface, a torch tensor): all
        of it. Transfers to and from any part of it take the fast path then; the memory must stay until
        `release`. Without the fast path nothing is done, and the object can be used all the same.

        TypeError for other memory: only a memfd can be shared. Transfers take it as it is, by `os.preadv`.
        """
        region = _cuda.region_of(obj)
        if region is not None:
            registered = Registered(self, obj, access, region[0], region[1], True)
        elif isinstance(obj, HostBuffer):
            registered = Registered(self, obj, access, *host_region(obj), False)
        else:
            raise TypeError(f"a {type(obj).__name__} can't be shared with the daemon: use a kvfs.HostBuffer")
        if self.direct:
            registered.id()
        self._regions.add(registered)
        return registered

    def daemon_alloc(self, uuid: bytes, length: int, *, access: int = READ | WRITE) -> DeviceBuffer:
        """`length` bytes on the GPU with this UUID, allocated by the daemon."""
        if not self.has("daemon_alloc"):
            raise Error(errno.EOPNOTSUPP, "REGISTER")
        buffer = DeviceBuffer(self, uuid, length, access)
        self._regions.add(buffer)
        return buffer

    def lookup_prefix(self, names: Iterable[str], *, directory: StrPath = "", readahead: bool = False) -> int:
        """How many of the names, in their order, exist before the first that doesn't. They are relative to
        `directory`. With `readahead` the mount brings those into the page cache, in the background."""
        place = self.path_of(directory)
        wanted = [os.fsencode(name) for name in names]
        if not self.has("lookup_prefix"):
            return _plain_prefix(place, wanted)
        found = 0
        with self._directory(place) as fd:
            for names_of_call in _calls(wanted):
                text = b"".join(name + b"\0" for name in names_of_call)
                flags = _abi.PREFIX_READAHEAD if readahead else 0
                argument = bytearray(_abi.PREFIX.pack(len(names_of_call), flags, len(text), 0, 0, 0) + text)
                _abi.ioctl(fd, _abi.NR_LOOKUP_PREFIX, argument)
                here = _abi.PREFIX.unpack_from(argument)[3]
                found += here
                if here < len(names_of_call):
                    break
        return found

    def locate(self, name: StrPath) -> Located:
        """Where a file really is; see `File.locate`."""
        with self.open(name) as file:
            return file.locate()

    def query(self) -> Facts:
        """What the mount says now; an Error where there is no fast path."""
        with self._directory() as fd:
            return query(fd)

    def check(self) -> None:
        """Raises if the directory isn't there, or the fast path isn't any more where it was."""
        if not self.direct:
            os.stat(self.path)
            return
        try:
            self._renew(self.query())
        except Error as error:
            if error.errno == errno.ENOTTY:
                raise Error(errno.ENODEV, "QUERY") from error
            raise

    def root(self) -> str:
        """The mount point that the directory is in."""
        place = os.path.realpath(self.path)
        device = os.stat(place).st_dev
        while place != "/" and os.stat(os.path.dirname(place)).st_dev == device:
            place = os.path.dirname(place)
        return place

    def close(self) -> None:
        """Releases all buffers."""
        for region in self._regions.all():
            with contextlib.suppress(OSError):
                region.release()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def __enter__(self) -> "Mount":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _directory(self, path: Optional[str] = None) -> Iterator[int]:
        """The directory, open only as long as it takes: an open one would keep the mount busy."""
        fd = os.open(path or self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _renew(self, facts: Facts) -> None:
        """Follows a remount: buffers are registered anew when they are used next."""
        if facts.session != self.session:
            with self._lock:
                self.facts, self.session = facts, facts.session

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max(1, self._plain_threads), thread_name_prefix="kvfs-plain")
            return self._pool


def _plain_prefix(place: str, names: List[bytes]) -> int:
    for found, name in enumerate(names):
        try:
            os.stat(os.path.join(os.fsencode(place), name))
        except (FileNotFoundError, NotADirectoryError):
            return found
    return len(names)


def _calls(names: List[bytes]) -> Iterator[List[bytes]]:
    """Splits names over calls, each with as many as fit."""
    call: List[bytes] = []
    size = 0
    for name in names:
        if not name or b"\0" in name or len(name) >= _abi.PREFIX_NAMES_MAX:
            raise ValueError(f"{name!r} can't be a file's name")
        if size + len(name) + 1 > _abi.PREFIX_NAMES_MAX:
            yield call
            call, size = [], 0
        call.append(name)
        size += len(name) + 1
    if call:
        yield call
