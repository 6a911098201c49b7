"""What CPUs do with a pool's memory: latency, time per block, bandwidth by threads, copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lmcache_beluga import _native
from lmcache_beluga.characterize.figures import (
    ALL,
    COPY_IN,
    COPY_OUT,
    LOADS,
    Figure,
    node_name,
)
from lmcache_beluga.characterize.region import Region
from lmcache_beluga.characterize.topology import Node

#: Between the links of the chain: more than a prefetcher of neighbouring lines brings.
STRIDE = 256
BLOCKS = (64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
#: The most that the copy engine of a pool has.
MAX_COPY_THREADS = 64

_BATCH = 512
_SAMPLES = 20_000
_COPIES = 3
#: Of the time that all probes have: a latency, a block, a bandwidth, a number of copying threads.
_SHARES = {"chase": 4.0, "block": 0.5, "pass": 2.0, "copy": 2.0}
_LONGEST_S = 1.0

Done = Callable[[str], None]
"""Told what has just been measured."""


@dataclass(frozen=True)
class Probe:
    """One thing to measure, when its turn comes."""

    name: str
    share: str
    run: Callable[[float], list[Figure]]
    """Given the seconds it may take."""


def thread_counts(cpus: int, limit: int = 1024) -> list[int]:
    """1, 2, 4, ... and all of the CPUs, at most ``limit``."""
    most = min(cpus, limit)
    powers = [1 << k for k in range(most.bit_length()) if 1 << k < most]
    return [*powers, most]


def measure(
    places: Sequence[Region],
    compare: Region,
    nodes: Sequence[Node],
    seconds: float,
    done: Done = lambda what: None,
) -> Iterator[Figure]:
    """Measures every place from every node, and what copies between it and DRAM do.

    Args:
        places: the pool's devices.
        compare: local DRAM; also the other end of the copies.
        seconds: about how long all of it may take.
        done: called after each probe, ``probe_count`` times.
    """
    probes = list(_probes(places, compare, nodes))
    unit = seconds / sum(_SHARES[one.share] for one in probes)
    for one in probes:
        yield from one.run(min(_LONGEST_S, unit * _SHARES[one.share]))
        done(one.name)


def probe_count(places: Sequence[Region], compare: Region, nodes: Sequence[Node]) -> int:
    """How many probes ``measure`` runs."""
    return len(list(_probes(places, compare, nodes)))


def _probes(places: Sequence[Region], compare: Region, nodes: Sequence[Node]) -> Iterator[Probe]:
    names = [name for name, _ in _native.probe_operations()]
    for region in (*places, compare):
        for node in nodes:
            yield _chase(region, node)
            for block in BLOCKS:
                if block <= region.memory.size:
                    for name in names:
                        yield _block(region, node, name, block)
            for threads in thread_counts(len(node.cpus)):
                for name in names:
                    yield _passes([region], node, name, threads)
    if len(places) > 1:
        for node in nodes:
            for threads in thread_counts(len(node.cpus)):
                for name in names:
                    yield _passes(places, node, name, threads)
    every = len({cpu for node in nodes for cpu in node.cpus})
    for region in places:
        for threads in thread_counts(every, MAX_COPY_THREADS):
            for operation in (COPY_IN, COPY_OUT):
                yield _copy(region, compare, operation, threads)


def _chase(region: Region, node: Node) -> Probe:
    def run(seconds: float) -> list[Figure]:
        memory = region.memory
        links = _native.build_chain(memory, STRIDE, seed=1)
        batch = min(_BATCH, links)
        ns, _ = _native.chase_chain(memory, 0, links, batch, seconds, node.cpus[0])
        return [Figure.of(region.name, node_name(node), LOADS, "ns", ns, block=64)]

    return Probe(f"{region.name}, {node_name(node)}: latency", "chase", run)


def _block(region: Region, node: Node, operation: str, block: int) -> Probe:
    def run(seconds: float) -> list[Figure]:
        ns = _native.time_blocks(region.memory, operation, block, _SAMPLES, seconds, node.cpus[0])
        return [Figure.of(region.name, node_name(node), operation, "ns", ns, block=block)]

    return Probe(f"{region.name}, {node_name(node)}: {operation}", "block", run)


def _passes(regions: Sequence[Region], node: Node, operation: str, threads: int) -> Probe:
    place = regions[0].name if len(regions) == 1 else ALL

    def run(seconds: float) -> list[Figure]:
        cpus = list(node.cpus[:threads])
        memories = [region.memory for region in regions]
        passes = _native.time_passes(memories, operation, cpus, seconds)
        samples = [nbytes / took / 1e9 for nbytes, took in passes if took > 0]
        if not samples:
            return []
        return [Figure.of(place, node_name(node), operation, "GB/s", samples, threads=threads)]

    return Probe(f"{place}, {node_name(node)}: {operation}, {threads} threads", "pass", run)


def _copy(region: Region, compare: Region, operation: str, threads: int) -> Probe:
    """The engine that copies chunks into and out of a pool, as it does: with threads anywhere."""

    def run(seconds: float) -> list[Figure]:
        to_pool = operation == COPY_IN
        target, source = (region, compare) if to_pool else (compare, region)
        size = min(target.memory.size, source.memory.size)
        samples: list[float] = []
        spent = 0.0
        while len(samples) < _COPIES or spent < seconds:
            rate = _native.copy_bandwidth(
                target.memory[:size], source.memory[:size], to_pool, threads
            )
            samples.append(rate / 1e9)
            spent += size / rate
            if spent > _COPIES * _LONGEST_S:
                break
        return [Figure.of(region.name, "any node", operation, "GB/s", samples, threads=threads)]

    return Probe(f"{region.name}: {operation}, {threads} threads", "copy", run)
