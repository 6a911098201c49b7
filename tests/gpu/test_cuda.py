"""A real GPU reads and writes the pool where it lies. Skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcache_beluga.gpu.cuda_runtime import CudaError, CudaRuntime
from lmcache_beluga.gpu.registration import Registration
from lmcache_beluga.pool import Pool, PutResult

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CHUNK = 32 << 20
COUNT = 24


@pytest.fixture
def pool(pool_path: Path) -> Iterator[Pool]:
    Pool.format(pool_path, size=2 << 30, extent_size=256 << 20, chunk_hint=CHUNK)
    with Pool.attach(pool_path) as pool:
        yield pool


def bytes_of(number: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(number)
    return torch.randint(0, 256, (CHUNK,), dtype=torch.uint8, device="cuda", generator=generator)


def gigabytes_per_second(copies: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for to, source in copies:
        to.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    return sum(to.nbytes for to, _ in copies) / begin.elapsed_time(end) / 1e6


def test_the_gpu_reads_and_writes_slots(pool: Pool) -> None:
    registration = Registration(pool, CudaRuntime(torch.cuda.current_device()))
    sources = [bytes_of(number) for number in range(COUNT)]
    slots = [pool.reserve(CHUNK) for _ in range(COUNT)]
    assert all(registration.covers(slot) for slot in slots)
    memory = [torch.from_numpy(slot.array) for slot in slots]
    assert all(tensor.is_pinned() for tensor in memory)
    stored = gigabytes_per_second(list(zip(memory, sources, strict=True)))
    for number, slot in enumerate(slots):
        assert slot.commit(b"%d" % number) is PutResult.STORED
    views = [pool.get(b"%d" % number) for number in range(COUNT)]
    assert all(registration.covers(view) for view in views)
    targets = [torch.empty_like(source) for source in sources]
    chunks = [torch.from_numpy(view.array) for view in views]
    gigabytes_per_second(list(zip(targets, chunks, strict=True)))
    loaded = gigabytes_per_second(list(zip(targets, chunks, strict=True)))
    pinned = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(4)] * 6
    gigabytes_per_second(list(zip(targets, pinned, strict=True)))
    limit = gigabytes_per_second(list(zip(targets, pinned, strict=True)))
    gigabytes_per_second(list(zip(targets, chunks, strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(targets, sources, strict=True))
    assert all(view.valid() for view in views)
    for view in views:
        view.release()
    registration.close()
    print(f"\nGB/s: store {stored:.1f}, load {loaded:.1f}, from pinned memory {limit:.1f}")


def test_a_refusal_leaves_no_error_behind() -> None:
    runtime = CudaRuntime(torch.cuda.current_device())
    memory = np.zeros(1 << 20, dtype=np.uint8)
    runtime.host_register(memory.ctypes.data, memory.nbytes)
    with pytest.raises(CudaError):
        runtime.host_register(memory.ctypes.data, memory.nbytes)
    ones = torch.ones(8, device="cuda")  # would raise the error that is left
    assert float(ones.sum()) == 8
    runtime.host_unregister(memory.ctypes.data)
