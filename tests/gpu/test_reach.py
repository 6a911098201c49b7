"""What the LMCache backend does with a GPU that can reach the pool, and with one that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording_runtime import RecordingRuntime

from lmcache_beluga.engines import engine_reach
from lmcache_beluga.engines.engine_reach import EngineReach
from lmcache_beluga.pool import Pool

GPU = torch.device("cuda:0")
CHUNK = np.zeros(64 << 10, dtype=np.uint8)


def pool_of(path: Path, **options: Any) -> Pool:
    Pool.format(path, size=16 << 20, extent_size=1 << 20, chunk_hint=CHUNK.nbytes, **options)
    pool = Pool.attach(path)
    pool.put(b"chunk", CHUNK)
    return pool


def covers(pool: Pool, way: EngineReach) -> bool:
    with pool.get(b"chunk") as view:
        return way.covers(view)


def test_a_cpu_reaches_everything(pool_path: Path) -> None:
    with pool_of(pool_path) as pool:
        way = EngineReach(pool, torch.device("cpu"), drops_early=False)
        assert way.possible and covers(pool, way)
        way.settle()
        way.close()


def test_a_gpu_reaches_what_is_registered(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RecordingRuntime()
    monkeypatch.setattr(engine_reach, "CudaRuntime", lambda device: runtime)
    with pool_of(pool_path) as pool:
        way = EngineReach(pool, GPU, drops_early=False)
        assert way.possible and covers(pool, way)
        assert runtime.registered
        way.close()
        assert not runtime.registered


def test_a_refusal_ends_it(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_reach, "CudaRuntime", lambda device: RecordingRuntime(refuse=0))
    with pool_of(pool_path) as pool:
        way = EngineReach(pool, GPU, drops_early=False)
        assert not covers(pool, way)
        assert not way.possible
        assert "memlock" in caplog.text
        way.close()


def test_without_a_runtime_chunks_are_copied(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(device: int) -> RecordingRuntime:
        raise OSError("no CUDA runtime (libcudart) is loaded in this process")

    monkeypatch.setattr(engine_reach, "CudaRuntime", missing)
    with pool_of(pool_path) as pool:
        way = EngineReach(pool, GPU, drops_early=False)
        assert not way.possible and not covers(pool, way)
        assert "no CUDA runtime" in caplog.text
        way.close()


def test_files_of_several_hosts_are_not_registered(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another host gives the pages of its empty extents back, and knows of no GPU."""
    runtime = RecordingRuntime()
    monkeypatch.setattr(engine_reach, "CudaRuntime", lambda device: runtime)
    with pool_of(pool_path, max_hosts=2, visibility="noncoherent") as pool:
        way = EngineReach(pool, GPU, drops_early=False)
        assert not way.possible and not covers(pool, way)
        assert runtime.calls == []
        assert "another host" in caplog.text
        way.close()
