"""A storage plugin for LMCache 0.5.6 (`storage_plugins`): chunks as files on a kvfs mount, by the fast path.

    storage_plugins: ["kvfs"]
    extra_config:
      storage_plugin.kvfs.module_path: kvfs.lmcache
      storage_plugin.kvfs.class_name: KvfsBackend
      kvfs.path: /mnt/kv/lmcache

A chunk is one file: a header of 4096 bytes that says what it is, then its bytes. Loads go straight into a
registered buffer, and what LMCache gets is memory in that buffer. Stores are copied into one first, since
LMCache's own pinned memory can't be shared. A directory outside of kvfs works too, by plain reads and writes.

What always holds: a file has its final name only when it's whole; a chunk is given out only when its file is
as long as its header says, the header names the very key, and every byte was read. Everything else is a miss.
No operation on a chunk raises: LMCache takes an engine down when one does.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, List, Optional, Sequence, Set, Tuple

import torch
from lmcache.logging import init_logger
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_allocators.tensor_memory_allocator import TensorMemoryAllocator
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.storage_backend.abstract_backend import StoragePluginInterface

from . import Batch, File, HostBuffer, Mount
from ._host import memory_of

logger = init_logger(__name__)

HEADER = 4096
MAGIC = b"KVFSLMC1"
# From so many names on one LOOKUP_PREFIX, with the open and close of a directory around it, beats stat calls.
_PREFIX_FROM = 4
_NAME_MAX = 200  # room for the suffix of temporary names

# A chunk to be loaded: its place among those asked for, its key, its open file, the file's bytes.
Found = Tuple[int, CacheEngineKey, File, int]


def file_name(key: CacheEngineKey) -> str:
    """The file of a key, below the plugin's directory. kvfs reads the worker's rank from it."""
    text = key.to_string()
    digest = hashlib.sha256(text.encode()).hexdigest()
    name = text.replace("/", "-SEP-")
    if len(os.fsencode(name)) > _NAME_MAX:
        rank = f"@{key.world_size}@{key.worker_id}@{key.chunk_hash_hex}@{key._dtype_str}"
        name = digest[:32] + rank
    # Creates in one directory wait for each other, so there are 256.
    return f"{digest[:2]}/{name}.data"


def encode_header(key: CacheEngineKey, obj: MemoryObj) -> bytes:
    """What a file says of its chunk. ValueError if that doesn't fit."""
    meta = obj.metadata
    shapes = meta.shapes if meta.shapes is not None else [meta.shape]
    dtypes = meta.dtypes if meta.dtypes is not None else [meta.dtype]
    positions = meta.cached_positions
    text = json.dumps(
        {
            "key": key.to_string(),
            "bytes": len(obj.byte_array),
            "shapes": [list(shape) for shape in shapes],
            "dtypes": [str(dtype).replace("torch.", "") for dtype in dtypes],
            "format": meta.fmt.name,
            "positions": None if positions is None else positions.tolist(),
        },
        separators=(",", ":"),
    ).encode()
    if len(text) > HEADER - len(MAGIC) - 4:
        raise ValueError(f"what is to be said of {key.to_string()} takes {len(text)} bytes")
    return (MAGIC + len(text).to_bytes(4, "little") + text).ljust(HEADER, b"\0")


class Header:
    """What a file says of its chunk. ValueError (KeyError, ...) if it isn't this key's, or makes no sense."""

    def __init__(self, raw: bytes, key: CacheEngineKey, size: int) -> None:
        if len(raw) != HEADER or raw[: len(MAGIC)] != MAGIC:
            raise ValueError("no header")
        length = int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 4], "little")
        said = json.loads(raw[len(MAGIC) + 4 : len(MAGIC) + 4 + length])
        self.nbytes = int(said["bytes"])
        self.shapes = [torch.Size(shape) for shape in said["shapes"]]
        self.dtypes = [getattr(torch, name) for name in said["dtypes"]]
        self.format = MemoryFormat[said["format"]]
        self.positions = None if said["positions"] is None else torch.tensor(said["positions"])
        if said["key"] != key.to_string():
            raise ValueError(f"it's the chunk of {said['key']}")
        if size != HEADER + self.nbytes:
            raise ValueError(f"it has {size} bytes instead of {HEADER + self.nbytes}")
        if self.nbytes != sum(s.numel() * d.itemsize for s, d in zip(self.shapes, self.dtypes)):
            raise ValueError("its shape doesn't have so many bytes")


