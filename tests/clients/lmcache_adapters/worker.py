"""One process with LMCache's disk adapters: those of its multi-process server, and `fs://` of an engine's own process.

    worker.py store|load|remove NAME CHUNKS BYTES LINE      in the environment of the LMCache tests

LINE is a line of configuration as docs/CLIENTS.md has it: the value of `--l2-adapter`, or of `remote_url`. LMCache's own
parser reads it. Prints one JSON object.
"""

import argparse
import asyncio
import ctypes
import hashlib
import json
import mmap
import os
import select
import sys
import threading

import numpy as np
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters.config import add_l2_adapters_args, parse_args_to_l2_adapters_config
from lmcache.v1.distributed.l2_adapters.factory import create_l2_adapter_from_registry
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.pin_monitor import PinMonitor
from lmcache.v1.storage_backend.connector import ConnectorContext, parse_remote_url
from lmcache.v1.storage_backend.connector.fs_adapter import FsConnectorAdapter
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
WORLD = 8
PATIENCE_MS = 60_000


def content(rank, chunk, nbytes):
    """Bytes that no other rank and chunk has."""
    seed = int.from_bytes(hashlib.sha256(f"{rank}/{chunk}".encode()).digest()[:8], "big")
    return np.random.Generator(np.random.SFC64(seed)).integers(0, 256, nbytes, dtype=np.uint8)


class Object:
    """As much of LMCache's MemoryObj as an adapter uses."""

    def __init__(self, memory, address):
        self.byte_array, self.data = memory, np.frombuffer(memory, dtype=np.uint8)
        self.meta = MemoryObjMetadata(torch.Size([len(memory)]), torch.uint8, address, len(memory), ref_count=1)

    def get_size(self):
        return len(self.data)

    get_physical_size = get_size


class Arena:
    """Memory for so many objects, as LMCache's first level is: in one piece, which an adapter may register."""

    PAGE = 4096

    def __init__(self, count, nbytes):
        self.memory = mmap.mmap(-1, count * nbytes)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.description = L1MemoryDesc(base, count * nbytes, self.PAGE)
        view = memoryview(self.memory)
        # An address of a registered piece is given from its begin.
        self.objects = [Object(view[at:at + nbytes], at) for at in range(0, count * nbytes, nbytes)]


class Server:
    """An adapter of the multi-process server."""

    def __init__(self, line, count, nbytes):
        parser = add_l2_adapters_args(argparse.ArgumentParser())
        config = parse_args_to_l2_adapters_config(parser.parse_args(["--l2-adapter", line]))
        self.arena = Arena(count, nbytes)
        self.adapter = create_l2_adapter_from_registry(config.adapters[0], self.arena.description)

    def key(self, rank, chunk):
        digest = hashlib.sha256(f"{rank}/{chunk}".encode()).digest()
        return ObjectKey(digest, MODEL, WORLD << 24 | rank << 16 | WORLD << 8 | rank)

    def wait(self, event):
        poll = select.poll()
        poll.register(event, select.POLLIN)
        if not poll.poll(PATIENCE_MS):
            raise SystemExit("the adapter doesn't answer")
        os.eventfd_read(event)

    def store(self, keys, data):
        for obj, d in zip(self.arena.objects, data):
            obj.data[:] = d
        self.adapter.submit_store_task([self.key(*key) for key in keys], self.arena.objects)
        self.wait(self.adapter.get_store_event_fd())
        return [result.is_successful() for result in self.adapter.pop_completed_store_tasks().values()] == [True]

    def there(self, keys):
        task = self.adapter.submit_lookup_and_lock_task([self.key(*key) for key in keys], {})
        self.wait(self.adapter.get_lookup_and_lock_event_fd())
        return len(self.adapter.query_lookup_and_lock_result(task).get_indices_list())

    def load(self, keys):
        found = self.arena.objects
        task = self.adapter.submit_load_task([self.key(*key) for key in keys], found)
        self.wait(self.adapter.get_load_event_fd())
        loaded = self.adapter.query_load_result(task).get_indices_list()
        return {keys[i]: found[i].data for i in loaded}

    def remove(self, keys):
        # An adapter may know only what it has looked for, and keep what is locked.
        self.there(keys)
        self.adapter.submit_unlock([self.key(*key) for key in keys])
        self.there([(0, -1)])  # nothing, but done after the unlocking, which has no answer
        self.adapter.delete([self.key(*key) for key in keys])

    def close(self):
        self.adapter.close()


class Engine:
    """`fs://`, LMCache's remote connector in an engine's own process."""

    def __init__(self, line, _, nbytes):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.nbytes = nbytes
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=256, local_cpu=False, max_local_cpu_size=0.5, remote_url=line)
        metadata = LMCacheMetadata(
            model_name=MODEL, world_size=WORLD, local_world_size=WORLD, worker_id=0, local_worker_id=0,
            kv_dtype=torch.bfloat16, kv_shape=(1, 2, 1, 1, nbytes // 4))
        PinMonitor.GetOrCreate(config, metadata)
        self.cpu = LocalCPUBackend(config, metadata, dst_device="cpu")
        parse_remote_url(line)
        context = ConnectorContext(line, self.loop, self.cpu, config, metadata)
        self.connector = FsConnectorAdapter().create_connector(context)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_MS / 1000)

    def key(self, rank, chunk):
        digest = hashlib.sha256(f"{rank}/{chunk}".encode()).digest()
        return CacheEngineKey(MODEL, WORLD, rank, int.from_bytes(digest[:8], "big"), torch.bfloat16)

    def store(self, keys, data):
        for key, d in zip(keys, data):
            shape = torch.Size([2, 1, 1, self.nbytes // 4])
            memory = self.cpu.allocate(shape, torch.bfloat16, MemoryFormat.KV_2LTD)
            np.frombuffer(memoryview(memory.byte_array).cast("B"), dtype=np.uint8)[:] = d
            self.run(self.connector.put(self.key(*key), memory))
            memory.ref_count_down()
        return True

    def there(self, keys):
        return sum(self.run(self.connector.exists(self.key(*key))) for key in keys)

    def load(self, keys):
        found = {}
        for key in keys:
            memory = self.run(self.connector.get(self.key(*key)))
            if memory is not None:
                found[key] = np.frombuffer(memoryview(memory.byte_array).cast("B"), dtype=np.uint8).copy()
                memory.ref_count_down()
        return found

    def remove(self, keys):
        for key in keys:
            self.connector.remove_sync(self.key(*key))

    def close(self):
        self.run(self.connector.close())


def main():
    what, name, chunks, nbytes, line = sys.argv[1:]
    chunks, nbytes = int(chunks), int(nbytes)
    keys = [(rank, chunk) for chunk in range(chunks) for rank in range(WORLD)]
    client = (Engine if name == "fs://" else Server)(line, len(keys), nbytes)
    answer = {"keys": len(keys)}
    if what == "store":
        answer["before"] = client.there(keys)
        answer["stored"] = client.store(keys, [content(*key, nbytes) for key in keys])
    elif what == "load":
        answer["there"] = client.there(keys)
        loaded = client.load(keys)
        answer["loaded"] = len(loaded)
        answer["equal"] = sum(np.array_equal(data, content(*key, nbytes)) for key, data in loaded.items())
    elif what == "remove":
        client.remove(keys)
        answer["left"] = client.there(keys)
    client.close()
    print(json.dumps(answer), flush=True)


main()
