"""One rank of an engine with LMCache's GDS backend, told to use no GDS: its data goes through mappings of the files.

    worker.py store|load CONFIG RANK WORLD CHUNKS BYTES

CONFIG is a configuration file of LMCache. Prints one JSON object.
"""

import asyncio
import hashlib
import json
import sys
import threading
import time

import numpy as np
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.gds_backend import GdsBackend

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PATIENCE = 120


def content(rank, chunk, nbytes):
    """Bytes that no other rank and chunk has."""
    return np.random.Generator(np.random.SFC64([rank, chunk])).integers(0, 256, nbytes, dtype=np.uint8)


def raw(memory):
    return memory.tensor.view(torch.uint8).reshape(-1).numpy()


class Engine:
    def __init__(self, config, rank, world, nbytes):
        self.loop = asyncio.new_event_loop()
        self.rank, self.world, self.shape = rank, world, torch.Size([2, 1, 1, nbytes // 4])
        config = LMCacheEngineConfig.from_file(config)
        metadata = LMCacheMetadata(
            model_name=MODEL, world_size=world, local_world_size=world, worker_id=rank, local_worker_id=rank,
            kv_dtype=torch.bfloat16, kv_shape=(1, 2, 1, 1, nbytes // 4))
        self.backend = GdsBackend(config, metadata, self.loop, dst_device=f"cuda:{rank}")
        # Not before: LMCache's scan of the files uses what its constructor sets last.
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.backend._scan_metadata_future.result(PATIENCE)
        self.known = len(self.backend.hot_cache)

    def key(self, chunk):
        digest = hashlib.sha256(f"{chunk}".encode()).digest()
        return CacheEngineKey(MODEL, self.world, self.rank, int.from_bytes(digest[:8], "big"), torch.bfloat16)

    def there(self, keys):
        return [key for key in keys if self.backend.contains(key)]

    def store(self, keys, data):
        memories = []
        for d in data:
            memories.append(self.backend.allocate(self.shape, torch.bfloat16, MemoryFormat.KV_2LTD, eviction=False))
            raw(memories[-1])[:] = d
        for future in self.backend.batched_submit_put_task(keys, memories):
            future.result(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while self.backend.save_metadata_tasks and time.monotonic() < deadline:
            time.sleep(0.01)
        for memory in memories:
            raw(memory)[:] = 0xA5  # the next to have this memory reads what it reads
            memory.ref_count_down()

    def load(self, keys):
        """{key: its bytes}, the first singly and the others in a batch."""
        got = [self.backend.get_blocking(key) for key in keys[:1]] + self.backend.batched_get_blocking(keys[1:])
        return {key: raw(memory) for key, memory in zip(keys, got, strict=True) if memory is not None}


def main():
    what, config = sys.argv[1:3]
    rank, world, chunks, nbytes = map(int, sys.argv[3:])
    engine = Engine(config, rank, world, nbytes)
    keys = {engine.key(chunk): content(rank, chunk, nbytes) for chunk in range(chunks)}
    answer = {"known": engine.known, "there": len(engine.there(keys)), "posix": engine.backend.gds_module is None}
    if what == "store":
        engine.store(list(keys), keys.values())
        answer["stored"] = len(engine.there(keys))
    else:
        loaded = engine.load(engine.there(keys))
        answer["equal"] = sum(np.array_equal(data, keys[key]) for key, data in loaded.items())
    print(json.dumps(answer), flush=True)
    sys.stdout.close()
    engine.backend.close()


main()