class _NoStats:
    """LMCache's gauges are about its own pool."""

    def update_local_cache_usage(self, _: int) -> None:
        """Tells nobody."""

    def update_active_memory_objs_count(self, _: int) -> None:
        """Tells nobody."""


class Slab(TensorMemoryAllocator):
    """LMCache's memory objects in a registered buffer."""

    def __init__(self, buffer: HostBuffer) -> None:
        super().__init__(torch.frombuffer(buffer, dtype=torch.uint8))
        self.stats_monitor = _NoStats()
        # A finalizer may free an object on the thread that is just allocating one.
        self._lock = threading.RLock()

    def allocate(self, *args: Any, **kwargs: Any) -> Optional[MemoryObj]:
        """As its parent, from any thread."""
        with self._lock:
            return super().allocate(*args, **kwargs)

    def batched_allocate(self, *args: Any, **kwargs: Any) -> Optional[List[MemoryObj]]:
        """As its parent, from any thread."""
        with self._lock:
            return super().batched_allocate(*args, **kwargs)

    def free(self, *args: Any, **kwargs: Any) -> None:
        """As its parent, from any thread."""
        with self._lock:
            super().free(*args, **kwargs)

    def batched_free(self, *args: Any, **kwargs: Any) -> None:
        """As its parent, from any thread."""
        with self._lock:
            super().batched_free(*args, **kwargs)


