"""The copy engines' calls against a stand-in for the CUDA runtime, and which method is chosen."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from lmcache_beluga.gpu.copy_engines import CopyEngines
from lmcache_beluga.gpu.copy_method import (
    Crossover,
    Direction,
    Method,
    crossover_of,
    fastest,
    method_for,
)
from lmcache_beluga.gpu.cuda_runtime import CudaError

EACH, BATCH, FUSED = Method.EACH, Method.BATCH, Method.FUSED


class Calls:
    """Plays libcudart: reads its arguments as that would, and copies."""

    def __init__(self, version: int, fail: bool = False) -> None:
        self.version = version
        self.fail = fail
        self.names: list[str] = []
        self.streams: list[int | None] = []

    def call(self, name: str, *arguments: object) -> None:
        self.names.append(name)
        if self.fail:
            raise CudaError(name, 1, "invalid argument")
        getattr(self, name)(*arguments)

    def cudaMemcpyAsync(self, to, source, nbytes, kind, stream) -> None:
        assert kind.value == 4
        self.streams.append(stream.value)
        ctypes.memmove(to.value, source.value, nbytes.value)

    def cudaMemcpyBatchAsync(self, to, source, sizes, count, attributes, first, one, *rest) -> None:
        assert len(rest) == (2 if self.version < 13000 else 1), "failIdx went with CUDA 13"
        self.streams.append(rest[-1].value)
        order, *locations_and_flags = (ctypes.c_int * 6).from_address(
            ctypes.addressof(attributes._obj)
        )
        assert ctypes.sizeof(attributes._obj) == 24
        assert (order, locations_and_flags) == (1, [0] * 5)
        assert (first._obj.value, one.value) == (0, 1)
        words = [(ctypes.c_uint64 * count.value).from_address(p.value) for p in (to, source, sizes)]
        for target, origin, nbytes in zip(*words, strict=True):
            ctypes.memmove(target, origin, nbytes)


@pytest.mark.parametrize("version", [12040, 12080, 13000])
def test_both_ways_copy(version: int) -> None:
    calls = Calls(version)
    engines = CopyEngines(calls)
    assert engines.batches == (version >= 12080)
    source = np.random.default_rng(1).integers(0, 256, 4096, dtype=np.uint8)
    order = np.random.default_rng(2).permutation(16).astype(np.uint64) * np.uint64(256)
    for way in ("each", "batch") if engines.batches else ("each",):
        target = np.zeros_like(source)
        to = np.uint64(target.ctypes.data) + np.arange(16, dtype=np.uint64) * np.uint64(256)
        begins = np.uint64(source.ctypes.data) + order
        getattr(engines, f"copy_{way}")(to, begins, 256, 9)
        expected = source.reshape(16, 256)[(order // 256).tolist()]
        assert np.array_equal(target.reshape(16, 256), expected)
    assert calls.names == ["cudaMemcpyAsync"] * 16 + ["cudaMemcpyBatchAsync"] * engines.batches
    assert set(calls.streams) == {9}


def test_a_failed_call_is_told() -> None:
    engines = CopyEngines(Calls(13000, fail=True))
    one = np.array([64], dtype=np.uint64)
    for way in (engines.copy_each, engines.copy_batch):
        with pytest.raises(CudaError, match="invalid argument"):
            way(one, one, 16, 1)


def test_the_method_by_size_and_count() -> None:
    limits = dict.fromkeys(Direction, Crossover(batch_from=1 << 20, each_from=16 << 20))

    def chosen(nbytes: int, count: int = 100, batches: bool = True) -> Method:
        return method_for(Direction.TO_GPU, nbytes, count, batches, limits)

    assert chosen(160) is chosen((1 << 20) - 1) is FUSED
    assert chosen(1 << 20) is chosen((16 << 20) - 1) is BATCH
    assert chosen(16 << 20) is EACH
    assert chosen(1 << 20, batches=False) is FUSED
    assert chosen(160, count=1) is EACH, "one call for one fragment"


def test_the_simplest_of_equals_is_the_fastest() -> None:
    assert fastest({FUSED: 50.0, BATCH: 40.0, EACH: 6.0}) is FUSED
    assert fastest({FUSED: 50.0, BATCH: 49.5, EACH: 6.0}) is BATCH
    assert fastest({FUSED: 51.0, BATCH: 50.9, EACH: 50.5}) is EACH
    assert fastest({FUSED: 51.0, EACH: 6.0}) is FUSED


def test_the_crossover_of_measurements() -> None:
    measured = [
        (160, {FUSED: 30.0, BATCH: 1.0, EACH: 0.1}),
        (4096, {FUSED: 50.0, BATCH: 51.5, EACH: 1.5}),  # one odd one out
        (65536, {FUSED: 51.0, BATCH: 45.0, EACH: 20.0}),
        (1 << 20, {FUSED: 51.0, BATCH: 54.0, EACH: 48.0}),
        (16 << 20, {FUSED: 51.0, BATCH: 55.0, EACH: 55.0}),
    ]
    assert crossover_of(measured) == Crossover(batch_from=1 << 20, each_from=16 << 20)
    assert crossover_of(measured[:3]) == Crossover(batch_from=131072, each_from=131072)
    only = [(160, {FUSED: 30.0}), (16 << 20, {FUSED: 51.0})]
    assert crossover_of(only) == Crossover(batch_from=32 << 20, each_from=32 << 20)
