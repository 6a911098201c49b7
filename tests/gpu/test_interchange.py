"""What LMCache has stored, the fused copy loads, and the other way round: on a GPU where there is
one, else with the kernels compiled for the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

# Read when lmcache is imported.
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "CRITICAL")
os.environ.setdefault("LMCACHE_DISABLE_BANNER", "1")
pytest.importorskip("lmcache")

from cpu_device import CpuDevice
from recording_runtime import RecordingRuntime

from lmcache_beluga.demo.cache_engine import CacheEngine
from lmcache_beluga.demo.paged_kv import KVShape, PagedKV
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime
from lmcache_beluga.gpu.fused_copy import FusedCopy
from lmcache_beluga.gpu.paged_cache import PagedCache
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool, PutResult

CHUNKS, CHUNK = 3, 256
SHAPE = KVShape(layers=4, heads=2, head_dim=32, dtype=torch.bfloat16)
YAML = """\
chunk_size: 256
local_cpu: false
max_local_cpu_size: 0.1
storage_plugins: ["beluga"]
extra_config:
  storage_plugin.beluga.module_path: lmcache_beluga
  storage_plugin.beluga.class_name: BelugaBackend
  beluga.pool: {pool}
  beluga.size: 64MiB
"""


def filled(device: torch.device) -> PagedKV:
    kv = PagedKV(SHAPE, CHUNKS * CHUNK, device, seed=3)
    generator = torch.Generator().manual_seed(4)
    for layer in kv.layers:
        bits = torch.randint(-(1 << 15), 1 << 15, layer.shape, generator=generator)
        layer.view(torch.int16).copy_(bits)
    return kv


def same(one: PagedKV, other: PagedKV) -> bool:
    """Of all tokens, wherever their blocks are."""
    return all(
        torch.equal(
            one.gather(i, one.tokens).view(torch.int16),
            other.gather(i, other.tokens).view(torch.int16),
        )
        for i in range(SHAPE.layers)
    )


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "cpu",  # LMCache's operations take memory for pinned where there is a GPU
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="on the GPU, then"),
        ),
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
        ),
    ],
)
def test_chunks_are_lmcaches(
    kind: str, pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Stream", "current_stream", "stream"):  # the engine replaces them on the CPU
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))
    device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
    runtime: Any = CudaRuntime(0) if kind == "cuda" else RecordingRuntime()
    config = tmp_path / "lmcache.yaml"
    config.write_text(YAML.format(pool=pool_path))
    kv = filled(device)
    tokens = torch.arange(kv.tokens)
    with (
        CacheEngine(f"interchange-{kind}", config, kv, "beluga") as engine,
        Pool.attach(pool_path) as pool,
    ):
        engine.store(tokens)
        entries = sorted(pool.keys(), key=lambda entry: entry.depth)
        assert len(entries) == CHUNKS
        keys = [entry.record for entry in entries]

        # Elsewhere in another cache: all blocks are other ones.
        mine = PagedKV(SHAPE, kv.tokens, device, seed=9)
        blocks = (mine.slot_mapping[::16] // 16).tolist()
        cache = PagedCache.of(mine.layers)
        registration = Registration(pool, runtime)
        copy = FusedCopy(registration, 0 if kind == "cuda" else CpuDevice())
        views = pool.get_batch(keys)
        assert copy.load(views, cache, blocks).lost() == []
        assert same(kv, mine)
        for view in views:
            view.release()

        metas = [entry.meta for entry in entries]
        assert metas == [cache.chunk_meta(CHUNK)] * CHUNKS
        engine.lmcache.clear(tokens)
        for layer in mine.layers:
            layer.neg_()
        slots = [pool.reserve(cache.chunk_bytes(CHUNK)) for _ in keys]
        stored = copy.store(slots, cache, blocks).commit(keys, metas=metas)
        assert stored == [PutResult.STORED] * CHUNKS
        assert engine.retrieve(tokens, "back") == kv.tokens
        assert same(kv, mine)
        copy.close()
        registration.close()
