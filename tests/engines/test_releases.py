"""Every lease ends, and only once, whatever LMCache does with the objects it retrieved."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from engine_harness import CHUNK, Engine, prompt

Start = Callable[..., Engine]


def keys_of(engine: Engine, tokens: list[int]) -> list[object]:
    return [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]


def test_views_live_as_long_as_their_objects(start: Start) -> None:
    engine = start()
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    objs = engine.backend.batched_get_blocking(keys_of(engine, tokens))
    assert engine.stats["views"] == 3
    objs[0].ref_count_up()
    for obj in objs:
        obj.ref_count_down()
    assert engine.stats["views"] == 1
    assert objs[0].tensor is not None and objs[1].tensor is None
    objs[0].ref_count_down()
    engine.assert_clean()


def test_objects_that_lmcache_forgets(start: Start) -> None:
    engine = start()
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    objs = engine.backend.batched_get_blocking(keys_of(engine, tokens))
    assert engine.stats["views"] == 3
    del objs
    engine.assert_clean()


def test_tensor_outlives_its_object_and_the_engine(start: Start) -> None:
    engine = start()
    tokens = prompt(CHUNK, seed=1)
    engine.store(tokens, seed=1)
    (obj,) = engine.backend.batched_get_blocking(keys_of(engine, tokens))
    tensor = obj.tensor
    expected = tensor.clone()
    obj.ref_count_down()
    engine.assert_clean()
    engine.close()
    assert tensor.equal(expected)


def test_asynchronous_loading_releases_twice(start: Start) -> None:
    """LMCache 0.5.6 drops the reference in retrieve and in cleanup_memory_objs. Its own objects
    are then freed under its hot cache, and the second hit on the prompt kills the engine."""
    storing, loading = start(async_loading=True), start(async_loading=True)
    tokens = prompt(4 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    other = loading.backend.batched_get_blocking(keys_of(loading, tokens))
    for number in range(4):
        loading.expect_hit(tokens, kv, f"request {number}")
    # The second release took nothing from others who read the same chunks.
    assert loading.stats["views"] == 4
    assert all(obj.tensor is not None for obj in other)
    for obj in other:
        obj.ref_count_down()
    loading.assert_clean()


def test_prefetch_that_is_never_loaded(start: Start) -> None:
    engine = start(async_loading=True)
    tokens = prompt(4 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    assert engine.lookup(tokens, "aborted") == len(tokens)
    # Held by the prefetched objects now, not by pins that LMCache would never release.
    stats = engine.stats
    assert (stats["views"], stats["pins"]) == (4, 0)
    assert engine.prefetch_done("aborted")
    engine.lmcache.lookup_unpin("aborted")
    engine.assert_clean()


def test_prefetch_of_more_than_is_loaded(start: Start) -> None:
    engine = start(async_loading=True)
    tokens = prompt(4 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    assert engine.lookup(tokens, "request") == len(tokens)
    loaded, _ = engine.retrieve(tokens[: 2 * CHUNK], "request")
    assert loaded == 2 * CHUNK
    engine.assert_clean()


def test_cancelled_between_lookup_and_prefetch(start: Start) -> None:
    import asyncio

    engine = start(async_loading=True)
    tokens = prompt(2 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    found = engine.backend.batched_async_contains("request", keys_of(engine, tokens), pin=True)
    assert asyncio.run(found) == 2
    assert engine.stats["pins"] == 2
    engine.storage.cancel_request("request")
    engine.assert_clean()


def test_pins_lapse(start: Start) -> None:
    """Of requests that LMCache forgets."""
    engine = start(beluga={"beluga.pin_timeout": "300ms"})
    tokens = prompt(2 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    assert engine.lookup(tokens, "forgotten") == len(tokens)
    assert engine.stats["pins"] == 2
    deadline = time.monotonic() + 30
    while engine.stats["pins"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    engine.lmcache.lookup_unpin("forgotten")
    engine.assert_clean()


def test_pins_are_counted(start: Start) -> None:
    engine = start()
    tokens = prompt(2 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    keys = keys_of(engine, tokens)
    backend = engine.backend
    engine.lookup(tokens, "one")
    engine.lookup(tokens, "two")
    assert backend.pin(keys[0])
    engine.lmcache.lookup_unpin("one")
    engine.lmcache.lookup_unpin("two")
    assert engine.stats["pins"] == 1
    assert backend.unpin(keys[0])
    assert not backend.unpin(keys[0])
    engine.lmcache.lookup_unpin("one")
    engine.assert_clean()


def test_allocated_and_not_stored(start: Start) -> None:
    engine = start(plugin="LocalCPUBackend", max_local_cpu_size=0)
    shapes, dtypes = engine.metadata.get_shapes(CHUNK), engine.metadata.get_dtypes()
    one = engine.storage.allocate(shapes, dtypes)
    many = engine.storage.batched_allocate(shapes, dtypes, batch_size=3)
    assert engine.stats["writing"] == 4
    one.ref_count_down()
    engine.backend.get_memory_allocator().batched_free(many[:2])
    del many
    engine.assert_clean()


@pytest.mark.parametrize("mode", [{}, {"async_loading": True}, {"layerwise": True}])
def test_nothing_is_held_after_close(start: Start, mode: dict[str, bool]) -> None:
    closing, watching = start(**mode), start()
    tokens = prompt(3 * CHUNK, seed=1)
    closing.store(tokens, seed=1)
    closing.lookup(tokens, "never loaded")
    closing.close()
    # LMCache still refers to what it prefetched, but the pool does not: others may have the space.
    assert watching.stats["leased"] == 0
