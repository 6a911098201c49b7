"""Where LMCache allocates from the pool, a store is in place: KV is written to its slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_harness import CHUNK, Engine, assert_same_bytes, prompt
from lmcache.v1.storage_backend.abstract_backend import StoragePluginInterface

from lmcache_beluga.engines.memory_obj import PoolMemoryObj

Start = Callable[..., Engine]
ALLOCATING = {"plugin": "LocalCPUBackend", "max_local_cpu_size": 0}


class KeepingBackend(StoragePluginInterface):
    """Another backend, which reads the stored objects some time after the pool has them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kept: dict[Any, Any] | None = {}
        self.allocator: Any = None

    def batched_submit_put_task(self, keys: Any, objs: Any, *args: Any, **kwargs: Any) -> None:
        for key, obj in zip(keys, objs, strict=True):
            if self.kept is not None:
                obj.ref_count_up()
                self.kept[key] = obj

    def get_allocator_backend(self) -> Any:
        return self.allocator

    def contains(self, key: Any, pin: bool = False) -> bool:
        return False

    exists_in_put_tasks = pin = unpin = contains

    def remove(self, key: Any, force: bool = True) -> bool:
        return False

    def get_blocking(self, key: Any) -> None:
        return None

    def close(self) -> None:
        pass


def test_object_becomes_the_chunk(start: Start) -> None:
    engine = start(**ALLOCATING)
    (key,) = keys_of(engine, prompt(CHUNK, seed=1))
    obj = engine.storage.allocate(engine.metadata.get_shapes(), engine.metadata.get_dtypes())
    assert isinstance(obj, PoolMemoryObj)
    noise = torch.randn(obj.get_shape()).to(obj.get_dtype())
    obj.tensor.copy_(noise)
    address = obj.data_ptr
    engine.storage.batched_put([key], [obj])
    engine.assert_clean()
    (found,) = engine.backend.batched_get_blocking([key])
    assert found.data_ptr == address
    assert torch.equal(found.tensor, noise)
    found.ref_count_down()


def test_others_read_on_after_the_commit(start: Start) -> None:
    """The object holds a lease on the chunk, so neither removal nor eviction takes its bytes."""
    extra = {
        "storage_plugin.keeping.module_path": __name__,
        "storage_plugin.keeping.class_name": "KeepingBackend",
        "beluga.size": "8MiB",
        "beluga.extent_size": "2MiB",
    }
    plugins = {"storage_plugins": ["LocalCPUBackend", "keeping"]}
    engine = start(**ALLOCATING, lmcache=plugins, beluga=extra)
    keeping = engine.storage.storage_backends["keeping"]
    keeping.allocator = engine.backend
    engine.store(prompt(3 * CHUNK, seed=1), seed=1)
    assert len(keeping.kept) == engine.stats["views"] == 3
    before = [obj.tensor.clone() for obj in keeping.kept.values()]

    engine.backend.batched_remove(list(keeping.kept))
    kept, keeping.kept = keeping.kept, None
    for seed in range(2, 30):
        engine.store(prompt(20 * CHUNK, seed), seed)
    assert engine.stats["evictions"] > 0
    for obj, expected in zip(kept.values(), before, strict=True):
        assert torch.equal(obj.tensor, expected)
        obj.ref_count_down()
    engine.assert_clean()


def test_duplicate_leaves_the_object_readable(start: Start) -> None:
    engine = start(**ALLOCATING)
    (key,) = keys_of(engine, prompt(CHUNK, seed=1))
    shapes, dtypes = engine.metadata.get_shapes(), engine.metadata.get_dtypes()
    objs = [engine.storage.allocate(shapes, dtypes) for _ in range(2)]
    for obj in objs:
        obj.tensor.fill_(1)
        engine.backend.batched_submit_put_task([key], [obj])
    assert all(obj.tensor.eq(1).all() for obj in objs)
    assert engine.stats["chunks"] == 1
    for obj in objs:
        obj.ref_count_down()
    engine.assert_clean()


def test_key_that_another_process_stores_at_the_same_moment(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit takes the slot even if it comes too late: the object moves to the other's chunk."""
    engine = start(**ALLOCATING)
    (key,) = keys_of(engine, prompt(CHUNK, seed=1))
    shapes, dtypes = engine.metadata.get_shapes(), engine.metadata.get_dtypes()
    monkeypatch.setattr(engine.backend._pool, "is_duplicate", lambda key: False)
    objs = [engine.storage.allocate(shapes, dtypes) for _ in range(2)]
    for obj in objs:
        obj.tensor.fill_(1)
        engine.backend.batched_submit_put_task([key], [obj])
    assert engine.stats["duplicates"] == 1
    assert objs[0].data_ptr == objs[1].data_ptr
    assert objs[1].tensor.eq(1).all()
    assert engine.stats["writing"] == 0
    for obj in objs:
        obj.ref_count_down()
    engine.assert_clean()


def test_completion_is_told_of_what_was_stored(start: Start) -> None:
    engine = start(**ALLOCATING)
    keys = keys_of(engine, prompt(2 * CHUNK, seed=1))
    shapes, dtypes = engine.metadata.get_shapes(), engine.metadata.get_dtypes()
    told: list[object] = []

    def on_complete(key: object) -> None:
        told.append(key)
        raise RuntimeError("the callback fails")

    for count in (1, 2):
        objs = engine.backend.batched_allocate(shapes, dtypes, count)
        engine.backend.batched_submit_put_task(keys[:count], objs, None, on_complete)
        for obj in objs:
            obj.ref_count_down()
    assert told == keys
    engine.assert_clean()


def test_blocks_of_a_full_allocator(start: Start) -> None:
    """No slot left: LMCache is told so, and stores what it got slots for."""
    engine = start(**ALLOCATING, beluga={"beluga.size": "16MiB", "beluga.extent_size": "2MiB"})
    shapes, dtypes = engine.metadata.get_shapes(), engine.metadata.get_dtypes()
    objs = []
    while (obj := engine.storage.allocate(shapes, dtypes, busy_loop=False)) is not None:
        objs.append(obj)
    assert engine.storage.batched_allocate(shapes, dtypes, 2, busy_loop=False) is None
    objs.pop().ref_count_down()
    tokens = prompt(4 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    assert engine.lookup(tokens, "request") == CHUNK
    _, found = engine.retrieve(tokens[:CHUNK], "request")
    assert_same_bytes(found, [layer[:, :CHUNK] for layer in kv])
    for obj in objs:
        obj.ref_count_down()
    engine.assert_clean()


def test_chunk_budget(start: Start) -> None:
    engine = start(**ALLOCATING)
    budget = engine.backend.calculate_chunk_budget()
    assert 0 < budget <= (64 << 20) // (32 << 10)


def keys_of(engine: Engine, tokens: list[int]) -> list[Any]:
    return [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]
