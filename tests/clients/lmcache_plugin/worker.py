"""One tensor-parallel worker: the real LMCache StorageManager with the kvfs plugin, driven from outside.

Runs inside the environment of the other LMCache test and obeys one JSON command per line of its standard
input, answering each with one line. LMCache makes the plugin itself, from `storage_plugins` in its
configuration, and all stores, lookups and loads go through its StorageManager.

No answer is taken from memory that could still hold it: every buffer is overwritten before it goes back to
the pool that the next read takes it from.
"""

import asyncio
import hashlib
import os
import sys
import time

import numpy as np
import torch
from kvfs.lmcache import KvfsBackend, file_name
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.event_manager import EventManager
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.pin_monitor import PinMonitor
from lmcache.v1.storage_backend.storage_manager import StorageManager

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from commands import answers, obey  # noqa: E402

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
NAME = "kvfs"
POISON = 0xA5
PATIENCE = 120  # seconds that one operation may take


def raw(obj):
    """The bytes of one of LMCache's memory objects, writable."""
    return memoryview(obj.byte_array).cast("B")


class Worker:
    """A rank of a serving engine: its LMCache storage manager and the chunks it has stored."""

    def __init__(self, rank, world, seat):
        self.rank, self.world, self.seat = rank, world, seat

    def open(self, directory, scenario, chunks, nbytes, settings, local_cpu):
        """Makes the storage manager as an engine does at its start."""
        self.scenario, self.nbytes = scenario, nbytes
        self.shape = torch.Size([2, 1, 1, nbytes // 4])  # one layer, K and V, bfloat16
        pool = (2 * chunks + 2) * (nbytes + 4096)
        extra = {
            "storage_plugin.kvfs.module_path": "kvfs.lmcache",
            "storage_plugin.kvfs.class_name": "KvfsBackend",
            "kvfs.path": directory,
            **settings,
        }
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=256,
            local_cpu=local_cpu,
            max_local_cpu_size=pool / 2**30 + 0.03,
            storage_plugins=[NAME],
            extra_config=extra,
        )
        metadata = LMCacheMetadata(
            model_name=MODEL,
            world_size=self.world,
            local_world_size=self.world,
            worker_id=self.rank,
            local_worker_id=self.rank,
            kv_dtype=torch.bfloat16,
            kv_shape=(1, 2, 1, 1, nbytes // 4),
        )
        PinMonitor.GetOrCreate(config, metadata)
        self.config, self.metadata = config, metadata
        self.manager = StorageManager(config, metadata, EventManager())
        self.plugin = self.manager.storage_backends[NAME]
        self.cpu = self.manager.storage_backends["LocalCPUBackend"]
        self.keys = [self._key(i) for i in range(chunks)]
        self.originals = [self._content(i) for i in range(chunks)]
        return {"found": self._found(), "direct": self.plugin.mount.direct, "files": self._files(self.keys)}

    def _key(self, chunk):
        digest = hashlib.sha256(f"{self.scenario}/{chunk}".encode()).digest()
        return CacheEngineKey(MODEL, self.world, self.rank, int.from_bytes(digest[:8], "big"), torch.bfloat16)

    def _content(self, chunk):
        """Bytes that no other worker, chunk, scenario or offset has."""
        seed = hashlib.sha256(f"{self.scenario}/{self.seat}/{chunk}".encode()).digest()
        return memoryview(np.random.default_rng(int.from_bytes(seed, "big")).bytes(self.nbytes))

    def _files(self, keys):
        return {
            file_name(key): hashlib.sha256(self.originals[self.keys.index(key)]).hexdigest() for key in keys
        }

    def _found(self):
        hits, _ = self.manager.batched_contains(self.keys, pin=True)
        self.manager.batched_unpin(self.keys)
        return hits

    def store(self):
        objects = []
        for original in self.originals:
            obj = self.manager.allocate(self.shape, torch.bfloat16, MemoryFormat.KV_2LTD)
            raw(obj)[:] = original
            obj.ref_count_up()  # to be overwritten below, when LMCache is done with it
            objects.append(obj)
        begin = time.perf_counter()
        self.manager.batched_put(self.keys, objects)
        while any(self.plugin.exists_in_put_tasks(key) for key in self.keys):
            if time.perf_counter() > begin + PATIENCE:
                raise TimeoutError("a put did not finish")
            time.sleep(0.0005)
        seconds = time.perf_counter() - begin
        leaked = sum(obj.get_ref_count() != 1 for obj in objects)
        self._discard(objects)
        return {"seconds": seconds, "leaked": leaked - self._forget()}

    def _forget(self):
        """Removes the chunks from LMCache's memory, so that the next load is one; how many were there."""
        return self.manager.batched_remove(self.keys, ["LocalCPUBackend"])

    def contains(self):
        single = sum(self.manager.contains(key) == NAME for key in self.keys)
        return {"present": single, "found": self._found()}

    def scheduler(self):
        """What the plugin finds in a process that has no memory for chunks."""
        plugin = KvfsBackend(config=self.config, metadata=self.metadata, loop=self.manager.loop)
        found = plugin.batched_contains(self.keys)
        plugin.close()
        return {"found": found}

    def _discard(self, objects):
        for obj in objects:
            if obj is not None:
                raw(obj)[:] = bytes([POISON]) * self.nbytes
                obj.ref_count_down()

    def _compare(self, read):
        begin = time.perf_counter()
        objects = read()
        seconds = time.perf_counter() - begin
        equal = [obj is not None and raw(obj) == original for obj, original in zip(objects, self.originals)]
        wrong = sum(obj is not None and not same for obj, same in zip(objects, equal))
        self._discard(objects)
        # A single get leaves the chunk in LMCache's memory as well.
        self._forget()
        return {"equal": sum(equal), "wrong": wrong, "seconds": seconds}

    def get(self):
        return self._compare(lambda: [self.manager.get(key) for key in self.keys])

    def batched_get(self):
        return self._compare(lambda: self.manager.batched_get(self.keys, location=NAME))

    def prefetch(self):
        """The asynchronous load ahead of a request: look up, load."""

        async def load():
            found = await self.plugin.batched_async_contains("lookup", self.keys, pin=True)
            return await self.plugin.batched_get_non_blocking("lookup", self.keys[:found])

        def read():
            loaded = asyncio.run_coroutine_threadsafe(load(), self.manager.loop).result(PATIENCE)
            return loaded + [None] * (len(self.keys) - len(loaded))

        return self._compare(read)

    def remove(self, count):
        """Removes the last `count` chunks; what follows is about the others."""
        gone = self.keys[-count:]
        files = list(self._files(gone))
        removed = self.manager.batched_remove(gone, [NAME])
        again = self.manager.batched_remove(gone, [NAME])
        self.keys, self.originals = self.keys[:-count], self.originals[:-count]
        return {"removed": removed, "again": again, "files": files}

    def close(self):
        free = self.plugin._slab is None or self.plugin._slab.total_allocated_size == 0
        self.manager.close()
        del self.manager, self.plugin, self.cpu, self.originals
        PinMonitor.DestroyInstance() if hasattr(PinMonitor, "DestroyInstance") else None
        return {"free": free}


def main():
    channel = answers()
    torch.set_num_threads(1)
    worker = Worker(*map(int, sys.argv[1:4]))
    obey(worker, channel)


if __name__ == "__main__":
    main()
