"""The smallest operations on a pool, for pytest-benchmark. Not part of the test run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcache_beluga.pool import Pool, PutResult

_CHUNK = 1 << 20
_KEYS = [b"key-%d" % number for number in range(64)]


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of 256 MiB in which every key of ``_KEYS`` is present."""
    path = Path(f"/dev/shm/beluga-micro-{uuid.uuid4().hex}.pool")
    try:
        Pool.format(str(path), size=256 << 20, chunk_hint=_CHUNK)
        with Pool.attach(str(path)) as pool:
            for key in _KEYS:
                assert pool.put(key, np.zeros(_CHUNK, np.uint8)) == PutResult.STORED
            yield pool
    finally:
        path.unlink(missing_ok=True)


def test_contains_one(benchmark: Any, pool: Pool) -> None:
    assert benchmark(pool.contains_prefix, _KEYS[:1]) == 1


def test_contains_64(benchmark: Any, pool: Pool) -> None:
    assert benchmark(pool.contains_prefix, _KEYS) == len(_KEYS)


def test_pin_and_unpin(benchmark: Any, pool: Pool) -> None:
    def cycle() -> bool:
        return pool.pin(_KEYS[0]) and pool.unpin(_KEYS[0])

    assert benchmark(cycle)


def test_get_and_release(benchmark: Any, pool: Pool) -> None:
    def cycle() -> int:
        with pool.get(_KEYS[0]) as view:
            return view.size

    assert benchmark(cycle) == _CHUNK


def test_read_into(benchmark: Any, pool: Pool) -> None:
    target = np.empty(_CHUNK, np.uint8)
    assert benchmark(pool.read_into, _KEYS[0], target) == _CHUNK


def test_put_and_remove(benchmark: Any, pool: Pool) -> None:
    data = np.ones(_CHUNK, np.uint8)

    def cycle() -> int:
        pool.put(b"new", data)
        return pool.remove([b"new"])

    assert benchmark(cycle) == 1