class KvfsBackend(StoragePluginInterface):
    """The plugin. Its settings in `extra_config`:

    - `kvfs.path`: its directory, on a kvfs mount by preference.
    - `kvfs.require` (false): fail where there is no fast path. Set it in production: else a mount that isn't
      there means plain files on whatever disk the directory is on.
    - `kvfs.buffer_gib` (2): the registered buffer that chunks are loaded into. When it's full, they are read
      into LMCache's own memory.
    - `kvfs.threads` (4): stores at the same time. Each has a buffer of a chunk's size.
    - `kvfs.stores` ("direct"): "plain" writes chunks from LMCache's memory through the page cache instead.
    """

    def __init__(
        self,
        dst_device: str = "cpu",
        config: Any = None,
        metadata: Any = None,
        local_cpu_backend: Any = None,
        loop: Optional[asyncio.AbstractEventLoop] = None,
    ) -> None:
        super().__init__(dst_device, config, metadata, local_cpu_backend, loop)
        extra = (config.extra_config or {}) if config is not None else {}
        path = extra.get("kvfs.path")
        if not path:
            raise ValueError("extra_config['kvfs.path'] says where the chunks are to be: it isn't set")
        os.makedirs(path, exist_ok=True)
        threads = int(extra.get("kvfs.threads", 4))
        self.mount = Mount(path, require=_truth(extra.get("kvfs.require", False)), plain_threads=threads)
        self.direct_stores = self.mount.direct and extra.get("kvfs.stores", "direct") != "plain"
        self._slab: Optional[Slab] = None
        if self.mount.direct and local_cpu_backend is not None:  # a scheduler only asks what is there
            self._slab = self._make_slab(int(float(extra.get("kvfs.buffer_gib", 2)) * (1 << 30)))
        self._writers = ThreadPoolExecutor(threads, thread_name_prefix="kvfs-store")
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="kvfs-load")
        self._staging = threading.local()
        self._lock = threading.Lock()
        self._storing: Set[CacheEngineKey] = set()
        logger.info("kvfs at %s: %s", path, self.mount.why_not or "fast path")

    def __str__(self) -> str:
        return "KvfsBackend"

    def _make_slab(self, size: int) -> Optional[Slab]:
        buffer = HostBuffer(max(size, 1 << 20))
        self.mount.register(buffer)
        slab = Slab(buffer)
        if self.dst_device.startswith("cuda") and torch.cuda.is_available():
            # Without it copies to the GPU are slow; with an error they are just that.
            code = torch.cuda.cudart().cudaHostRegister(slab.buffer.data_ptr(), len(buffer), 0)
            if int(code) != 0:
                logger.warning("the buffer for loads can't be pinned (CUDA error %s)", code)
        return slab

    # What is there.

    def _path(self, name: str) -> str:
        return os.path.join(self.mount.path, name)

    def contains(self, key: CacheEngineKey, pin: bool = False) -> bool:
        """Whether the chunk is there. Nothing has to be pinned: the plugin evicts nothing."""
        return os.path.exists(self._path(file_name(key)))

    def batched_contains(self, keys: List[CacheEngineKey], pin: bool = False) -> int:
        """How many are there before the first that isn't."""
        names = [file_name(key) for key in keys]
        try:
            if len(names) >= _PREFIX_FROM:
                return self.mount.lookup_prefix(names)
            return next(
                (at for at, name in enumerate(names) if not os.path.exists(self._path(name))), len(names)
            )
        except OSError as error:
            logger.warning("a lookup failed: %s", error)
            return 0

    async def batched_async_contains(
        self, lookup_id: str, keys: List[CacheEngineKey], pin: bool = False
    ) -> int:
        """The same without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.batched_contains, keys)

    def exists_in_put_tasks(self, key: CacheEngineKey) -> bool:
        """Whether it's being stored."""
        with self._lock:
            return key in self._storing

    def pin(self, key: CacheEngineKey) -> bool:
        """Does nothing but look."""
        return self.contains(key)

    def unpin(self, key: CacheEngineKey) -> bool:
        """Does nothing."""
        return True

    def remove(self, key: CacheEngineKey, force: bool = True) -> bool:
        """Removes the chunk; whether it was there."""
        try:
            os.unlink(self._path(file_name(key)))
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("a chunk can't be removed: %s", error)
            return False
        return True

    # Storing.

    def batched_submit_put_task(
        self,
        keys: Sequence[CacheEngineKey],
        objs: List[MemoryObj],
        transfer_spec: Any = None,
        on_complete_callback: Optional[Callable[[CacheEngineKey], None]] = None,
    ) -> Optional[List[Future]]:
        """Stores chunks in the background, those that aren't there yet."""
        futures = []
        for key, obj in zip(keys, objs):
            with self._lock:
                if key in self._storing:
                    continue
                self._storing.add(key)
            obj.ref_count_up()
            try:
                futures.append(self._writers.submit(self._store, key, obj, on_complete_callback))
            except RuntimeError:  # closed
                self._stored(key, obj)
        return futures or None

    def _stored(self, key: CacheEngineKey, obj: MemoryObj) -> None:
        obj.ref_count_down()
        with self._lock:
            self._storing.discard(key)

    def _store(
        self, key: CacheEngineKey, obj: MemoryObj, then: Optional[Callable[[CacheEngineKey], None]]
    ) -> bool:
        try:
            name = file_name(key)
            if not os.path.exists(self._path(name)):
                self._write(name, encode_header(key, obj), bytes_of(obj))
        except (OSError, ValueError) as error:
            logger.warning("chunk %s can't be stored: %s", key.to_string(), error)
            return False
        finally:
            self._stored(key, obj)
        if then is not None:
            try:
                then(key)
            except Exception as error:  # noqa: BLE001 - the caller's
                logger.warning("on_complete_callback failed for %s: %s", key, error)
        return True

    def _write(self, name: str, header: bytes, data: memoryview) -> None:
        """Makes the file under a name of its own, then gives it the final one."""
        temporary = f"{name}.tmp.{uuid.uuid4().hex}"
        with self._create(temporary) as file:
            try:
                if self.direct_stores:
                    whole = self._stage(header, data)
                    file.write(whole)
                else:
                    file.write(header)
                    file.write(data, file_offset=HEADER)
                os.rename(self._path(temporary), self._path(name))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(self._path(temporary))
                raise

    def _create(self, name: str) -> File:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return self.mount.open(name, flags)
        except FileNotFoundError:
            # Not the directory itself: if that's gone, so is the mount.
            self.mount.check()
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(self._path(name)))
            return self.mount.open(name, flags)

    def _stage(self, header: bytes, data: memoryview) -> memoryview:
        """A copy in this thread's registered buffer."""
        size = HEADER + data.nbytes
        buffer = getattr(self._staging, "buffer", None)
        if buffer is None or len(buffer) < size:
            if buffer is not None:
                self._staging.registered.release()
            self._staging.buffer = buffer = HostBuffer(size)
            self._staging.registered = self.mount.register(buffer)
        whole = memoryview(buffer)[:size]
        whole[:HEADER] = header
        if data.nbytes:
            # Unlike an assignment of slices, without the interpreter's lock.
            ctypes.memmove(memory_of(whole)[0] + HEADER, memory_of(data)[0], data.nbytes)
        return whole

    # Loading.

    def get_blocking(self, key: CacheEngineKey) -> Optional[MemoryObj]:
        """The chunk; None if it isn't there or can't be read as a whole."""
        return self._load([key])[0]

    def batched_get_blocking(self, keys: List[CacheEngineKey]) -> List[Optional[MemoryObj]]:
        """The same for many, all at once."""
        return self._load(keys)

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: List[CacheEngineKey], transfer_spec: Any = None
    ) -> List[MemoryObj]:
        """The chunks before the first that can't be had."""
        loaded = await asyncio.get_running_loop().run_in_executor(self._readers, self._load, keys)
        prefix: List[MemoryObj] = []
        for at, obj in enumerate(loaded):
            if obj is None:
                for useless in loaded[at:]:
                    if useless is not None:
                        useless.ref_count_down()
                break
            prefix.append(obj)
        return prefix

    def _load(self, keys: Sequence[CacheEngineKey]) -> List[Optional[MemoryObj]]:
        loaded: List[Optional[MemoryObj]] = [None] * len(keys)
        with contextlib.ExitStack() as stack:
            chunks: List[Found] = []
            for at, key in enumerate(keys):
                try:
                    file = stack.enter_context(self.mount.open(file_name(key)))
                    chunks.append((at, key, file, file.size()))
                except FileNotFoundError:
                    pass
                except OSError as error:
                    logger.warning("chunk %s can't be opened: %s", key.to_string(), error)
            try:
                self._load_open(chunks, loaded)
            except Exception as error:  # noqa: BLE001 - LMCache must see misses, whatever it is
                logger.error("loading chunks failed: %s", error)
                for at, obj in enumerate(loaded):
                    if obj is not None:
                        obj.ref_count_down()
                        loaded[at] = None
        return loaded

    def _load_open(self, chunks: List[Found], loaded: List[Optional[MemoryObj]]) -> None:
        wanted = Batch(self.mount)
        taken: List[Tuple[int, CacheEngineKey, MemoryObj]] = []
        headers = self._read_headers([file for _, _, file, _ in chunks])
        try:
            for (at, key, file, size), raw in zip(chunks, headers):
                try:
                    header = Header(raw, key, size)
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    logger.warning("the file of %s isn't its chunk: %s", key.to_string(), error)
                    continue
                obj = self._allocate(header)
                if obj is None:
                    logger.warning("there is no memory for chunk %s", key.to_string())
                    continue
                taken.append((at, key, obj))
                obj.metadata.cached_positions = header.positions
                wanted.read(file, bytes_of(obj), file_offset=HEADER)
            outcomes = wanted.submit()
        except BaseException:
            for _, _, obj in taken:
                obj.ref_count_down()
            raise
        for (at, key, obj), outcome in zip(taken, outcomes):
            if outcome.error is None and outcome.nbytes == len(obj.byte_array):
                loaded[at] = obj
            else:
                logger.warning("chunk %s can't be read: %s", key.to_string(), outcome.error or "it's cut off")
                obj.ref_count_down()

    def _read_headers(self, files: List[File]) -> List[bytes]:
        size = HEADER * len(files)
        block = (
            self._slab.allocate(torch.Size([size]), torch.uint8) if self._slab is not None and size else None
        )
        try:
            space = bytes_of(block) if block is not None else memoryview(bytearray(size))
            batch = Batch(self.mount)
            for at, file in enumerate(files):
                batch.read(file, space[at * HEADER : (at + 1) * HEADER])
            return [
                bytes(space[at * HEADER : at * HEADER + outcome.nbytes])
                for at, outcome in enumerate(batch.submit())
            ]
        finally:
            if block is not None:
                block.ref_count_down()

    def _allocate(self, header: Header) -> Optional[MemoryObj]:
        """Memory for a chunk: registered if there is some left, else LMCache's."""
        if self._slab is not None and header.format != MemoryFormat.BINARY_BUFFER:
            obj = self._slab.allocate(header.shapes, header.dtypes, header.format)
            if obj is not None:
                return obj
        # Without waiting: who would free memory may be waiting for us.
        return self.local_cpu_backend.allocate(header.shapes, header.dtypes, header.format, busy_loop=False)

    def get_allocator_backend(self) -> Any:
        """LMCache's own memory: it has the chunks that are to be stored there already."""
        if self.local_cpu_backend is None:
            raise RuntimeError("a scheduler has no memory for chunks")
        return self.local_cpu_backend

    def close(self) -> None:
        """Finishes what is being stored. Loaded chunks stay good."""
        self._writers.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self.mount.close()


def bytes_of(obj: MemoryObj) -> memoryview:
    """The bytes of a chunk in memory."""
    return memoryview(obj.byte_array).cast("B")


def _truth(value: Any) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on") if isinstance(value, str) else bool(value)
