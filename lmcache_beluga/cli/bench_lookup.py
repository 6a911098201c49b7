"""``beluga bench lookup``: batched lookups in pools of growing size."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lmcache.utils import CacheEngineKey

from lmcache_beluga.cli.bench_report import Bar, BenchError, Progress, Section, interleaved
from lmcache_beluga.cli.bench_scratch import room
from lmcache_beluga.demo.cache_engine import CacheEngine
from lmcache_beluga.demo.paged_kv import KVShape, PagedKV
from lmcache_beluga.pool import Pool

_BATCH = 512
_IN_A_ROW = 8
_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_SHAPE = KVShape(layers=1, heads=1, head_dim=64, dtype=torch.bfloat16)
_CHUNK = 64
"""Bytes per chunk: lookups never touch the payload."""

_FILL_BATCH = 4096
_BYTES_PER_ENTRY = 6 << 10
"""Roughly what one entry takes: the smallest slot, its descriptor, its part of the index."""

_SIZES = {"10 k": 10_000, "100 k": 100_000, "1 M": 1_000_000}


@dataclass
class Filled:
    """A pool with entries, reached through an LMCache backend.

    Attributes:
        hashes: chunk hash of each entry.
    """

    name: str
    backend: Any
    pool: Pool
    hashes: list[int]
    random: random.Random

    def draw(self) -> list[Any]:
        """LMCache keys of entries drawn anew, as LMCache makes them right before it looks."""
        # Each key with a number of its own: LMCache has just computed it, it is no cold object.
        return [_key(number ^ 0) for number in self.random.sample(self.hashes, _BATCH)]


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """Measure lookups natively and through LMCache's backend interface.

    Args:
        folder: where the pools go; sizes for which there is no room are left out, visibly.
    """
    section = Section(f"Lookup of {_BATCH} present keys, drawn anew for each batch")
    rounds = 10 if quick else 60
    with contextlib.ExitStack() as stack:
        filled = []
        for name, entries in list(_SIZES.items())[: 2 if quick else 3]:
            need = entries * _BYTES_PER_ENTRY
            if room(folder) < 2 * need:
                note = f"needs {2 * need >> 20} MiB of memory and room in {folder.parent}"
                section.add_value(f"{name} entries", None, "ns/key", note=note)
                continue
            progress(f"filling a pool with {name} entries")
            filled.append(_fill(stack, folder, name, entries))
        if filled:
            progress("lookups")
            _measure(section, filled, rounds)
    return section


def _measure(section: Section, filled: list[Filled], rounds: int) -> None:
    candidates: dict[str, Callable[[], float]] = {}
    for pool in filled:
        for kind, sample in _KINDS.items():
            candidates[f"{kind}, {pool.name}"] = _in_a_row(sample, pool)
    samples = interleaved(rounds, candidates, discard=3)
    bars = {"native": 100.0, "native, again": 100.0, "backend": 500.0, "backend, pinned": 500.0}
    for kind in _KINDS:
        for pool in filled:
            name = f"{kind}, {pool.name}"
            section.add(name, samples[name], "ns/key", Bar(True, bars[kind]))
        if len(filled) > 1:
            first, last = (
                statistics.median(samples[f"{kind}, {pool.name}"])
                for pool in (filled[0], filled[-1])
            )
            section.add_value(
                f"{kind}, {filled[-1].name} / {filled[0].name}",
                last / first,
                "x",
                Bar(True, 1.5),
            )


def _in_a_row(sample: Callable[[Filled], float], filled: Filled) -> Callable[[], float]:
    """Nanoseconds per key of several batches, so that code and stack are warm, if not the keys."""
    return lambda: sum(sample(filled) for _ in range(_IN_A_ROW)) * 1e9 / _BATCH / _IN_A_ROW


def _native(filled: Filled) -> float:
    """Inside the core: from fingerprints to the count."""
    return float(filled.pool._native.lookup_seconds(filled.draw(), 1))


def _again(filled: Filled) -> float:
    """The same for keys that were looked up a moment ago."""
    keys = filled.draw()
    filled.pool._native.lookup_seconds(keys, 1)
    return float(filled.pool._native.lookup_seconds(keys, 1))


def _backend(filled: Filled) -> float:
    """LMCache's call: from key objects to the count."""
    return _contains(filled, filled.draw(), pin=False)


def _backend_pinned(filled: Filled) -> float:
    """The same with a pin on each key, as a request makes it; unpinning is not timed."""
    keys = filled.draw()
    seconds = _contains(filled, keys, pin=True)
    for key in keys:
        filled.backend.unpin(key)
    return seconds


def _contains(filled: Filled, keys: list[Any], pin: bool) -> float:
    start = time.perf_counter()
    found = filled.backend.batched_contains(keys, pin=pin)
    seconds = time.perf_counter() - start
    if found != _BATCH:
        raise BenchError(f"{found} of {_BATCH} present keys were found")
    return seconds


_KINDS: dict[str, Callable[[Filled], float]] = {
    "native": _native,
    "native, again": _again,
    "backend": _backend,
    "backend, pinned": _backend_pinned,
}


def _fill(stack: contextlib.ExitStack, folder: Path, name: str, entries: int) -> Filled:
    import torch

    config = folder / f"lookup-{entries}.yaml"
    config.write_text(
        f"""\
chunk_size: 256
local_cpu: false
max_local_cpu_size: 0.1
storage_plugins: ["beluga"]
extra_config:
  storage_plugin.beluga.module_path: lmcache_beluga
  storage_plugin.beluga.class_name: BelugaBackend
  beluga.pool: {folder}/lookup-{entries}.pool
  beluga.size: {entries * _BYTES_PER_ENTRY + (64 << 20)}
  beluga.chunk_hint: 4096
"""
    )
    kv = PagedKV(_SHAPE, 256, torch.device("cpu"), seed=0)
    engine = stack.enter_context(
        CacheEngine(f"{folder.name}-{entries}", config, kv, "beluga", model_name=_MODEL)
    )
    pool = stack.enter_context(Pool.attach(f"{folder}/lookup-{entries}.pool"))
    draw = random.Random(entries)
    hashes = [draw.getrandbits(63) for _ in range(entries)]
    present: list[int] = []
    data = bytes(_CHUNK)
    for batch in (hashes[start : start + _FILL_BATCH] for start in range(0, entries, _FILL_BATCH)):
        keys = [_key(number) for number in batch]
        pool.put_batch(keys, [data] * len(keys))
    # A full row of the hash table makes room by an eviction, a few times in a million.
    for batch in (hashes[start : start + _FILL_BATCH] for start in range(0, entries, _FILL_BATCH)):
        found = pool.contains([_key(number) for number in batch])
        present += [number for number, there in zip(batch, found, strict=True) if there]
    if len(present) < 0.99 * entries:
        raise BenchError(f"only {len(present)} of {entries} chunks stayed in the pool")
    return Filled(name, engine.backend, pool, present, draw)


def _key(chunk_hash: int) -> Any:
    return CacheEngineKey(_MODEL, 1, 0, chunk_hash, torch.bfloat16)
