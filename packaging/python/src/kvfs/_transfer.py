"""Transfers: many in one call where the mount can, by `os.preadv` and `os.pwritev` where it can't.

What always holds: every transfer has one outcome, in the order they were added; one that is longer than a
call may be is moved in pieces, and its outcome counts what was moved without a gap from its start; a READ
that is short was at the end of the file, a WRITE is never short.
"""

import errno
import os
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

from . import _abi, _cuda
from ._abi import Error, error_of
from ._buffers import DeviceBuffer, Registered
from ._host import HostBuffer, bytes_of, memory_of

if TYPE_CHECKING:
    from ._mount import File, Mount

_PIECE_ALIGN = 1 << 20  # pieces of longer transfers begin at multiples of this: direct I/O stays possible


# A daemon after a crash may know neither a buffer nor a file, tells of one at a time, and may die as well.
_TRIES = 8


class Outcome(NamedTuple):
    """What became of a transfer."""

    nbytes: int
    error: Optional[OSError]

    def check(self) -> int:
        """The bytes moved; raises what went wrong."""
        if self.error is not None:
            raise self.error
        return self.nbytes


class _Transfer:
    """One transfer as it was asked for, with where its memory is."""

    def __init__(self, write: bool, file: "File", file_offset: int, length: int) -> None:
        self.write, self.file, self.file_offset, self.length = write, file, file_offset, length
        self.region: Optional[Registered] = None
        self.region_offset = 0
        self.view: Optional[memoryview] = None  # host memory
        self.pointer = 0  # GPU memory
        self.keep: Any = None  # alive until it's done
        self.moved, self.short = 0, False
        self.error: Optional[OSError] = None
        self.numbers = (0, 0)  # the buffer's and the file's that it was submitted with

    def renewed(self) -> bool:
        """Whether it failed because a daemon after a crash doesn't know what it names, and does so now: then
        nothing has been done of it."""
        number = self.error.errno if isinstance(self.error, Error) else None
        try:
            if number == errno.ENOENT and self.region is not None:
                known = self.region.renew(self.numbers[0])
            else:
                known = number == errno.EBADF and self.file.renew(self.numbers[1])
        except OSError:
            known = False
        if known:
            self.moved, self.short, self.error = 0, False, None
        return known

    def add(self, asked: int, result: int) -> None:
        """Counts the result of a piece."""
        if self.error is not None or self.short:
            return
        if result < 0:
            self.error = error_of(result, "WRITE" if self.write else "READ")
        else:
            self.moved += result
            self.short = result < asked
            if self.short and self.write:
                self.error = Error(errno.EIO, "WRITE")

    def outcome(self) -> Outcome:
        """How it ended."""
        return Outcome(self.moved if self.error is None else 0, self.error)


