"""vLLM's scheduler side of KV offloading: its tiers, without the GPU that fills the first one.

    worker.py store|load|half LINE CHUNKS BATCH

LINE is the value of `--kv-transfer-config`, which vLLM's own class reads. CHUNKS chunks go through the first tier, host
memory, in BATCHes that are all it holds. `half` removes the files of every other chunk and then loads. Prints one JSON object.
"""

import hashlib
import json
import os
import sys
import time

import numpy as np
import setproctitle
from vllm.config import KVTransferConfig
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.kv_offload.tiering.fs import io

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
LAYERS, WORLD = 32, 4
BLOCK_TOKENS = 16
WORKER_BLOCK = 128 * 1024 * BLOCK_TOKENS // WORLD  # bytes of one block on one of the ranks
PATIENCE = 60


def offloading_config(transfer):
    """What vLLM makes of its configuration for Llama 3.1 8B on four GPUs."""
    layers = tuple(f"model.layers.{layer}.self_attn.attn" for layer in range(LAYERS))
    return OffloadingConfig(
        groups=(OffloadingGroupConfig(tokens_per_block=BLOCK_TOKENS, layer_names=layers, group_id=0),),
        worker_kv_bytes_per_block=WORKER_BLOCK,
        enable_kv_cache_events=False,
        extra_config=transfer.kv_connector_extra_config,
        engine_id=transfer.engine_id,
        model=OffloadingModelConfig(name=MODEL, dtype="bfloat16", max_model_len=131072),
        cache=OffloadingCacheConfig(tokens_per_hash=BLOCK_TOKENS, blocks_per_chunk=1),
        parallel=OffloadingParallelConfig(
            rank=0, world_size=WORLD, tp_size=WORLD, pp_size=1, pcp_size=1, dcp_size=1, data_parallel_index=0,
            data_parallel_size=1, data_parallel_rank_local=None, is_parallelism_agnostic=True),
    )


def key(chunk):
    return make_offload_key(hashlib.sha256(f"chunk {chunk}".encode()).digest(), 0)


def content(chunk, nbytes):
    return np.random.Generator(np.random.SFC64(chunk)).integers(0, 256, nbytes, dtype=np.uint8)


class Scheduler:
    """Steps of an engine, each with one request."""

    def __init__(self, spec):
        self.manager = spec.get_manager()
        self.rows = np.asarray(self.manager.primary_tier.get_kv_memoryview()).view(np.uint8)
        self.requests = 0

    def request(self):
        self.requests += 1
        request = ReqContext(req_id=f"request-{self.requests}")
        self.manager.on_new_request(request)
        return request

    def step(self):
        with self.manager.lock:
            self.manager.on_schedule_end(ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))

    def settle(self):
        """Steps until no transfer between the tiers is left."""
        deadline = time.monotonic() + PATIENCE
        while self.manager.has_pending_work():
            self.step()
            if time.monotonic() > deadline:
                raise SystemExit("a transfer doesn't end")
            time.sleep(0.001)

    def store(self, chunks):
        """How many were taken into the first tier, and from there to the second."""
        request = self.request()
        out = self.manager.prepare_store([key(chunk) for chunk in chunks], request)
        chunk_of = {key(chunk): chunk for chunk in chunks}
        for stored, row in zip(out.keys_to_store, out.store_spec.chunk_ids, strict=True):
            self.rows[row] = content(chunk_of[stored], self.rows.shape[1])
        self.manager.complete_store(out.keys_to_store, request)
        self.manager.on_request_finished(request)
        self.settle()
        return len(out.keys_to_store)

    def load(self, chunks):
        """(how many are a hit, how many of those have the right bytes)"""
        request = self.request()
        results, deadline = {}, time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            results = {chunk: self.manager.lookup(key(chunk), request) for chunk in chunks}
            self.step()
            if not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(results.values()):
                break
            time.sleep(0.001)
        hits = [chunk for chunk, result in results.items() if result is LookupResult.HIT]
        keys = [key(chunk) for chunk in hits]
        rows = self.manager.prepare_load(keys, request).chunk_ids
        equal = sum(np.array_equal(self.rows[row], content(chunk, self.rows.shape[1])) for chunk, row in zip(hits, rows, strict=True))
        self.manager.complete_load(keys, request)
        self.manager.on_request_finished(request)
        self.settle()
        # What isn't overwritten might be taken for read the next time.
        self.rows[[int(row) for row in rows]] = 0xA5
        return len(hits), equal


def main():
    what, line, chunks, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    setproctitle.setproctitle("VLLM::EngineCore")
    transfer = KVTransferConfig(**json.loads(line))
    spec = OffloadingSpecFactory.create_spec(offloading_config(transfer))
    scheduler = Scheduler(spec)
    tier = scheduler.manager.secondary_tiers[0]
    answer = {"rows": spec.num_chunks, "direct": tier._use_o_direct, "native": io._HAS_FSIO_C}
    batches = [range(begin, min(begin + batch, chunks)) for begin in range(0, chunks, batch)]
    if what == "store":
        answer["stored"] = sum(scheduler.store(batch) for batch in batches)
    else:
        if what == "half":
            for chunk in range(0, chunks, 2):
                os.unlink(tier.file_mapper.get_file_name(key(chunk)))
        answer["hits"], answer["equal"] = map(sum, zip(*map(scheduler.load, batches)))
    del scheduler.rows
    scheduler.manager.shutdown()
    print(json.dumps(answer), flush=True)


main()
