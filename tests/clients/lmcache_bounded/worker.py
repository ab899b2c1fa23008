"""One rank of a serving engine that is started again and again: the real LMCache LocalDiskBackend, driven from outside.

Runs inside the environment of the other LMCache test. The process imports LMCache once and forks; each child is one
life of the engine's worker, with a pid and an LMCache index of its own, and obeys one JSON command per line.
When it's killed the next one is forked: so ten lives cost one import.

LMCache's code is as published. Two of its methods are watched (never changed in what they do): `write_file`, because
LMCache tells nobody that it failed, and `remove`, to know whose file was gone already.
"""

import asyncio
import collections
import ctypes
import errno
import faulthandler
import hashlib
import os
import random
import signal
import sys
import threading
import time

import numpy as np
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
PACE = 0.25  # seconds that a batch takes at least, where the newest chunks must stay
PATIENCE = 60  # seconds that one put may take
BATCH = 8
ENOUGH = 4  # faults after which a life stops storing: each leaks a buffer of LMCache's pool
PR_SET_PDEATHSIG = 1


def raw(obj):
    return np.frombuffer(memoryview(obj.byte_array).cast("B"), dtype=np.uint8)


class Worker:
    """One life of one rank: LMCache's backends and the chunks it has stored since it began."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world
        self.faults = collections.Counter()  # what went wrong -> how often
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def begin(self, directory, backings, life, nbytes, odirect, max_mib):
        """Makes the backends as an engine does at its start."""
        self.life, self.nbytes, self.backings = life, nbytes, backings
        self.shape = torch.Size([2, 1, 1, nbytes // 4])
        pool = (3 * BATCH + ENOUGH + 8) * (nbytes + 4096)
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=256, local_cpu=False, max_local_cpu_size=pool / 2**30 + 0.03,
            local_disk=directory, max_local_disk_size=max_mib / 1024, extra_config={"use_odirect": odirect})
        metadata = LMCacheMetadata(
            model_name=MODEL, world_size=self.world, local_world_size=self.world,
            worker_id=self.rank, local_worker_id=self.rank, kv_dtype=torch.bfloat16,
            kv_shape=(1, 2, 1, 1, nbytes // 4))
        PinMonitor.GetOrCreate(config, metadata)
        self.cpu = LocalCPUBackend(config, metadata, dst_device="cpu")
        self.disk = LocalDiskBackend(config, self.loop, self.cpu, dst_device="cpu", metadata=metadata)
        self.disk.write_file = self._watched_write(self.disk.write_file)
        self.disk.remove = self._watched_remove(self.disk.remove)
        self.stored, self.failed, self.removed_after_eviction = {}, set(), 0
        self.bytes, self.cut = 0, 0  # written as a whole; files left behind that are not whole
        return {"direct": self.disk.use_odirect and nbytes % self.disk.os_disk_bs == 0}

    def _watched_write(self, write):
        def watched(buffer, path):
            try:
                write(buffer, path)
            except OSError as e:
                self.faults[errno.errorcode[e.errno]] += 1
                self.failed.add(os.path.basename(path))
                self.cut += os.path.exists(path) and os.stat(path).st_size < len(buffer)
                raise
            self.bytes += len(buffer)
            try:
                self.faults["short write"] += os.stat(path).st_size != len(buffer)
            except FileNotFoundError:
                self.faults["vanished when written"] += 1
        return watched

    def _watched_remove(self, remove):
        def watched(key, force=True):
            name = os.path.basename(self.disk._key_to_path(key))
            self.removed_after_eviction += not any(os.path.exists(os.path.join(b, name)) for b in self.backings)
            return remove(key, force=force)
        return watched

    def _key(self, chunk):
        digest = hashlib.sha256(f"{self.life}/{chunk}".encode()).digest()
        return CacheEngineKey(MODEL, self.world, self.rank, int.from_bytes(digest[:8], "big"), torch.bfloat16)

    def _content(self, chunk):
        """Bytes that no other rank, life, chunk or offset has."""
        seed = hashlib.sha256(f"{self.life}/{self.rank}/{chunk}".encode()).digest()
        bits = np.random.Generator(np.random.SFC64(int.from_bytes(seed, "big")))
        return bits.integers(0, 2**64, self.nbytes // 8, dtype=np.uint64).view(np.uint8)

    def _trouble(self):
        return sum(self.faults.values())

    def put(self, first, count, newest=0):
        """Stores chunks, and between two batches reads some back: the `newest` ones, or any that should be there."""
        for begin in range(first, first + count, BATCH):
            begun = time.monotonic()
            self._put_batch(range(begin, min(begin + BATCH, first + count)))
            if self._trouble() >= ENOUGH:
                break
            if newest:
                # kvfs tells uses apart by seconds: drives as small as these mustn't be filled anew within one.
                time.sleep(max(0, PACE - (time.monotonic() - begun)))
            known = list(self.stored)
            self._compare(known[-newest:] if newest else random.sample(known, min(BATCH, len(known))))
        return self._state()

    def _put_batch(self, chunks):
        submitted = []
        for chunk in chunks:
            key, obj = self._key(chunk), self.cpu.allocate(self.shape, torch.bfloat16, MemoryFormat.KV_2LTD)
            raw(obj)[:] = self._content(chunk)
            try:
                self.disk.batched_submit_put_task([key], [obj])
            except Exception as e:  # LMCache's own eviction runs here
                self.faults[f"put raised {type(e).__name__}"] += 1
                continue
            submitted.append((chunk, key, obj))
        deadline = time.monotonic() + PATIENCE
        for chunk, key, obj in submitted:
            name = os.path.basename(self.disk._key_to_path(key))
            while self.disk.exists_in_put_tasks(key) and name not in self.failed:
                if time.monotonic() > deadline:
                    raise TimeoutError("LMCache did not finish a put")
                time.sleep(0.0005)
            if name in self.failed:
                continue  # its buffer is lost: LMCache gives it back on success only
            self.stored[chunk] = key
            self._discard(obj)

    def _discard(self, obj):
        raw(obj)[:] = POISON
        obj.ref_count_down()

    def _indexed(self, chunks):
        """Those that LMCache itself believes to be on disk."""
        return [chunk for chunk in chunks if self.disk.contains(self.stored[chunk])]

    def _compare(self, chunks, live=True):
        """Loads these as a request does, all at once; (equal, wrong, missing). Where `live`, none may be missing."""
        equal = wrong = missing = 0
        chunks = self._indexed(chunks)
        for begin in range(0, len(chunks), BATCH):
            some = chunks[begin:begin + BATCH]
            some += some[:1] * (len(some) == 1)  # LMCache's way to load several; that for one knows no miss
            for chunk, obj in zip(some, self.disk.batched_get_blocking([self.stored[c] for c in some])):
                if obj is None:
                    missing += 1
                    continue
                same = np.array_equal(raw(obj), self._content(chunk))
                equal, wrong = equal + same, wrong + (not same)
                self._discard(obj)
        self.faults["wrong bytes"] += wrong
        self.faults["missing"] += missing if live else 0
        return {"equal": equal, "wrong": wrong, "missing": missing}

    def read(self, live=True):
        """Loads everything that LMCache has in its index."""
        found = self._compare(list(self.stored), live)
        return {**found, **self._state()}

    def get_one(self):
        """Loads single chunks, oldest first, until LMCache finds one that is gone; what it makes of that."""
        for chunk in self._indexed(list(self.stored)):
            key = self.stored[chunk]
            if not any(os.path.exists(os.path.join(b, os.path.basename(self.disk._key_to_path(key))))
                       for b in self.backings):
                try:
                    return {"answer": "a miss" if self.disk.get_blocking(key) is None else "data"}
                except Exception as e:
                    return {"answer": type(e).__name__}
        return {"answer": "nothing was gone"}

    def scribble(self, first):
        """Goes on storing until it's killed."""
        def work():
            for begin in range(first, first + 10_000, BATCH):
                self._put_batch(range(begin, begin + BATCH))
        threading.Thread(target=work, daemon=True).start()
        return {}

    def _state(self):
        return {"stored": len(self.stored), "bytes": self.bytes, "cut": self.cut, "faults": dict(+self.faults),
                "indexed": len(self._indexed(list(self.stored))), "removed_after_eviction": self.removed_after_eviction}

    def close(self):
        self.disk.close()
        self.cpu.close()
        return {}


def live(rank, world, channel):
    """One life: ends with the input, or with the process that forked it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1)  # where each thread is, into the log
    obey(Worker(rank, world), channel)
    os._exit(0)


def main():
    channel = answers()
    torch.set_num_threads(1)
    rank, world = map(int, sys.argv[1:3])
    while True:
        child = os.fork()
        if not child:
            live(rank, world, channel)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
