"""Latency of one load of the GPU from the pool; and what the CPU does with the same memory."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_beluga import _native
from lmcache_beluga.cli.bench_gpu_copies import Bench, prepared
from lmcache_beluga.cli.bench_report import Progress, Section, interleaved
from lmcache_beluga.gpu.cuda_device import CudaDevice
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime

_LINE = 128
_STEPS = 4096
_BEYOND_CACHE = 256 << 20
_CHASE = """
extern "C" __global__ void chase(const unsigned long long* at, unsigned steps,
                                 unsigned long long* out) {
  unsigned long long next = *out;
  for (unsigned i = 0; i < steps; ++i) {
    next = *reinterpret_cast<const volatile unsigned long long*>(
        reinterpret_cast<const char*>(at) + next);
  }
  *out = next;
}
"""


def measure(
    section: Section,
    folder: Path,
    quick: bool,
    progress: Progress,
    device: CudaDevice,
    runtime: CudaRuntime,
) -> None:
    """Dependent loads, each from another line; then copies by the CPU."""
    with prepared(folder, device, runtime, slots=2) as bench:
        progress("GPU loads")
        _gpu_loads(section, bench, rounds=5 if quick else 15)
        progress("CPU copies")
        _cpu_copies(section, bench, rounds=3 if quick else 9)


def _gpu_loads(section: Section, bench: Bench, rounds: int) -> None:
    import cupy
    import torch

    kernel: Any = cupy.RawKernel(_CHASE, "chase")
    slot = bench.slots[0]
    # Non-temporal stores: the GPU's loads are not to find the lines in the CPU's cache ...
    _native.copy_bandwidth(slot.array, _chain(slot.size).view(np.uint8), True, 1)
    # ... nor in the GPU's own.
    local = torch.from_numpy(_chain(_BEYOND_CACHE).view(np.int64)).to(bench.memory.device)
    places = torch.zeros(2, dtype=torch.int64, device=bench.memory.device)
    torch.cuda.synchronize(bench.device.index)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(address: int, place: int) -> float:
        # Goes on where the last one has stopped, so that no line is met twice.
        with cupy.cuda.ExternalStream(bench.stream.cuda_stream), torch.cuda.stream(bench.stream):
            begin.record()
            kernel((1,), (1,), (np.uint64(address), np.uint32(_STEPS), np.uint64(place)))
            end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e6 / _STEPS

    candidates = {
        "pool": partial(sample, slot.address, int(places.data_ptr())),
        "its own memory": partial(sample, int(local.data_ptr()), int(places.data_ptr()) + 8),
    }
    for name, samples in interleaved(rounds, candidates, discard=2).items():
        section.add(f"GPU load, {name}", samples, "ns", note="each depends on the one before")


def _chain(nbytes: int) -> Any:
    """One round through all lines of so much memory in random order: at each line, the offset of
    the next."""
    lines = nbytes // _LINE
    order = np.random.default_rng(1).permutation(lines).astype(np.uint64) * np.uint64(_LINE)
    order = np.roll(order, -int(order.argmin()))  # begins at 0
    chain = np.zeros(nbytes // 8, dtype=np.uint64)
    chain[(order // np.uint64(8)).astype(np.int64)] = np.roll(order, -1)
    return chain


def _cpu_copies(section: Section, bench: Bench, rounds: int) -> None:
    slot = bench.slots[1].array
    other = np.zeros(slot.size, dtype=np.uint8)
    cores = len(os.sched_getaffinity(0))
    candidates = {}
    for threads in sorted({1, min(4, cores), cores}):
        plural = "thread" if threads == 1 else "threads"
        for name, to, source, to_pool in (
            ("ntstore into the pool", slot, other, True),
            ("load from the pool", other, slot, False),
        ):
            way = partial(_native.copy_bandwidth, to, source, to_pool, threads)
            candidates[f"CPU {name}, {threads} {plural}"] = way
    for name, samples in interleaved(rounds, candidates).items():
        section.add(name, [speed / 1e9 for speed in samples], "GB/s")
