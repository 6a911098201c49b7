"""One process of ``beluga bench gpus``: a GPU that loads chunks from the pool, and stores them.

    python -m lmcache_beluga.cli.bench_gpus_worker POOL GPU CHUNK_BYTES CHUNKS

Says ``ready``, then answers each line ``PHASE SECONDS`` of its input with its gigabytes per second.
Phases: ``pinned load`` and ``pinned store`` (memory that torch has pinned: the limit of the bus),
``load`` and ``store``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import torch

from lmcache_beluga.gpu.cuda_runtime import CudaRuntime
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool, Reservation, View

_AT_ONCE = 4
"""Copies that are launched before the first of them is waited for."""


def main() -> None:
    path, gpu, chunk, count = sys.argv[1], *(int(word) for word in sys.argv[2:5])
    torch.cuda.set_device(gpu)
    with Pool.attach(path) as pool:
        registration = Registration(pool, CudaRuntime(gpu))
        views = [view for view in pool.get_batch(_keys(count)) if view is not None]
        slots = [slot for slot in (pool.reserve(chunk) for _ in range(count)) if slot is not None]
        holds: list[View | Reservation] = [*views, *slots]
        if len(holds) < 2 * count or not all(registration.covers(hold) for hold in holds):
            raise SystemExit(f"no memory for the GPU: {registration.refused}")
        on_gpu = [torch.empty(chunk, dtype=torch.uint8, device="cuda") for _ in range(_AT_ONCE)]
        pinned = [torch.empty(chunk, dtype=torch.uint8, pin_memory=True) for _ in range(_AT_ONCE)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has no read-only tensors, and says so
            chunks = [torch.from_numpy(view.array) for view in views]
        free = [torch.from_numpy(slot.array) for slot in slots]
        phases: dict[str, Callable[[int], object]] = {
            "pinned load": lambda n: _copy(on_gpu, pinned, n),
            "pinned store": lambda n: _copy(pinned, on_gpu, n),
            "load": lambda n: _copy(on_gpu, chunks, n),
            "store": lambda n: _copy(free, on_gpu, n),
        }
        for copy in phases.values():
            for number in range(count):
                copy(number)
        torch.cuda.synchronize()
        print("ready", flush=True)
        for line in sys.stdin:
            phase, _, seconds = line.strip().rpartition(" ")
            print(_rate(phases[phase], chunk, float(seconds)), flush=True)
        for slot in slots:
            slot.abort()
        for view in views:
            view.release()
        registration.close()


def _keys(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def _copy(to: list[torch.Tensor], source: list[torch.Tensor], number: int) -> None:
    to[number % len(to)].copy_(source[number % len(source)], non_blocking=True)


def _rate(copy: Callable[[int], object], chunk: int, seconds: float) -> float:
    """Gigabytes per second of ``seconds`` of copies."""
    events = [torch.cuda.Event() for _ in range(_AT_ONCE)]
    begin = time.perf_counter()
    number = 0
    while time.perf_counter() - begin < seconds:
        events[number % _AT_ONCE].synchronize()
        copy(number)
        events[number % _AT_ONCE].record()
        number += 1
    torch.cuda.synchronize()
    return number * chunk / (time.perf_counter() - begin) / 1e9


if __name__ == "__main__":
    main()
