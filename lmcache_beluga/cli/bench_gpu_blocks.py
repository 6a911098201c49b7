"""What it takes to load or store one block of 16 tokens: many small pieces, one per layer."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_beluga.cli.bench_report import Progress, Section, interleaved
from lmcache_beluga.gpu.copy_method import Direction, Method
from lmcache_beluga.gpu.cuda_device import CudaDevice
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime
from lmcache_beluga.gpu.fused_copy import FusedCopy
from lmcache_beluga.gpu.paged_cache import PagedCache
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool
from lmcache_beluga.quantities import format_size

_MIB = 1 << 20
_TOKENS = 16
_BLOCKS = 64


@dataclass(frozen=True)
class Model:
    """KV of one GPU's share of a model in bfloat16.

    Attributes:
        published: what the Beluga paper tells of a block: its own way, and RDMA.
    """

    name: str
    layers: int
    heads: int
    head_size: int
    published: str


_MODELS = (
    Model("Llama-8B", 32, 8, 128, "paper: 97 µs, RDMA 2,670"),
    # Fragments of 20 KB are those of 40 heads on 8 GPUs.
    Model("Qwen-32B", 64, 5, 128, "paper: 211 µs, RDMA 5,260"),
)


def measure(
    section: Section,
    folder: Path,
    quick: bool,
    progress: Progress,
    device: CudaDevice,
    runtime: CudaRuntime,
) -> None:
    """Both models, both ways, by each method; and 64 blocks in one launch."""
    for model in _MODELS:
        progress(f"blocks of {model.name}")
        path = folder / f"{model.name}.pool"
        chunk = 2 * model.layers * _TOKENS * model.heads * model.head_size * 2
        Pool.format(path, size=512 * _MIB, extent_size=64 * _MIB, chunk_hint=chunk)
        with Pool.attach(path) as pool:
            registration = Registration(pool, runtime)
            copy = FusedCopy(registration, device)
            try:
                _one_model(section, pool, copy, model, device, rounds=20 if quick else 100)
            finally:
                copy.close()
                registration.close()
        path.unlink()


def _one_model(
    section: Section, pool: Pool, copy: FusedCopy, model: Model, device: CudaDevice, rounds: int
) -> None:
    import torch

    shape = (2, _BLOCKS, _TOKENS, model.heads, model.head_size)
    layers = [
        torch.randn(shape, device=device.name, dtype=torch.bfloat16) for _ in range(model.layers)
    ]
    cache = PagedCache.of(layers)
    chunk = cache.chunk_bytes(_TOKENS)
    keys = [b"%s %d" % (model.name.encode(), i) for i in range(_BLOCKS)]
    slots = [pool.reserve(chunk) for _ in keys]
    order = np.random.default_rng(1).permutation(_BLOCKS).tolist()
    copy.store([slot for slot in slots if slot], cache, order).commit(keys)
    views = [view for view in pool.get_batch(keys) if view]
    spare = [slot for slot in (pool.reserve(chunk) for _ in range(8)) if slot]
    if len(views) < _BLOCKS or not spare:
        raise RuntimeError("the pool has no room")
    before = [layer.clone() for layer in layers]
    stream = torch.cuda.Stream(device.index)
    number = itertools.count()
    loads = [
        _fragments(cache, view.address, block) for view, block in zip(views, order, strict=True)
    ]
    stores = [_fragments(cache, slot.address, order[i]) for i, slot in enumerate(spare)]

    def load(method: Method) -> Callable[[], float]:
        def sample() -> float:
            i = next(number) % _BLOCKS
            begin = time.perf_counter()
            if method is Method.FUSED:
                lost = copy.load([views[i]], cache, [order[i]], stream=stream).lost()
                section.wrong.extend(f"{model.name}: a lease was lost" for _ in lost)
            else:
                to, source = loads[i]
                way = Direction.TO_GPU
                copy.copy(to, source, cache.block_bytes, way, method=method, stream=stream).wait()
            return time.perf_counter() - begin

        return sample

    def store(method: Method) -> Callable[[], float]:
        def sample() -> float:
            i = next(number) % len(spare)
            begin = time.perf_counter()
            if method is Method.FUSED:
                copy.store([spare[i]], cache, [order[i]], stream=stream).wait()
            else:
                source, to = stores[i]
                way = Direction.TO_POOL
                copy.copy(to, source, cache.block_bytes, way, method=method, stream=stream).wait()
            return time.perf_counter() - begin

        return sample

    def all_at_once() -> float:
        begin = time.perf_counter()
        lost = copy.load(views, cache, order, stream=stream).lost()
        section.wrong.extend(f"{model.name}: a lease was lost" for _ in lost)
        return (time.perf_counter() - begin) / _BLOCKS

    methods = [m for m in Method if m is not Method.BATCH or device.batches]
    candidates: dict[str, Callable[[], float]] = {}
    for verb, make in (("load", load), ("store", store)):
        candidates |= {f"{verb} a block, {m.value}": make(m) for m in methods}
    candidates[f"load {_BLOCKS} blocks at once, each"] = all_at_once
    fragments = f"{2 * model.layers} fragments of {format_size(cache.block_bytes)}"
    for name, seconds in interleaved(rounds, candidates, discard=3).items():
        speed = f"{chunk / statistics.median(seconds) / 1e9:.3g} GB/s"
        note = f"{speed}; {fragments}; {model.published}"
        section.add(f"{model.name}: {name}", [second * 1e6 for second in seconds], "µs", note=note)
    _check(section, model, layers, before)
    for view in views:
        view.release()
    for slot in spare:
        slot.abort()


def _fragments(cache: PagedCache, slot: int, block: int) -> tuple[Any, Any]:
    """Addresses of one block's fragments: in the paged cache, and in the slot."""
    layers = np.array(cache.layers, dtype=np.uint64) + np.uint64(block * cache.block_stride)
    paged = np.concatenate([layers + np.uint64(h * cache.half_stride) for h in range(cache.halves)])
    places = np.arange(paged.size, dtype=np.uint64) * np.uint64(cache.block_bytes)
    return paged, np.uint64(slot) + places


def _check(section: Section, model: Model, layers: list[Any], before: list[Any]) -> None:
    import torch

    # Every load has put back what the first store had taken.
    for layer, wanted in zip(layers, before, strict=True):
        if not torch.equal(layer.view(torch.int16), wanted.view(torch.int16)):
            section.wrong.append(f"{model.name}: loaded KV differs")
            return
