"""One tensor-parallel rank of SGLang: its HiCache storage backend, without the GPU above it.

    worker.py store|load|clear|wait BACKEND LAYOUT RANK WORLD PAGES BYTES      with the variable that says the directory

`wait` is until the backend's own cleaner is content. Prints one JSON object.
"""

import hashlib
import json
import sys
import time

import numpy as np
import setproctitle
import torch

import parts

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
POISON = 0xA5
PATIENCE = 60


def key(page):
    """Of the tokens, so the same for all ranks."""
    return hashlib.sha256(f"page {page}".encode()).hexdigest()


def content(rank, page, nbytes):
    """Bytes that no other rank and page has."""
    generator = np.random.Generator(np.random.SFC64([rank, page]))
    return torch.from_numpy(generator.integers(0, 256, nbytes, dtype=np.uint8))


class File:
    """`file` moves tensors, one page each."""

    def __init__(self, storage, pool):
        self.storage, self.pool = storage, pool

    def there(self, keys):
        return self.storage.batch_exists_v2(keys).kv_hit_pages

    def store(self, keys, pages):
        return self.storage.set(keys[0], pages[0]) and self.storage.batch_set(keys[1:], pages[1:])

    def load(self, keys):
        targets = [torch.full_like(self.pool.get_dummy_flat_data_page(), POISON) for _ in keys]
        first = self.storage.get(keys[0], targets[0])
        return [first, *self.storage.batch_get(keys[1:], targets[1:])]


class Nixl:
    """`nixl` moves pages of the pool, all in one transfer."""

    def __init__(self, storage, pool):
        self.storage, self.pool = storage, pool

    def there(self, keys):
        return self.storage.batch_exists(keys)

    def indices(self, keys):
        return torch.arange(len(keys) * parts.PAGE_TOKENS)

    def store(self, keys, pages):
        for i, page in enumerate(pages):
            self.pool.set_from_flat_data_page(i * parts.PAGE_TOKENS, page)
        return all(self.storage.batch_set_v1(keys, self.indices(keys)))

    def load(self, keys):
        self.pool.kv_buffer.fill_(POISON)
        got = self.storage.batch_get_v1(keys, self.indices(keys))
        return [self.pool.get_data_page(i * parts.PAGE_TOKENS) if ok else None for i, ok in enumerate(got)]


def main():
    what, backend, layout = sys.argv[1:4]
    rank, world, pages, nbytes = map(int, sys.argv[4:])
    setproctitle.setproctitle(f"sglang::scheduler_TP{rank}")
    storage, pool = parts.backend(backend, MODEL, rank, world, layout, pages, nbytes)
    client = {"file": File, "nixl": Nixl}[backend](storage, pool)
    keys = [key(page) for page in range(pages)]
    answer = {"before": client.there(keys)}
    if what == "store":
        answer["stored"] = bool(client.store(keys, [content(rank, page, nbytes) for page in range(pages)]))
        answer["again"] = bool(client.store(keys, [content(rank, page, nbytes) for page in range(pages)]))
    elif what == "load":
        loaded = client.load(keys)
        answer["equal"] = sum(data is not None and torch.equal(data, content(rank, page, nbytes))
                              for page, data in enumerate(loaded))
    elif what == "clear":
        storage.clear()
    else:
        cleaner, deadline = storage._l3_cleaner, time.monotonic() + PATIENCE
        while cleaner._disk_usage_pct(cleaner.storage_dirs[0]) >= cleaner.low_watermark and time.monotonic() < deadline:
            time.sleep(0.1)
    answer["after"] = client.there(keys)
    if backend == "nixl":
        storage.close()
    print(json.dumps(answer), flush=True)


main()
