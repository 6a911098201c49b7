"""A stand-in for a GPU whose kernels are the real ones, compiled for the CPU."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lmcache_beluga.gpu.fused_copy
from lmcache_beluga.errors import InvalidArgumentError
from lmcache_beluga.gpu.chunk_table import UNROLL
from lmcache_beluga.gpu.cuda_runtime import CudaError
from lmcache_beluga.gpu.device import Memory

_HERE = Path(__file__).parent
_SOURCES = Path(lmcache_beluga.gpu.fused_copy.__file__).parent
STREAM = 77
THREADS = 64


@functools.cache
def kernels(width: int) -> ctypes.CDLL:
    """fused_copy.cu with accesses of so many bytes, compiled as C++."""
    # A misaligned access, which only a GPU minds, ends the process.
    flags = "-std=c++17 -O1 -shared -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas"
    strict = "-fsanitize=alignment -fsanitize-undefined-trap-on-error"
    defines = f"-DWIDTH={width} -DUNROLL={UNROLL}"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"kernels{width}.so"
        command = [os.environ.get("CXX", "g++"), *f"{flags} {strict} {defines}".split()]
        files = [f"-I{_SOURCES}", str(_HERE / "kernels_on_cpu.cpp"), "-o", str(library)]
        subprocess.run([*command, *files], check=True, timeout=120)
        return ctypes.CDLL(str(library))


class CpuEvent:
    """Passes when told to, or when waited for; then runs what was held back."""

    def __init__(self, device: CpuDevice) -> None:
        self._device = device
        self.passed = device.eager

    def done(self) -> bool:
        if self._device.failure:
            raise self._device.failure
        return self.passed

    def wait(self) -> None:
        self._device.calls.append("wait")
        if self._device.failure:
            raise self._device.failure
        self._device.run()
        self.passed = True


class CpuFault:
    def __init__(self) -> None:
        self.word = np.zeros(1, dtype=np.uint32)

    @property
    def address(self) -> int:
        return int(self.word.ctypes.data)

    def raised(self) -> bool:
        return bool(self.word[0])


class OnGpu:
    """Words that pretend to be a tensor on the GPU."""

    def __init__(self, values: Sequence[int]) -> None:
        self.array = np.array(values, dtype=np.int64)


class CpuDevice:
    """Remembers what it is asked; does it at once, or, unless ``eager``, when it is waited for."""

    name = "cpu"
    processors = 132

    def __init__(self, eager: bool = True, batches: bool = True) -> None:
        self.eager = eager
        self.batches = batches
        self.calls: list[str] = []
        self.launches: list[tuple[str, int, int]] = []
        self.streams: list[int] = []
        self.failure: CudaError | None = None
        self._held: list[Any] = []

    def stream(self, stream: object) -> int:
        if stream is None:
            return STREAM
        if not isinstance(stream, int):
            raise InvalidArgumentError(f"{stream!r} is no CUDA stream")
        return stream

    def words(self, values: Any, stream: int) -> Memory | None:
        if not isinstance(values, OnGpu):
            return None
        return Memory(values.array.ctypes.data, values.array.size, values.array)

    def upload(self, parts: Sequence[np.ndarray], stream: int) -> Memory:
        self._note("upload", stream)
        there = np.concatenate(parts)
        return Memory(there.ctypes.data, there.size, there)

    def fault(self) -> CpuFault:
        return CpuFault()

    def launch(
        self, kernel: str, width: int, blocks: int, arguments: Sequence[np.generic], stream: int
    ) -> None:
        self._note("launch", stream)
        self.launches.append((kernel, width, blocks))
        words = np.array([int(one) for one in arguments], dtype=np.uint64)
        function = getattr(kernels(width), f"run_{kernel}")
        pointer = ctypes.c_void_p(words.ctypes.data)
        self._do(lambda: function(min(blocks, 3), THREADS, pointer), words)

    def copy_each(self, to: Any, source: Any, nbytes: int, stream: int) -> None:
        self._note("each", stream)
        self._do(lambda: _move(to, source, nbytes), None)

    def copy_batch(self, to: Any, source: Any, nbytes: int, stream: int) -> None:
        self._note("batch", stream)
        self._do(lambda: _move(to, source, nbytes), None)

    def record(self, stream: int) -> CpuEvent:
        self._note("record", stream)
        return CpuEvent(self)

    def run(self) -> None:
        """Does what was held back."""
        held, self._held = self._held, []
        for work, _ in held:
            work()

    def _note(self, call: str, stream: int) -> None:
        self.calls.append(call)
        self.streams.append(stream)

    def _do(self, work: Any, keep: Any) -> None:
        self._held.append((work, keep))
        if self.eager:
            self.run()


def _move(to: Any, source: Any, nbytes: int) -> None:
    for target, origin in zip(to.tolist(), source.tolist(), strict=True):
        ctypes.memmove(target, origin, nbytes)


def bytes_like(nbytes: int, seed: int) -> torch.Tensor:
    """Random bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