class Batch:
    """Transfers that are submitted together. They run in any order, at the same time."""

    def __init__(self, mount: "Mount") -> None:
        self._mount = mount
        self._transfers: List[_Transfer] = []

    def __len__(self) -> int:
        return len(self._transfers)

    def read(
        self,
        file: "File",
        buffer: Any,
        *,
        file_offset: int = 0,
        buffer_offset: int = 0,
        length: Optional[int] = None,
    ) -> None:
        """Adds a transfer from the file to the buffer: `length` bytes, or as many as the buffer has from
        `buffer_offset` on. The buffer is a Registered, a HostBuffer, GPU memory, or anything writable with
        the buffer protocol; parts of registered memory (slices of it) take the fast path as well."""
        self._add(False, file, buffer, file_offset, buffer_offset, length)

    def write(
        self,
        file: "File",
        buffer: Any,
        *,
        file_offset: int = 0,
        buffer_offset: int = 0,
        length: Optional[int] = None,
    ) -> None:
        """Adds a transfer from the buffer to the file, likewise."""
        self._add(True, file, buffer, file_offset, buffer_offset, length)

    def _add(
        self,
        write: bool,
        file: "File",
        buffer: Any,
        file_offset: int,
        buffer_offset: int,
        length: Optional[int],
    ) -> None:
        gpu = None
        view: Optional[memoryview] = None
        if isinstance(buffer, Registered):
            total, address = buffer.length, buffer.address
            gpu = (address, total) if buffer.gpu else None
            if gpu is None:
                view = bytes_of(buffer.object)
        else:
            gpu = _cuda.region_of(buffer)
            if gpu is None:
                view = bytes_of(buffer)
                if not write and view.readonly:
                    raise TypeError("a READ needs writable memory")
                address, total = (0, view.nbytes) if view.readonly else memory_of(view)
            else:
                address, total = gpu
        length = total - buffer_offset if length is None else length
        if min(length, buffer_offset, file_offset) < 0 or buffer_offset + length > total:
            raise ValueError(f"{length} bytes at {buffer_offset} of a buffer of {total} bytes")
        transfer = _Transfer(write, file, file_offset, length)
        transfer.keep = buffer
        if gpu is not None:
            transfer.pointer = address + buffer_offset
        elif view is not None:
            transfer.view = view[buffer_offset : buffer_offset + length]
        if address and self._mount.direct and length:
            found = self._mount._regions.find(address + buffer_offset, length)
            if found is not None:
                transfer.region, transfer.region_offset = found
        self._transfers.append(transfer)

    def submit(self, *, synchronize: bool = True, stream: Optional[int] = None) -> List[Outcome]:
        """Makes the transfers, waits for them, and says for each how it ended. The batch is empty afterwards.

        The daemon can't see CUDA streams, so before WRITEs from GPU memory all work of this process on that
        GPU is waited for; with `stream` (a CUstream as a number) only that stream's; with `synchronize` off
        nothing, if the caller has done so.
        """
        transfers, self._transfers = self._transfers, []
        if synchronize:
            self._synchronize(transfers, stream)
        direct: List[_Transfer] = []
        plain: List[_Transfer] = []
        for transfer in transfers:
            usable = transfer.region is not None and self._usable(transfer.region)
            (direct if usable else plain).append(transfer)
        self._submit_direct(direct)
        if len(plain) > 1:
            list(self._mount._executor().map(_plain, plain))
        else:
            for transfer in plain:
                _plain(transfer)
        return [transfer.outcome() for transfer in transfers]

    def _usable(self, region: Registered) -> bool:
        """Whether its transfers can go by the fast path now."""
        facts = self._mount.facts
        if facts is None or not facts.has("batch"):
            return False
        if (facts.path_gpu if region.gpu else facts.path_host) == _abi.PATH_NONE:
            return False
        try:
            region.id()
        except (OSError, _cuda.CudaError):
            # It can't be registered anew. Memory of the daemon's own is gone then; any other is still there.
            return isinstance(region, DeviceBuffer)
        return True

    @staticmethod
    def _synchronize(transfers: List[_Transfer], stream: Optional[int]) -> None:
        pointers = [t.pointer for t in transfers if t.write and t.pointer]
        if pointers:
            cuda = _cuda.driver()
            for ordinal in {cuda.ordinal(pointer) for pointer in pointers}:
                cuda.synchronize(ordinal, stream)

    def _submit_direct(self, transfers: List[_Transfer]) -> None:
        for _ in range(_TRIES):
            self._submit_once(transfers)
            transfers = [transfer for transfer in transfers if transfer.renewed()]
            if not transfers:
                return
        self._submit_once(transfers)

    def _submit_once(self, transfers: List[_Transfer]) -> None:
        for call in _calls(transfers, *self._limits()):
            header = bytearray(_abi.BATCH.pack(len(call), 0, 0, 0))
            try:
                for number, (transfer, at, length) in enumerate(call):
                    header += self._op(number, transfer, at, length)
                _abi.ioctl(call[0][0].file.fileno(), _abi.NR_SUBMIT, header)
            except OSError as error:
                for transfer, _, _ in call:
                    transfer.error = transfer.error or error
                continue
            results = _abi.OP.iter_unpack(memoryview(header)[_abi.BATCH.size :])
            for (transfer, _, length), fields in zip(call, results):
                transfer.add(length, fields[8])

    def _limits(self) -> Tuple[int, int]:
        facts = self._mount.facts
        if facts is None:
            return _abi.BATCH_MAX, 1 << 62
        return max(1, min(facts.max_batch_ops, _abi.BATCH_MAX)), max(1, facts.max_io_bytes)

    @staticmethod
    def _op(number: int, transfer: _Transfer, at: int, length: int) -> bytes:
        region, file = transfer.region, transfer.file
        if region is None or file.fileno() < 0:
            raise Error(errno.EBADF, "SUBMIT")
        transfer.numbers = (region.id(), file.token)
        return _abi.OP.pack(
            _abi.OP_WRITE if transfer.write else _abi.OP_READ,
            0,
            transfer.numbers[1],
            transfer.numbers[0],
            transfer.region_offset + at,
            transfer.file_offset + at,
            length,
            number,
            0,
        )


def _calls(
    transfers: List[_Transfer], max_ops: int, max_bytes: int
) -> List[List[Tuple[_Transfer, int, int]]]:
    """The calls it takes, each a list of (transfer, where in it, bytes)."""
    piece = max_bytes - max_bytes % _PIECE_ALIGN if max_bytes >= _PIECE_ALIGN else max_bytes
    calls: List[List[Tuple[_Transfer, int, int]]] = []
    room = 0
    for transfer in transfers:
        at = 0
        while at < transfer.length:
            length = min(transfer.length - at, piece)
            if not calls or len(calls[-1]) == max_ops or length > room:
                calls.append([])
                room = max_bytes
            calls[-1].append((transfer, at, length))
            room -= length
            at += length
    return calls


def _plain(transfer: _Transfer) -> None:
    """Does it by preadv or pwritev."""
    try:
        fd = transfer.file.fileno()
        if transfer.view is not None:
            transfer.moved = _move(transfer.write, fd, transfer.view, transfer.file_offset)
        elif transfer.length:
            transfer.moved = _move_gpu(transfer, fd)
    except (OSError, _cuda.CudaError) as error:
        transfer.error = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))


def _move(write: bool, fd: int, view: memoryview, offset: int) -> int:
    moved = 0
    while moved < view.nbytes:
        rest = view[moved:]
        step = os.pwritev(fd, [rest], offset + moved) if write else os.preadv(fd, [rest], offset + moved)
        if step == 0:
            if write:
                raise Error(errno.EIO, "WRITE")
            break
        moved += step
    return moved


_BOUNCE = 16 << 20


def _move_gpu(transfer: _Transfer, fd: int) -> int:
    """GPU memory without the fast path: through host memory, piece by piece."""
    cuda = _cuda.driver()
    with_bounce = HostBuffer(min(transfer.length, _BOUNCE))
    moved = 0
    with memoryview(with_bounce) as bounce:
        address = memory_of(bounce)[0]
        while moved < transfer.length:
            part = bounce[: min(len(bounce), transfer.length - moved)]
            pointer, offset = transfer.pointer + moved, transfer.file_offset + moved
            if transfer.write:
                cuda.from_gpu(address, pointer, len(part))
                step = _move(True, fd, part, offset)
            else:
                step = _move(False, fd, part, offset)
                cuda.to_gpu(pointer, address, step)
            short = step < len(part)
            part.release()
            moved += step
            if short:
                break
    with_bounce.close()
    return moved
