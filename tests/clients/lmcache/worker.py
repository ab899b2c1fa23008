"""One tensor-parallel worker: the real LMCache LocalDiskBackend, driven from outside.

Runs inside the environment of `environment.py` and obeys one JSON command per line of
its standard input, answering each with one line. It stands where a serving engine's
worker process stands: LMCache's code below it is as published, and its index of what is
on disk lives in this process's memory, which is why the process outlives a remount.

No answer is taken from memory that could still hold it: every buffer is overwritten
before it goes back to the pool that the next read takes it from.
"""

import asyncio
import hashlib
import os
import sys
import threading
import time

import numpy as np
import setproctitle
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.pin_monitor import PinMonitor
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from commands import answers, obey  # noqa: E402

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
POISON = 0xA5
PATIENCE = 120  # seconds that one operation may take


def raw(obj):
    """The bytes of one of LMCache's memory objects, writable."""
    return memoryview(obj.byte_array).cast("B")


def same(obj, original):
    return obj is not None and raw(obj) == original


class Worker:
    """A rank of a serving engine: its LMCache backends and the chunks it has stored."""

    def __init__(self, rank, world, seat):
        self.rank, self.world, self.seat = rank, world, seat
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def open(self, directory, scenario, chunks, nbytes, odirect):
        """Makes the backends as an engine does at its start."""
        self.scenario, self.nbytes = scenario, nbytes
        # One layer, two (K and V), bfloat16: the hidden size makes up the rest.
        self.shape = torch.Size([2, 1, 1, nbytes // 4])
        pool = (2 * chunks + 2) * (nbytes + 4096)
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=256, local_cpu=False, max_local_cpu_size=pool / 2**30 + 0.03,
            local_disk=directory, max_local_disk_size=50.0, extra_config={"use_odirect": odirect})
        metadata = LMCacheMetadata(
            model_name=MODEL, world_size=self.world, local_world_size=self.world,
            worker_id=self.rank, local_worker_id=self.rank, kv_dtype=torch.bfloat16,
            kv_shape=(1, 2, 1, 1, nbytes // 4))
        PinMonitor.GetOrCreate(config, metadata)
        self.cpu = LocalCPUBackend(config, metadata, dst_device="cpu")
        self.disk = LocalDiskBackend(config, self.loop, self.cpu, dst_device="cpu", metadata=metadata)
        self.keys = [self._key(i) for i in range(chunks)]
        self.originals = [self._content(i) for i in range(chunks)]
        return {
            "empty": not any(self.disk.contains(key) for key in self.keys),
            "direct": self.disk.use_odirect and nbytes % self.disk.os_disk_bs == 0,
        }

    def _key(self, chunk):
        # Ranks of one engine share their hashes, as they share their prompts.
        engine = self.seat - self.rank
        digest = hashlib.sha256(f"{self.scenario}/{engine}/{chunk}".encode()).digest()
        return CacheEngineKey(MODEL, self.world, self.rank, int.from_bytes(digest[:8], "big"), torch.bfloat16)

    def _content(self, chunk):
        """Bytes that no other worker, chunk, scenario or offset has."""
        seed = hashlib.sha256(f"{self.scenario}/{self.seat}/{chunk}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        return memoryview(rng.bytes(self.nbytes))

    def _file(self, key):
        return os.path.basename(self.disk._key_to_path(key))

    def _discard(self, objects):
        for obj in objects:
            raw(obj)[:] = bytes([POISON]) * self.nbytes
            obj.ref_count_down()

    def store(self):
        objects = []
        for original in self.originals:
            obj = self.cpu.allocate(self.shape, torch.bfloat16, MemoryFormat.KV_2LTD)
            raw(obj)[:] = original
            objects.append(obj)
        stored = threading.Semaphore(0)
        begin = time.perf_counter()
        self.disk.batched_submit_put_task(self.keys, objects, on_complete_callback=lambda _: stored.release())
        for _ in self.keys:
            if not stored.acquire(timeout=PATIENCE):
                raise TimeoutError("LMCache did not finish a put")
        seconds = time.perf_counter() - begin
        self._discard(objects)
        files = {
            self._file(key): hashlib.sha256(original).hexdigest()
            for key, original in zip(self.keys, self.originals)
        }
        return {"files": files, "seconds": seconds}

    def contains(self):
        return {"present": sum(self.disk.contains(key) for key in self.keys)}

    def _compare(self, read):
        begin = time.perf_counter()
        objects = read()
        seconds = time.perf_counter() - begin
        equal = sum(map(same, objects, self.originals))
        self._discard([obj for obj in objects if obj is not None])
        return {"equal": equal, "seconds": seconds}

    def get(self):
        return self._compare(lambda: [self.disk.get_blocking(key) for key in self.keys])

    def batched_get(self):
        return self._compare(lambda: self.disk.batched_get_blocking(self.keys))

    def prefetch(self):
        """The asynchronous load ahead of a request: look up and pin, load, use, unpin."""

        async def load():
            found = await self.disk.batched_async_contains("lookup", self.keys, pin=True)
            return await self.disk.batched_get_non_blocking("lookup", self.keys[:found])

        def read():
            objects = asyncio.run_coroutine_threadsafe(load(), self.loop).result(PATIENCE)
            for key, obj in zip(self.keys, objects):
                self.disk.unpin(key)
                obj.unpin()
            return objects

        return self._compare(read)

    def remove(self, count):
        """Removes the first `count` chunks; what follows is about the others."""
        gone, self.keys = self.keys[:count], self.keys[count:]
        self.originals = self.originals[count:]
        removed = sum(self.disk.remove(key) for key in gone)
        return {"removed": removed, "present": sum(self.disk.contains(key) for key in gone),
                "files": [self._file(key) for key in gone]}

    def close(self):
        self.disk.close()
        self.cpu.close()
        del self.disk, self.cpu, self.originals
        return {}


def main():
    channel = answers()
    torch.set_num_threads(1)
    if sys.argv[4]:
        setproctitle.setproctitle(sys.argv[4])  # as vLLM does, which wipes the environment
    worker = Worker(*map(int, sys.argv[1:4]))
    obey(worker, channel)


if __name__ == "__main__":
    main()
