"""``beluga bench l2``: LMCache's second-level adapters side by side, and ours against memcpy.

One process, one set of L1 buffers and keys, the same calls that an LMCache server makes; only the
adapter differs. Rounds alternate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import L2AdapterInterface, create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

from lmcache_beluga.cli.bench_redis import RedisServer, redis_missing
from lmcache_beluga.cli.bench_report import Bar, BenchError, Progress, Section, interleaved
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.quantities import format_size
from lmcache_beluga.signals import held_back

POOL = "beluga"
DAX = "LMCache DAX"
RESP = "LMCache RESP (Redis)"
MEMCPY = "memcpy"

_MIB = 1 << 20
_CHUNK = 16 * _MIB
_KEYS_LOOKED_UP = 512
_SMALL_CHUNK = 64 << 10
_WAIT_S = 120.0


@dataclass(frozen=True)
class Sizes:
    """What is loaded at once, and how often."""

    chunks: int
    rounds: int
    redis_rounds: int
    lookups: int

    @property
    def bytes(self) -> int:
        """Of all chunks together."""
        return self.chunks * _CHUNK


class L1Buffers:
    """Memory objects over one piece of memory, as an LMCache server's L1 has them."""

    def __init__(self, count: int, size: int) -> None:
        self.memory = torch.zeros(count * size, dtype=torch.uint8)
        self.objects = [
            self._object(self.memory[at : at + size]) for at in range(0, count * size, size)
        ]

    def _object(self, raw: torch.Tensor) -> TensorMemoryObj:
        shape = torch.Size([2, 1, raw.numel() // 4])
        metadata = MemoryObjMetadata(
            shape=shape,
            dtype=torch.bfloat16,
            address=raw.data_ptr() - self.memory.data_ptr(),
            phy_size=raw.numel(),
            ref_count=1,
            fmt=MemoryFormat.KV_2LTD,
            shapes=[shape],
            dtypes=[torch.bfloat16],
        )
        return TensorMemoryObj(raw, metadata, parent_allocator=None)

    def described(self) -> L1MemoryDesc:
        """The memory, for adapters that register it."""
        return L1MemoryDesc(self.memory.data_ptr(), self.memory.numel(), align_bytes=4096)


class Adapter:
    """An adapter, and one batch at a time through it: submitted, waited for, asked."""

    def __init__(self, adapter: L2AdapterInterface) -> None:
        self.adapter = adapter

    def store(self, keys: list[ObjectKey], objects: list[TensorMemoryObj]) -> bool:
        """Whether all of it was stored."""
        task = self.adapter.submit_store_task(keys, objects)
        ends: dict[int, Any] = {}
        deadline = time.monotonic() + _WAIT_S
        while task not in ends:
            self._wait(self.adapter.get_store_event_fd(), deadline)
            ends |= self.adapter.pop_completed_store_tasks()
        return bool(ends[task].is_successful())

    def lookup(self, keys: list[ObjectKey]) -> int:
        """How many were found; they are locked."""
        adapter = self.adapter
        task = adapter.submit_lookup_and_lock_task(keys, {})
        return self._ask(
            adapter.get_lookup_and_lock_event_fd(), adapter.query_lookup_and_lock_result, task
        )

    def load(self, keys: list[ObjectKey], objects: list[TensorMemoryObj]) -> int:
        """How many objects were filled."""
        task = self.adapter.submit_load_task(keys, objects)
        return self._ask(self.adapter.get_load_event_fd(), self.adapter.query_load_result, task)

    def _ask(self, fd: int, query: Callable[[int], Any], task: int) -> int:
        deadline = time.monotonic() + _WAIT_S
        while (bitmap := query(task)) is None:
            self._wait(fd, deadline)
        return int(bitmap.popcount())

    def _wait(self, fd: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise BenchError(f"{type(self.adapter).__name__} did not answer in {_WAIT_S:g} s")
        consume_fd(fd)


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """Loads of 1 GiB (quick: 128 MiB) in chunks of 16 MiB, and lookups of 512 keys."""
    sizes = Sizes(8, 5, 2, 200) if quick else Sizes(64, 11, 3, 1000)
    require(folder, 6 * sizes.bytes + 512 * _MIB)
    section = Section(f"LMCache L2 adapters: {format_size(sizes.bytes)} in 16 MiB chunks")
    sources, targets = L1Buffers(sizes.chunks, _CHUNK), L1Buffers(sizes.chunks, _CHUNK)
    noise = torch.Generator().manual_seed(3)
    sources.memory.view(torch.int64).random_(generator=noise)
    with contextlib.ExitStack() as stack:
        adapters: dict[str, Adapter] = {}
        specs = {POOL: _pool(folder, sizes), DAX: _dax(folder, sizes)}
        missing = redis_missing()
        if missing is None:
            with held_back():
                server = stack.enter_context(RedisServer(folder))
            server.wait()
            specs[RESP] = {"type": "resp", "host": "127.0.0.1", "port": server.port}
        for name, spec in specs.items():
            progress(f"starting {name}")
            adapters[name] = Adapter(_create(spec, targets))
            stack.callback(adapters[name].adapter.close)
        _loads(section, sizes, adapters, sources, targets, progress)
        if missing is not None:
            section.add_value(f"load, {RESP}", None, "ms", note=missing)
        _lookups(section, sizes, adapters, progress)
    return section


def _loads(
    section: Section,
    sizes: Sizes,
    adapters: dict[str, Adapter],
    sources: L1Buffers,
    targets: L1Buffers,
    progress: Progress,
) -> None:
    keys = _keys(sizes.chunks, "load")
    for name, adapter in adapters.items():
        progress(f"{name}: store")
        start = time.perf_counter()
        stored = adapter.store(keys, sources.objects)
        took = time.perf_counter() - start
        if not stored:
            section.wrong.append(f"{name}: the store failed")
        section.add_value(f"store, {name} (once, into fresh memory)", took * 1e3, "ms")

    def load(name: str) -> Callable[[], float]:
        def once() -> float:
            progress(f"{name}: load")
            # Half of all pages would show a load that did nothing, at a fraction of its cost.
            targets.memory[:: 2 * 4096] = 0x5A
            start = time.perf_counter()
            loaded = adapters[name].load(keys, targets.objects)
            took = time.perf_counter() - start
            if loaded != sizes.chunks or not torch.equal(sources.memory, targets.memory):
                section.wrong.append(f"{name}: loaded {loaded} of {sizes.chunks}, or other bytes")
            return took

        return once

    def memcpy() -> float:
        start = time.perf_counter()
        for target, source in zip(targets.objects, sources.objects, strict=True):
            target.raw_tensor.numpy()[:] = source.raw_tensor.numpy()
        return time.perf_counter() - start

    fast = {name: load(name) for name in adapters if name != RESP}
    samples = interleaved(sizes.rounds, {**fast, MEMCPY: memcpy}, discard=2)
    if RESP in adapters:
        samples |= interleaved(sizes.redis_rounds, {RESP: load(RESP)})
    for name, seconds in samples.items():
        gbs = sizes.bytes / sorted(seconds)[len(seconds) // 2] / 1e9
        section.add(f"load, {name}", [s * 1e3 for s in seconds], "ms", note=f"{gbs:.2f} GB/s")
    ours = samples[POOL]
    section.add(
        f"load bandwidth, {POOL} / {MEMCPY}",
        [plain / mine for plain, mine in zip(samples[MEMCPY], ours, strict=True)],
        "x",
        Bar(False, 0.85),
    )
    section.add(
        f"load, {DAX} / {POOL}",
        [dax / mine for dax, mine in zip(samples[DAX], ours, strict=True)],
        "x",
        Bar(False, 1.5),
    )
    if RESP in adapters:
        mine = sorted(ours)[len(ours) // 2]
        section.add(
            f"load, {RESP} / {POOL}", [s / mine for s in samples[RESP]], "x", Bar(False, 10)
        )


def _lookups(
    section: Section, sizes: Sizes, adapters: dict[str, Adapter], progress: Progress
) -> None:
    keys = _keys(_KEYS_LOOKED_UP, "lookup")
    small = L1Buffers(_KEYS_LOOKED_UP, _SMALL_CHUNK)

    def lookup(name: str, adapter: Adapter) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            found = adapter.lookup(keys)
            took = time.perf_counter() - start
            adapter.adapter.submit_unlock(keys)
            if found != len(keys):
                section.wrong.append(f"{name}: found {found} of {len(keys)} keys")
            return took

        return once

    # Its slots hold a chunk of 16 MiB each: that many keys do not fit.
    asked = {name: adapter for name, adapter in adapters.items() if name != DAX}
    for name, adapter in asked.items():
        progress(f"{name}: store {len(keys)} small chunks")
        if not adapter.store(keys, small.objects):
            section.wrong.append(f"{name}: the store of small chunks failed")
    progress("lookups")
    candidates = {name: lookup(name, adapter) for name, adapter in asked.items()}
    samples = interleaved(sizes.lookups, candidates, discard=20)
    for name, seconds in samples.items():
        section.add(
            f"lookup and lock of {len(keys)} keys, {name}",
            [s * 1e6 for s in seconds],
            "µs",
            Bar(True, 300) if name == POOL else None,
            "from submit to result",
        )


def _keys(count: int, kind: str) -> list[ObjectKey]:
    return [
        ObjectKey(
            chunk_hash=f"{kind}-{number}".encode().ljust(32, b"."),
            model_name="meta-llama/Llama-3.1-8B",
            kv_rank=ObjectKey.ComputeKVRank(1, 0, 1, 0),
        )
        for number in range(count)
    ]


def _create(spec: dict[str, Any], l1: L1Buffers) -> L2AdapterInterface:
    parsed = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(spec)]))
    return create_l2_adapter(parsed.adapters[0], l1_memory_desc=l1.described())


def _pool(folder: Path, sizes: Sizes) -> dict[str, Any]:
    size = sizes.bytes + _KEYS_LOOKED_UP * _SMALL_CHUNK + 384 * _MIB
    return {
        "type": "plugin",
        "module_path": "lmcache_beluga",
        "class_name": "BelugaL2Adapter",
        "adapter_params": {"pool": str(folder / "l2.pool"), "size": size, "extent_size": "64MiB"},
    }


def _dax(folder: Path, sizes: Sizes) -> dict[str, Any]:
    device = folder / "dax.file"
    room = sizes.bytes + 4 * _CHUNK
    with device.open("wb") as file:
        file.truncate(room)
    return {
        "type": "dax",
        "device_path": str(device),
        "max_dax_size_gb": room / (1 << 30),
        "slot_bytes": _CHUNK,
    }
