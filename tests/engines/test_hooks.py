"""LMCache with its methods wrapped: stores without a copy, and loads that are judged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_harness import CHUNK, Engine, Group, assert_same_bytes, prompt

from lmcache_beluga import View
from lmcache_beluga.engines import lmcache_hooks, writer
from lmcache_beluga.engines.memory_obj import PoolMemoryObj

Start = Callable[..., Engine]


def said(caplog: pytest.LogCaptureFixture) -> str:
    logs = [log for log in caplog.records if log.name == "lmcache_beluga"]
    return "\n".join(log.getMessage() for log in logs if log.levelno >= logging.WARNING)


def copied(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The objects that are copied into the pool from now on."""
    objects: list[object] = []
    payload = writer.payload

    def counting(obj: Any) -> Any:
        objects.append(obj)
        return payload(obj)

    monkeypatch.setattr(writer, "payload", counting)
    return objects


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mla": True},
        {"groups": (Group(), Group(heads=1))},
        {"layerwise": True},
        {"async_loading": True},
        {"lmcache": {"save_unfull_chunk": True}},
    ],
    ids=["plain", "mla", "groups", "layerwise", "async", "unfull"],
)
def test_stores_copy_nothing(
    start: Start, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though LMCache has memory of its own, which is what it is configured with by default."""
    engine = start(**options)
    assert engine.backend.local_cpu_backend is not None
    copies = copied(monkeypatch)
    tokens = prompt(5 * CHUNK + 7, seed=1)
    kv = engine.store(tokens, seed=1)
    assert copies == []
    assert engine.stats["puts"] > 0
    if not engine.options.async_loading:
        engine.expect_hit(tokens, kv, "request")
    engine.assert_clean()


def test_a_hot_cache_keeps_memory_of_its_own(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold leases on the pool for ever."""
    engine = start(hot_cache=True)
    copies = copied(monkeypatch)
    engine.store(prompt(3 * CHUNK, seed=1), seed=1)
    assert len(copies) == 3
    assert engine.stats["views"] == 0
    engine.assert_clean()


def test_a_hot_cache_switched_on_later_gets_copies(start: Start) -> None:
    """LMCache's API does that."""
    engine = start()
    engine.backend.local_cpu_backend.use_hot = True
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    hot = engine.storage.storage_backends["LocalCPUBackend"].hot_cache
    assert len(hot) == 3
    assert not any(isinstance(obj, PoolMemoryObj) for obj in hot.values())
    assert engine.stats["views"] == 0
    engine.assert_clean()


def test_a_tier_below_gets_what_is_stored(start: Start, tmp_path: Path) -> None:
    disk = {"local_disk": f"file://{tmp_path}/disk/", "max_local_disk_size": 0.1}
    engine = start(lmcache=disk)
    tokens = prompt(3 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    below = engine.storage.storage_backends["LocalDiskBackend"]
    keys = [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]
    deadline = time.monotonic() + 30
    while not all(below.contains(key) for key in keys):
        assert time.monotonic() < deadline, "LMCache's disk backend stores in the background"
        time.sleep(0.01)
    engine.backend.batched_remove(keys)
    assert engine.lookup(tokens, "below") == len(tokens)
    loaded, found = engine.retrieve(tokens, "below")
    assert loaded == len(tokens)
    assert_same_bytes(found, kv)
    engine.assert_clean()


@pytest.mark.parametrize("layerwise", [False, True])
def test_memory_that_cuda_refuses_later_is_copied(
    start: Start, monkeypatch: pytest.MonkeyPatch, layerwise: bool
) -> None:
    """Registration is lazy, so it may fail when KV is gathered in the pool already."""
    engine = start(layerwise=layerwise)
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    reach = engine.backend._reach
    monkeypatch.setattr(reach, "_all", False)  # a GPU's, without a registration
    assert not reach.possible
    copies = copied(monkeypatch)
    more = prompt(3 * CHUNK, seed=2)
    kv = engine.store(more, seed=2)
    assert copies
    engine.expect_hit(more, kv, "request")
    engine.assert_clean()


def test_a_lost_chunk_is_not_loaded(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMCache is told so, and has vLLM compute it and all behind it again."""
    engine = start()
    tokens = prompt(4 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    engine.lookup(tokens, "request")
    calls: list[View] = []
    valid = View.valid

    def third_is_lost(self: View) -> bool:
        calls.append(self)
        return len(calls) != 3 and valid(self)

    monkeypatch.setattr(View, "valid", third_is_lost)
    loaded, found = engine.retrieve(tokens, "request")
    assert loaded == 2 * CHUNK
    assert_same_bytes(found, [layer[:, : 2 * CHUNK] for layer in kv])
    assert engine.backend.memory_allocator.lost_leases == 1
    assert "computed again" in said(caplog)
    monkeypatch.undo()
    engine.expect_hit(tokens, kv, "again")
    engine.assert_clean()


def test_a_version_that_was_not_tested(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One copy more, and the reason in the log."""
    monkeypatch.setattr(lmcache_hooks, "_installed", False)
    monkeypatch.setattr(lmcache_hooks, "TESTED", ("0.4.9",))
    engine = start()
    assert "LMCache 0.5.6 is not one of 0.4.9" in said(caplog)
    copies = copied(monkeypatch)
    tokens = prompt(3 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    assert len(copies) == 3
    engine.expect_hit(tokens, kv, "request")
    engine.assert_clean()


def test_a_method_that_has_changed(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = [
        (cls, name, (*parameters, "stream") if name == "retrieve" else parameters, wrapper)
        for cls, name, parameters, wrapper in lmcache_hooks._METHODS
    ]
    monkeypatch.setattr(lmcache_hooks, "_installed", False)
    monkeypatch.setattr(lmcache_hooks, "_METHODS", changed)
    engine = start()
    assert "LMCacheEngine.retrieve is not as it was" in said(caplog)
    assert not engine.backend.gathers_in_pool


def test_engines_on_other_backends_are_left_alone(start: Start) -> None:
    start()  # wraps
    other = start(lmcache={"storage_plugins": []}, hot_cache=True)
    assert "beluga" not in other.storage.storage_backends
    tokens = prompt(3 * CHUNK, seed=1)
    kv = other.store(tokens, seed=1)
    assert other.lookup(tokens, "request") == len(tokens)
    loaded, found = other.retrieve(tokens, "request")
    assert loaded == len(tokens)
    assert_same_bytes(found, kv)
