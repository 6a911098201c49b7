"""LMCache's engine and its own connectors on a real GPU and the pool. Skipped without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import CHUNK, Engine, Group, Options, assert_same_bytes, prompt

from lmcache_beluga import View
from lmcache_beluga.engines.gpu_pipeline import GpuPipeline

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

Start = Callable[..., Engine]
LARGE = Group(layers=4, heads=16, head_dim=128)
"""2 MiB a chunk, so that it passes through the pipeline."""
SMALL = Group()

SHAPES: dict[str, dict[str, Any]] = {
    "large chunks": {"groups": (LARGE,)},
    "small chunks": {"groups": (SMALL,)},
    "MLA": {"groups": (Group(layers=16, heads=1, head_dim=576),), "mla": True},
    "several groups": {"groups": (LARGE, Group(layers=2, heads=8, head_dim=64))},
    "partial chunk": {"groups": (LARGE,), "lmcache": {"save_unfull_chunk": True}},
    "layerwise": {"groups": (LARGE,), "layerwise": True},
    "in place": {"groups": (LARGE,), "plugin": "LocalCPUBackend", "max_local_cpu_size": 0},
    "as LMCache is": {"groups": (LARGE,), "beluga": {"beluga.lmcache_hooks": False}},
    "hot cache": {"groups": (LARGE,), "hot_cache": True},
}


@pytest.fixture
def start(tmp_path: Path, pool_path: Path) -> Iterator[Start]:
    engines: list[Engine] = []

    def start(**options: Any) -> Engine:
        beluga = {"beluga.size": "512MiB", "beluga.extent_size": "32MiB"}
        options["beluga"] = {**beluga, **options.get("beluga", {})}
        options.setdefault("max_local_cpu_size", 0.5)
        yaml_file = tmp_path / f"lmcache-{len(engines)}.yaml"
        engines.append(Engine(yaml_file, pool_path, Options(device="cuda:0", **options)))
        return engines[-1]

    yield start
    for engine in reversed(engines):
        engine.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_another_engine_loads_what_one_has_stored(start: Start, shape: str) -> None:
    storing, loading = start(**SHAPES[shape]), start(**SHAPES[shape])
    for seed in range(1, 4):
        tokens = prompt(9 * CHUNK + 5, seed)
        kv = storing.store(tokens, seed)
        loading.expect_hit(tokens, kv, f"request {seed}")
    for engine in (storing, loading):
        assert engine.storage.memcheck()
        assert engine.backend.memory_allocator.lost_leases == 0


def test_large_chunks_pass_through_the_pipeline(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []

    def counting(name: str, move: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            moved.append(name)
            return move(*args, **kwargs)

        return counted

    for name in ("load", "store"):
        monkeypatch.setattr(GpuPipeline, name, counting(name, getattr(GpuPipeline, name)))
    engine = start(groups=(LARGE,))
    tokens = prompt(9 * CHUNK, seed=1)
    engine.expect_hit(tokens, engine.store(tokens, seed=1), "request")
    assert moved == ["store", "load"]


def test_a_chunk_lost_under_the_copy_is_not_loaded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(groups=(LARGE,))
    tokens = prompt(6 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    engine.lookup(tokens, "request")
    valid = View.valid
    asked: list[View] = []

    def fourth_is_lost(self: View) -> bool:
        asked.append(self)
        return len(asked) != 4 and valid(self)

    monkeypatch.setattr(View, "valid", fourth_is_lost)
    loaded, found = engine.retrieve(tokens, "request")
    assert loaded == 3 * CHUNK
    assert_same_bytes(found, [layer[:, : 3 * CHUNK] for layer in kv])
