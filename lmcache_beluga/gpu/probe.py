"""What a GPU does with host memory that is registered with it: latency, and copies each way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from lmcache_beluga import _native
from lmcache_beluga.characterize.cpu import STRIDE
from lmcache_beluga.characterize.figures import (
    BY_ENGINE,
    BY_KERNEL,
    FROM_GPU,
    LOADS,
    TO_GPU,
    Figure,
)
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime
from lmcache_beluga.gpu.registration import Registration, Runtime

if TYPE_CHECKING:
    from lmcache_beluga.characterize.region import Region

SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20)
HOPS = 8192

_ROUNDS = 5
#: Of each round, if the memory is large enough: long enough to time, short enough for a bus.
_ROUND_BYTES = 512 << 20
_MOST_COPIES = 1024
_CHASES = 5
_DEVICES = ("/dev/nvidiactl", "/dev/dxg")

_KERNELS = r"""
extern "C" __global__ void beluga_chase(const char* base, unsigned long long bytes,
                                        unsigned long long at, int hops,
                                        unsigned long long* end) {
  for (int i = 0; i < hops && at + 8 <= bytes; ++i) {
    unsigned long long next;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(next) : "l"(base + at) : "memory");
    at = next;
  }
  *end = at;
}
extern "C" __global__ void beluga_copy(uint4* to, const uint4* from, unsigned long long count) {
  unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    to[i] = a; to[i + step] = b; to[i + 2 * step] = c; to[i + 3 * step] = d;
  }
  for (; i < count; i += step) to[i] = from[i];
}
"""
_BLOCKS, _THREADS = 32, 512

Memory = npt.NDArray[np.uint8]
Step = Callable[[str], None]


class Gpu(Protocol):
    """What the probe needs of one GPU. Every method may raise any exception."""

    name: str
    """``gpu 0``"""
    what: str
    """Model and host bus address."""
    runtime: Runtime

    def prepare(self, nbytes: int) -> None:
        """Takes ``nbytes`` of its own memory, for all copies, and compiles kernels."""
        ...

    def chase(self, memory: Memory, start: int, hops: int) -> tuple[float, int]:
        """Follows the chain in registered memory. Returns seconds and the last offset."""
        ...

    def copies(
        self, memories: Sequence[Memory], *, to_gpu: bool, kernel: bool
    ) -> tuple[float, float]:
        """Copies each of them to or from the beginning of its own memory, one after the other, and
        waits. Returns seconds from the first to the last by the GPU's clock, and by the host's
        from the first launch until it knows that all are done."""
        ...

    def release(self) -> None:
        """Gives its memory back."""
        ...


def step_count(regions: Sequence[Region]) -> int:
    """How often ``measure`` tells of a step, at most."""
    return sum(1 + 4 * len(_sizes(region)) for region in regions)


def measure(gpu: Gpu, regions: Sequence[Region], done: Step = lambda what: None) -> list[Figure]:
    """Measures every region from one GPU.

    Never raises for what CUDA says: a figure without a value has the reason as its note. What was
    copied is compared; bytes that differ are such a reason, too.
    """
    figures: list[Figure] = []
    try:
        gpu.prepare(max(min(region.memory.size, SIZES[-1]) for region in regions))
        for region in regions:
            figures.extend(_region(gpu, region, done))
    except Exception as error:
        figures.append(_failed(regions[0].name, gpu, LOADS, error))
    finally:
        try:
            gpu.release()
        except Exception as error:
            figures.append(_failed(regions[0].name, gpu, "releasing its memory", error))
    return figures


def _region(gpu: Gpu, region: Region, done: Step) -> Iterator[Figure]:
    try:
        with _Registered(gpu.runtime, region):
            yield from _chase(gpu, region)
            done(f"{gpu.name}, {region.name}: latency")
            for to_gpu in (True, False):
                for kernel in (False, True):
                    yield from _copies(gpu, region, to_gpu, kernel, done)
    except Exception as error:
        yield _failed(region.name, gpu, LOADS, error)


class _Registered:
    """Registers a region with CUDA: a pool's with its extent, as engines do it."""

    def __init__(self, runtime: Runtime, region: Region) -> None:
        self._runtime = runtime
        self._region = region
        self._registration: Registration | None = None

    def __enter__(self) -> None:
        region = self._region
        if region.pool is None or region.slot is None:
            self._runtime.host_register(region.memory.ctypes.data, region.memory.nbytes)
            return
        self._registration = Registration(region.pool, self._runtime)
        if not self._registration.covers(region.slot):
            refused = self._registration.refused
            self._registration.close()
            raise RuntimeError(refused)

    def __exit__(self, *_: object) -> None:
        if self._registration is not None:
            self._registration.close()
        else:
            self._runtime.host_unregister(self._region.memory.ctypes.data)


