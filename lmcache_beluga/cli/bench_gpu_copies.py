"""H2D and D2H by size of the fragments: the copy engines against the fused kernel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcache_beluga.cli.bench_report import Bar, Progress, Section, interleaved
from lmcache_beluga.gpu.copy_method import (
    MEASURED,
    Direction,
    Method,
    crossover_of,
    fastest,
    method_for,
)
from lmcache_beluga.gpu.cuda_device import CudaDevice
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime
from lmcache_beluga.gpu.fused_copy import FusedCopy
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool
from lmcache_beluga.quantities import format_size

_MIB = 1 << 20
_SIZES = (160, 1024, 4096, 16 << 10, 20 << 10, 64 << 10, 256 << 10, _MIB, 16 * _MIB)
_QUICK_SIZES = (160, 4096, 16 << 10, _MIB)
_SLOT = 32 * _MIB
_MOST = {Method.EACH: 4096, Method.BATCH: 16_384, Method.FUSED: 262_144}
"""Fragments per sample: of tiny ones, fewer bytes are copied than of large ones."""
_FEW_BLOCKS = 16
_BARRED_FROM = 4096
"""Fragments of this size and more are to reach most of what one large copy does ..."""
_OF_LIMIT = 0.92
_BARRED = 16 << 10
"""... and of this size so many times what one call each does."""
_TIMES_EACH = 8
_CHECKED, _CHECKED_BYTES = 64, 64 * _MIB
"""Fragments that are compared after each measurement."""
_LIMIT = "one pinned copy"
_MANY = 1 << 10

Addresses = npt.NDArray[np.uint64]


class Bench:
    """Slots of a registered pool, as much memory of the GPU, and pinned memory of torch's."""

    def __init__(self, pool: Pool, device: CudaDevice, runtime: CudaRuntime, slots: int) -> None:
        import torch

        self.device = device
        self.registration = Registration(pool, runtime)
        self.copy = FusedCopy(self.registration, device)
        self.slots = []
        for _ in range(slots):
            slot = pool.reserve(_SLOT)
            if slot is None or not self.registration.covers(slot):
                self.registration.close()
                raise RuntimeError(self.registration.refused or "the pool has no room")
            self.slots.append(slot)
        self.total = slots * _SLOT
        self.memory: Any = torch.empty(self.total, dtype=torch.uint8, device=device.name)
        self.fill()
        self.pinned: Any = torch.empty(self.total, dtype=torch.uint8, pin_memory=True)
        self.pinned.fill_(1)
        self.stream: Any = torch.cuda.Stream(device.index)
        for number, slot in enumerate(self.slots):
            part = self.memory[number * _SLOT : (number + 1) * _SLOT]
            torch.from_numpy(slot.array).copy_(part)
        torch.cuda.synchronize(device.index)

    def fill(self) -> None:
        """Random bytes into the GPU's memory."""
        self.memory.random_(0, 256)

    def places(self, nbytes: int, count: int) -> tuple[Addresses, Addresses]:
        """Addresses of ``count`` fragments in the pool and in the GPU, each in an order of its
        own."""
        random = np.random.default_rng(nbytes)
        per_slot = _SLOT // nbytes
        everywhere = len(self.slots) * per_slot
        bases = np.array([slot.address for slot in self.slots], dtype=np.uint64)
        picked = random.permutation(everywhere)[:count].astype(np.uint64)
        inside = picked % np.uint64(per_slot) * np.uint64(nbytes)
        in_pool = bases[(picked // np.uint64(per_slot)).astype(np.int64)] + inside
        there = random.permutation(everywhere)[:count].astype(np.uint64) * np.uint64(nbytes)
        return in_pool, np.uint64(self.memory.data_ptr()) + there

    def timed(self, start: Callable[[], object]) -> float:
        """Seconds from the call until the GPU is done."""
        begin = time.perf_counter()
        start()
        self.stream.synchronize()
        return time.perf_counter() - begin

    def close(self) -> None:
        self.copy.close()
        for slot in self.slots:
            slot.abort()
        self.registration.close()


@contextmanager
def prepared(folder: Path, device: CudaDevice, runtime: CudaRuntime, slots: int) -> Iterator[Bench]:
    """A pool of its own with so many slots of 32 MiB."""
    path = folder / "gpu.pool"
    extent = 128 * _MIB
    size = (slots * _SLOT // extent + 3) * extent
    Pool.format(path, size=size, extent_size=extent, chunk_hint=_SLOT)
    with Pool.attach(path) as pool:
        bench = Bench(pool, device, runtime, slots)
        try:
            yield bench
        finally:
            bench.close()
    path.unlink()


def measure(
    section: Section,
    folder: Path,
    quick: bool,
    progress: Progress,
    device: CudaDevice,
    runtime: CudaRuntime,
) -> None:
    """All sizes both ways, the bars, and the crossovers."""
    with prepared(folder, device, runtime, slots=4 if quick else 16) as bench:
        for direction in Direction:
            bench.fill()
            speeds = []
            for nbytes in _QUICK_SIZES if quick else _SIZES:
                progress(f"{direction.value}, {format_size(nbytes)}")
                found = _one_size(section, bench, direction, nbytes, rounds=3 if quick else 9)
                speeds.append((nbytes, found))
            _crossover(section, direction, speeds, device.batches)


def _one_size(
    section: Section, bench: Bench, direction: Direction, nbytes: int, rounds: int
) -> Mapping[Method, float]:
    """Median GB/s of each method."""
    ways = dict(_ways(bench, direction, nbytes))
    candidates = {name: partial(bench.timed, way.start) for name, way in ways.items()}
    seconds = interleaved(rounds, candidates)
    label = f"{direction.value} {format_size(nbytes)}"
    speeds = {name: [ways[name].nbytes / s / 1e9 for s in seconds[name]] for name in ways}
    for name, values in speeds.items():
        section.samples[f"{label}, {name}, GB/s"] = values
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    fused, limit, each = speeds[Method.FUSED.value], speeds[_LIMIT], speeds[Method.EACH.value]
    others = ", ".join(
        f"{name} {value:.3g}" for name, value in medians.items() if name != Method.FUSED.value
    )
    note = f"{ways[Method.FUSED.value].count:,} fragments; {others}"
    section.add(f"{label}, {Method.FUSED.value}", fused, "GB/s", note=note)
    section.add(
        f"{label}, {Method.FUSED.value} / {_LIMIT}",
        [ours / most for ours, most in zip(fused, limit, strict=True)],
        "x",
        Bar(False, _OF_LIMIT) if nbytes >= _BARRED_FROM else None,
    )
    if nbytes == _BARRED:
        times = [ours / theirs for ours, theirs in zip(fused, each, strict=True)]
        name = f"{label}, {Method.FUSED.value} / {Method.EACH.value}"
        section.add(name, times, "x", Bar(False, _TIMES_EACH))
    for name, way in ways.items():
        if way.check is not None and not way.check():
            section.wrong.append(f"{label}, {name}: other bytes arrived")
    return {method: medians[method.value] for method in Method if method.value in medians}


class _Way:
    """One way to copy a set of fragments, or the limit."""

    def __init__(
        self,
        start: Callable[[], object],
        nbytes: int,
        count: int = 1,
        check: Callable[[], bool] | None = None,
    ) -> None:
        self.start = start
        self.nbytes = nbytes
        self.count = count
        self.check = check


def _ways(bench: Bench, direction: Direction, nbytes: int) -> Iterator[tuple[str, _Way]]:
    import torch

    to_gpu = direction is Direction.TO_GPU

    def whole() -> None:
        with torch.cuda.stream(bench.stream):
            to, source = bench.memory, bench.pinned
            if not to_gpu:
                to, source = source, to
            to.copy_(source, non_blocking=True)

    def places(method: Method) -> tuple[Addresses, Addresses]:
        count = min(_MOST[method], bench.total // nbytes)
        in_pool, in_gpu = bench.places(nbytes, count)
        return (in_gpu, in_pool) if to_gpu else (in_pool, in_gpu)

    def way(method: Method, to: Addresses, source: Addresses, **options: Any) -> _Way:
        stream = bench.stream
        sides: tuple[Any, Any] = (to, source)
        if method is Method.FUSED:  # as for paged KV, whose addresses the kernel computes
            sides = tuple(torch.from_numpy(s.view(np.int64)).to(bench.memory.device) for s in sides)

        def start() -> object:
            return bench.copy.copy(
                *sides, nbytes, direction, method=method, stream=stream, **options
            )

        def check() -> bool:
            return _arrives(bench, start, to, source, nbytes, to_gpu)

        return _Way(start, to.size * nbytes, to.size, check)

    yield _LIMIT, _Way(whole, bench.total)
    fused = places(Method.FUSED)
    yield Method.FUSED.value, way(Method.FUSED, *fused)
    for blocks in (_FEW_BLOCKS, bench.device.processors):
        name = f"{Method.FUSED.value} of {blocks} thread blocks"
        yield name, way(Method.FUSED, *fused, thread_blocks=blocks)
    if bench.device.batches:
        yield Method.BATCH.value, way(Method.BATCH, *places(Method.BATCH))
    yield Method.EACH.value, _each(bench, way, *places(Method.EACH), nbytes)


def _each(
    bench: Bench,
    way: Callable[[Method, Addresses, Addresses], _Way],
    to: Addresses,
    source: Addresses,
    nbytes: int,
) -> _Way:
    """One call each, from a loop that costs as little as Python can: CuPy's call is compiled."""
    import cupy

    made = way(Method.EACH, to, source)
    call, stream = cupy.cuda.runtime.memcpyAsync, bench.stream.cuda_stream
    targets, sources = to.tolist(), source.tolist()

    def start() -> None:
        for target, origin in zip(targets, sources, strict=True):
            call(target, origin, nbytes, 4, stream)

    made.start = start
    return made


def _arrives(
    bench: Bench,
    start: Callable[[], object],
    to: Addresses,
    source: Addresses,
    nbytes: int,
    to_gpu: bool,
) -> bool:
    """Whether some of the fragments hold their source's bytes, after the targets were cleared."""
    import torch

    most = max(1, min(_CHECKED, _CHECKED_BYTES // nbytes))
    some = np.random.default_rng(1).permutation(to.size)[:most]
    base = bench.memory.data_ptr()
    by_slot = sorted((slot.address, slot) for slot in bench.slots)

    def in_pool(address: int) -> Any:
        begin, slot = next(entry for entry in reversed(by_slot) if entry[0] <= address)
        return torch.from_numpy(slot.array)[address - begin : address - begin + nbytes]

    def in_gpu(address: int) -> Any:
        return bench.memory[address - base : address - base + nbytes]

    target, origin = (in_gpu, in_pool) if to_gpu else (in_pool, in_gpu)
    wanted = [origin(int(source[i])).cpu().clone() for i in some]
    for i in some:
        target(int(to[i])).zero_()
    torch.cuda.synchronize(bench.device.index)
    bench.timed(start)
    there = [target(int(to[i])).cpu() for i in some]
    return all(torch.equal(a, b) for a, b in zip(there, wanted, strict=True))


def _crossover(
    section: Section,
    direction: Direction,
    speeds: Sequence[tuple[int, Mapping[Method, float]]],
    batches: bool,
) -> None:
    found, built_in = crossover_of(speeds), MEASURED[direction]
    beyond = 2 * speeds[-1][0]
    for method, ours, default in (
        (Method.BATCH, found.batch_from, built_in.batch_from),
        (Method.EACH, found.each_from, built_in.each_from),
    ):
        note = f"used from {format_size(default)} on"
        section.add_value(
            f"{direction.value} crossover: {method.value} from",
            ours / 1024 if ours < beyond else None,
            "KiB",
            note=note if ours < beyond else f"nowhere the fastest; {note}",
        )
    worst, where = min(
        (medians[method_for(direction, nbytes, _MANY, batches)] / max(medians.values()), nbytes)
        for nbytes, medians in speeds
    )
    section.add_value(
        f"{direction.value} method used / fastest, worst size",
        worst,
        "x",
        note=f"{format_size(where)}; {_table(direction, speeds, batches)}",
    )


def _table(
    direction: Direction, speeds: Sequence[tuple[int, Mapping[Method, float]]], batches: bool
) -> str:
    """What is used, and what is the fastest, by size."""
    cells = []
    for nbytes, medians in speeds:
        used, best = method_for(direction, nbytes, _MANY, batches), fastest(medians)
        arrow = "" if used is best else f" (fastest: {best.value})"
        cells.append(f"{format_size(nbytes)} {used.value}{arrow}")
    return ", ".join(cells)
