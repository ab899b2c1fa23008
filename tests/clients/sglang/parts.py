"""SGLang's HiCache storage, imported without the rest of SGLang, and a host pool for it.

`import sglang` loads the whole of a GPU build: the language front end, every model, Triton. The storage needs next to
nothing of it, so the two packages above it are made without running their `__init__`, and Triton is an empty module.
`hicache_storage`, `storage` and all below it are as published.
"""

import importlib.util
import logging
import sys
import types

import torch
import torch.utils._triton


def _without_init(name):
    spec = importlib.util.find_spec(name)
    package = types.ModuleType(name)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
    sys.modules[name] = package
    return package


torch.utils._triton.has_triton_package()  # torch remembers that there is none
sys.modules["triton"] = types.ModuleType("triton")
_without_init("sglang")
_pools = _without_init("sglang.srt.mem_cache.pool_host")

from sglang.srt.mem_cache.pool_host.base import HostKVCache  # noqa: E402

_pools.HostKVCache = HostKVCache

from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig  # noqa: E402
from sglang.srt.mem_cache.storage import StorageBackendFactory  # noqa: E402
from sglang.srt.mem_cache.storage.mmap import alloc_mmap  # noqa: E402

logging.basicConfig(level=logging.WARNING)
PAGE_TOKENS = 64


class HostPool(HostKVCache):
    """Pages in host memory, keys and values apart, as SGLang's pool of a model with multi-head attention has them.

    SGLang's own copies them from and to a GPU; this one is filled by the test.
    """

    layer_num = target_layer_num = 1

    def __init__(self, layout, pages, page_bytes):
        self.half = page_bytes // 2
        super().__init__(
            dtype=torch.uint8, device_capacity_tokens=0, size_per_token=page_bytes // PAGE_TOKENS, start_layer=0, end_layer=1,
            host_to_device_ratio=1.0, host_size=0, page_size=PAGE_TOKENS, layout=layout, pin_memory=False, device="cpu",
            host_token_capacity=pages * PAGE_TOKENS)

    def init_kv_buffer(self):
        return alloc_mmap((2, self.page_num, self.half), self.dtype)

    def get_size_per_token(self):
        return self.size_per_token

    def get_data_page(self, index, flat=True):
        return self.kv_buffer[:, int(index) // PAGE_TOKENS].flatten()

    def get_dummy_flat_data_page(self):
        return torch.zeros(2 * self.half, dtype=self.dtype)

    def set_from_flat_data_page(self, index, data_page):
        self.kv_buffer[:, int(index) // PAGE_TOKENS] = data_page.view(2, self.half)

    def get_page_buffer_meta(self, indices):
        pages = [int(index) // PAGE_TOKENS for index in indices[::PAGE_TOKENS]]
        return [self.kv_buffer[side, page].data_ptr() for page in pages for side in (0, 1)], [self.half] * (2 * len(pages))

    def is_stride_page_aligned(self, page_size_bytes=4096):
        return self.kv_buffer.data_ptr() % page_size_bytes == 0 and self.half % page_size_bytes == 0

    def load_to_device_per_layer(self, *_, **__):
        raise NotImplementedError("there is no GPU")

    backup_from_device_all_layer = load_to_device_per_layer


def backend(name, model, rank, world, layout, pages, page_bytes):
    """(storage backend, its pool), made as SGLang's cache controller makes them."""
    config = HiCacheStorageConfig(
        tp_rank=rank, tp_size=world, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False,
        enable_storage_metrics=False, is_page_first_layout=layout.startswith("page_first"), model_name=model)
    pool = HostPool(layout, pages, page_bytes)
    storage = StorageBackendFactory.create_backend(name, config, pool)
    storage.register_mem_pool_host(pool)
    return storage, pool