def _chase(gpu: Gpu, region: Region) -> Iterator[Figure]:
    try:
        links = _native.build_chain(region.memory, STRIDE, seed=2)
        hops = min(HOPS, links // (_CHASES + 1))
        if hops == 0:
            return
        at, samples = 0, []
        for number in range(_CHASES + 1):
            seconds, end = gpu.chase(region.memory, at, hops)
            _, expected = _native.chase_chain(region.memory, at, hops, hops, 30, _any_cpu())
            if end != expected:
                raise RuntimeError(f"the chain ends at {end}, not at {expected}")
            if number > 0:  # the first call loads the kernel
                samples.append(seconds / hops * 1e9)
            at = end
        yield Figure.of(region.name, gpu.name, LOADS, "ns", samples, block=64)
    except Exception as error:
        yield _failed(region.name, gpu, LOADS, error)


def _copies(gpu: Gpu, region: Region, to_gpu: bool, kernel: bool, done: Step) -> Iterator[Figure]:
    operation = f"{TO_GPU if to_gpu else FROM_GPU}, {BY_KERNEL if kernel else BY_ENGINE}"
    try:
        _compare(gpu, region.memory, to_gpu, kernel)
        for size in _sizes(region):
            count = max(1, min(_MOST_COPIES, _ROUND_BYTES // size))
            there = region.memory.size // size
            blocks = [region.memory[i % there * size :][:size] for i in range(count)]
            gpu.copies(blocks, to_gpu=to_gpu, kernel=kernel)
            seconds = [gpu.copies(blocks, to_gpu=to_gpu, kernel=kernel)[0] for _ in range(_ROUNDS)]
            rates = [count * size / one / 1e9 for one in seconds]
            yield Figure.of(region.name, gpu.name, operation, "GB/s", rates, block=size)
            alone = [
                gpu.copies(blocks[:1], to_gpu=to_gpu, kernel=kernel)[1] * 1e9
                for _ in range(2 * _ROUNDS)
            ]
            yield Figure.of(
                region.name,
                gpu.name,
                operation,
                "ns",
                alone,
                block=size,
                note="one alone, from its launch until the host knows that it is done",
            )
            done(f"{gpu.name}, {region.name}: {operation}")
    except Exception as error:
        yield _failed(region.name, gpu, operation, error)


def _compare(gpu: Gpu, memory: Memory, to_gpu: bool, kernel: bool) -> None:
    """Sends bytes there and back, one way of them the one that is measured."""
    size = min(1 << 20, memory.size // 2 // 64 * 64)
    out, back = memory[:size], memory[size : 2 * size]
    out[:] = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    back[:] = 0
    gpu.copies([out], to_gpu=True, kernel=kernel and to_gpu)
    gpu.copies([back], to_gpu=False, kernel=kernel and not to_gpu)
    if not np.array_equal(out, back):
        raise RuntimeError("what came back from the GPU is not what was sent")


def _sizes(region: Region) -> list[int]:
    return [size for size in SIZES if size <= region.memory.size]


def _failed(place: str, gpu: Gpu, operation: str, error: Exception) -> Figure:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Figure(place, gpu.name, operation, "", None, note=text)


def _any_cpu() -> int:
    import os

    return min(os.sched_getaffinity(0))


class CudaGpu:
    """One GPU, by torch and CuPy."""

    def __init__(self, device: int) -> None:
        """Raises ImportError without CuPy, OSError or RuntimeError without a usable GPU."""
        import cupy
        import torch

        self._torch: Any = torch
        self._cupy: Any = cupy
        self._device: Any = torch.device("cuda", device)
        self.name = f"gpu {device}"
        self.what = _describe(torch.cuda.get_device_properties(device))
        self.runtime: Runtime = CudaRuntime(device)
        self._memory: Any = None
        self._kernels: dict[str, Any] = {}

    def prepare(self, nbytes: int) -> None:
        with self._torch.cuda.device(self._device), self._cupy.cuda.Device(self._device.index):
            self._memory = self._torch.empty(nbytes, dtype=self._torch.uint8, device=self._device)
            self._end = self._torch.zeros(1, dtype=self._torch.int64, device=self._device)
            for name in ("beluga_chase", "beluga_copy"):
                self._kernels[name] = self._cupy.RawKernel(_KERNELS, name)
                self._kernels[name].compile()

    def chase(self, memory: Memory, start: int, hops: int) -> tuple[float, int]:
        arguments = (
            np.uint64(memory.ctypes.data),
            np.uint64(memory.nbytes),
            np.uint64(start),
            np.int32(hops),
            np.uint64(self._end.data_ptr()),
        )
        launch = partial(self._kernels["beluga_chase"], (1,), (1,), arguments)
        seconds, _ = self._timed([launch])
        return seconds, int(self._end.item())

    def copies(
        self, memories: Sequence[Memory], *, to_gpu: bool, kernel: bool
    ) -> tuple[float, float]:
        one = self._by_kernel if kernel else self._by_engine
        return self._timed([one(memory, to_gpu) for memory in memories])

    def _by_kernel(self, memory: Memory, to_gpu: bool) -> Callable[[], Any]:
        host, mine = memory.ctypes.data, self._memory.data_ptr()
        to, source = (mine, host) if to_gpu else (host, mine)
        arguments = (np.uint64(to), np.uint64(source), np.uint64(memory.nbytes // 16))
        return partial(self._kernels["beluga_copy"], (_BLOCKS,), (_THREADS,), arguments)

    def _by_engine(self, memory: Memory, to_gpu: bool) -> Callable[[], Any]:
        host, mine = self._torch.from_numpy(memory), self._memory[: memory.nbytes]
        to, source = (mine, host) if to_gpu else (host, mine)
        return partial(to.copy_, source, non_blocking=True)

    def release(self) -> None:
        self._memory = None
        self._kernels.clear()

    def _timed(self, launches: Sequence[Callable[[], Any]]) -> tuple[float, float]:
        cuda = self._torch.cuda
        stream = cuda.current_stream(self._device)
        with (
            cuda.device(self._device),
            self._cupy.cuda.Device(self._device.index),
            self._cupy.cuda.ExternalStream(stream.cuda_stream),
        ):
            first, last = (cuda.Event(enable_timing=True) for _ in range(2))
            stream.synchronize()
            start = time.perf_counter()
            first.record(stream)
            for launch in launches:
                launch()
            last.record(stream)
            last.synchronize()
            host = time.perf_counter() - start
            return float(first.elapsed_time(last)) / 1e3, host


def _describe(properties: Any) -> str:
    bus = "".join(
        f"{getattr(properties, name, 0):0{width}x}{end}"
        for name, width, end in (
            ("pci_domain_id", 4, ":"),
            ("pci_bus_id", 2, ":"),
            ("pci_device_id", 2, ".0"),
        )
    )
    try:
        node = int(Path(f"/sys/bus/pci/devices/{bus}/numa_node").read_text())
    except (OSError, ValueError):
        node = -1
    return f"{properties.name}" + (f", on NUMA node {node}" if node >= 0 else "")


def find_gpus() -> tuple[list[Gpu], str]:
    """The GPUs of this machine, and why there are none or fewer (empty if all is well)."""
    if not any(Path(path).exists() for path in _DEVICES):
        return [], "no GPU was measured: this machine shows none that CUDA could use"
    try:
        import torch

        return [CudaGpu(device) for device in range(torch.cuda.device_count())], ""
    except Exception as error:
        return [], f"no GPU was measured: {type(error).__name__}: {error}"
