"""``beluga bench noncoherent``: what it costs that hosts do not keep the pool coherent.

The hosts are host ids in this process, on a pool in local DRAM: every flush and fence of the
protocol is executed, and a flushed line comes back from DRAM. Behind a switch it comes from further
away, and that costs its latency and bandwidth once more.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcache_beluga.cli.bench_report import BenchError, Progress, Section, interleaved
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.pool import Pool, PutResult

_MIB = 1 << 20
_KEYS = 512
_ENTRIES = 16 * 1024
"""Chunks in each pool that lookups run in, spread evenly over its hosts."""
_CHUNK = 64
_MOST_HOSTS = 16
_ACTIVE = (2, 4, 16)
_IN_A_ROW = 4
_TIMES = {"heartbeat_ms": 20, "dead_after_ms": 1000}
"""A host that joins waits for those that have left, as long as it takes to call them dead."""

_PAYLOAD = 16 * _MIB
_COPIES = 8

Buffer = npt.NDArray[np.uint8]


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """Measure lookups, leases and copies against a coherent pool.

    Args:
        folder: where the pools go; needs 1.3 GiB.
    """
    require(folder, 1300 * _MIB)
    section = Section("Noncoherent pools (hosts are host ids of one process, memory is local DRAM)")
    with contextlib.ExitStack() as stack:
        pools = {}
        for name, visibility, active in _cases():
            progress(f"filling: {name}")
            pools[name] = stack.enter_context(_filled(folder, visibility, active))
        progress("lookups")
        _lookups(section, pools, rounds=15 if quick else 60)
        progress("leases")
        _leases(section, pools, rounds=10 if quick else 40)
    progress("copies")
    _copies(section, folder, rounds=5 if quick else 15)
    return section


def _cases() -> Iterator[tuple[str, str, int]]:
    yield "coherent, 1 host", "coherent", 1
    for active in _ACTIVE:
        yield f"coherent, {active} hosts", "coherent", active
    for active in _ACTIVE:
        yield f"noncoherent, {active} hosts", "noncoherent", active


class _Filled:
    """A pool in which ``active`` hosts own chunks alike, seen by host 0."""

    def __init__(self, pool: Pool, keys: list[bytes], foreign: list[bytes]) -> None:
        self.pool = pool
        self.keys = keys
        self.foreign = foreign
        self.random = random.Random(1)

    def draw(self, foreign: bool = False) -> list[bytes]:
        return self.random.sample(self.foreign if foreign else self.keys, _KEYS)


@contextlib.contextmanager
def _filled(folder: Path, visibility: str, active: int) -> Iterator[_Filled]:
    path = folder / f"{visibility}-{active}.pool"
    Pool.format(
        path,
        size=192 * _MIB,
        extent_size=_MIB,
        chunk_hint=4096,
        max_hosts=1 if active == 1 else _MOST_HOSTS,
        visibility=visibility,
    )
    names = [b"bench-%d" % number for number in range(_ENTRIES)]
    keys, foreign = [], []
    with Pool.attach(path, host_id=0, **_TIMES) as pool:
        for host in range(active):
            mine = names[host::active]
            # A host that has left is active as long as its chunks are there.
            with (
                contextlib.nullcontext(pool)
                if host == 0
                else Pool.attach(path, host_id=host, **_TIMES) as own
            ):
                own.put_batch(mine, [bytes(_CHUNK)] * len(mine))
                # A full row of the hash table makes room by an eviction.
                there = [k for k, here in zip(mine, own.contains(mine), strict=True) if here]
            keys += there
            foreign += there if host else []
        if len(keys) < 0.95 * _ENTRIES:
            raise BenchError(f"only {len(keys)} of {_ENTRIES} chunks stayed in the pool")
        yield _Filled(pool, keys, foreign)
    path.unlink()


def _lookups(section: Section, pools: dict[str, _Filled], rounds: int) -> None:
    def sample(filled: _Filled) -> Callable[[], float]:
        def measure() -> float:
            seconds = sum(
                float(filled.pool._native.lookup_seconds(filled.draw(), 1))
                for _ in range(_IN_A_ROW)
            )
            return seconds * 1e9 / _KEYS / _IN_A_ROW

        return measure

    samples = interleaved(rounds, {n: sample(f) for n, f in pools.items()}, discard=3)
    for name in pools:
        section.add(f"lookup of {_KEYS}, {name}", samples[name], "ns/key")
    base = statistics.median(samples["coherent, 1 host"])
    for active in _ACTIVE:
        mine = statistics.median(samples[f"noncoherent, {active} hosts"])
        section.add_value(f"lookup, noncoherent with {active} hosts / coherent", mine / base, "x")
    for kind in ("coherent", "noncoherent"):
        few, many = (
            statistics.median(samples[f"{kind}, {active} hosts"])
            for active in (_ACTIVE[0], _ACTIVE[-1])
        )
        section.add_value(
            f"one lane line more per key, {kind}",
            (many - few) / (_ACTIVE[-1] - _ACTIVE[0]),
            "ns",
            note=f"from {_ACTIVE[0]} to {_ACTIVE[-1]} hosts",
        )


def _leases(section: Section, pools: dict[str, _Filled], rounds: int) -> None:
    """Leases of chunks that other hosts own. Giving them back is not timed."""

    def sample(filled: _Filled) -> Callable[[], float]:
        def measure() -> float:
            keys = filled.draw(foreign=True)
            start = time.perf_counter()
            pinned = filled.pool.pin_prefix(keys)
            seconds = time.perf_counter() - start
            filled.pool.unpin_all()
            if pinned != _KEYS:
                raise BenchError(f"{pinned} of {_KEYS} present keys were leased")
            return seconds * 1e9 / _KEYS

        return measure

    candidates = {name: sample(filled) for name, filled in pools.items() if filled.foreign}
    samples = interleaved(rounds, candidates, discard=5)
    for name in candidates:
        section.add(f"lease of {_KEYS} foreign keys, {name}", samples[name], "ns/key")


_MODES: dict[str, dict[str, Any]] = {
    "coherent": {"visibility": "coherent"},
    "noncoherent, flush": {"visibility": "noncoherent"},
    "noncoherent, direct": {"visibility": "noncoherent", "payload_visibility": "direct"},
}


def _copies(section: Section, folder: Path, rounds: int) -> None:
    """Host 1 stores, host 0 reads: once after the store, and once more."""
    sources = [
        np.random.default_rng(n).integers(0, 256, _PAYLOAD, np.uint8) for n in range(_COPIES)
    ]
    targets: list[Buffer] = [np.zeros(_PAYLOAD, np.uint8) for _ in range(_COPIES)]
    keys = [b"copy-%d" % number for number in range(_COPIES)]
    gigabytes = _PAYLOAD * _COPIES / 1e9
    samples: dict[str, list[float]] = {}

    def note(name: str, seconds: float, keep: bool) -> None:
        if keep:
            samples.setdefault(name, []).append(gigabytes / seconds)

    with contextlib.ExitStack() as stack:
        pools = {}
        for number, (name, mode) in enumerate(_MODES.items()):
            path = folder / f"copies-{number}.pool"
            Pool.format(
                path,
                size=(_COPIES + 6) * 17 * _MIB,
                extent_size=16 * _MIB,
                chunk_hint=_PAYLOAD,
                max_hosts=2,
                **mode,
            )
            stack.callback(path.unlink)
            pools[name] = [stack.enter_context(Pool.attach(path, host_id=h)) for h in (0, 1)]
        for number in range(-2, rounds):
            keep = number >= 0
            note("memcpy", _timed(_memcpy, sources, targets), keep)
            for name, (reader, writer) in pools.items():
                writer.remove(keys)
                note(f"put, {name}", _timed(_put, writer, keys, sources), keep)
                for which in ("read_into, first", "read_into, again"):
                    seconds = _timed(_read, reader, keys, targets)
                    note(f"{which}, {name}", seconds, keep)
                    if not all(map(np.array_equal, sources, targets)):
                        section.wrong.append(f"{which} of {name} differs")
                    for target in targets:
                        target.fill(0)
                writer.remove(keys)
                write = _timed(_reserve_and_commit, writer, keys, sources)
                note(f"reserve, write and commit, {name}", write, keep)
    plain = samples["memcpy"]
    section.add("memcpy 16 MiB", plain, "GB/s")
    for name, values in samples.items():
        if name == "memcpy":
            continue
        section.add(f"{name}", values, "GB/s")
        ratio = statistics.median(v / p for v, p in zip(values, plain, strict=True))
        section.add_value(f"{name} / memcpy", ratio, "x")


def _timed(what: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    what(*arguments)
    return time.perf_counter() - start


def _memcpy(sources: list[Buffer], targets: list[Buffer]) -> None:
    for source, target in zip(sources, targets, strict=True):
        np.copyto(target, source)


def _put(pool: Pool, keys: list[bytes], sources: list[Buffer]) -> None:
    for key, source in zip(keys, sources, strict=True):
        if pool.put(key, source) is not PutResult.STORED:
            raise BenchError("a chunk was refused")


def _reserve_and_commit(pool: Pool, keys: list[bytes], sources: list[Buffer]) -> None:
    for key, source in zip(keys, sources, strict=True):
        slot = pool.reserve(_PAYLOAD)
        if slot is None:
            raise BenchError("a chunk was refused")
        slot.array[:] = source
        slot.commit(key)


def _read(pool: Pool, keys: list[bytes], targets: list[Buffer]) -> None:
    for key, target in zip(keys, targets, strict=True):
        if pool.read_into(key, target) != _PAYLOAD:
            raise BenchError("a chunk is missing")
