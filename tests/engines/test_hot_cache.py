"""LMCache's hot cache keeps what it retrieves: it gets copies, and never the pool's own bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_harness import CHUNK, Engine, assert_same_bytes, prompt

from lmcache_beluga.engines.memory_obj import PoolMemoryObj

Start = Callable[..., Engine]


def kept(engine: Engine) -> list[object]:
    return list(engine.storage.storage_backends["LocalCPUBackend"].hot_cache.values())


def test_hot_cache_holds_copies(start: Start) -> None:
    storing, loading = start(hot_cache=True), start(hot_cache=True)
    tokens = prompt(4 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    loading.expect_hit(tokens, kv, "from the pool")
    assert len(kept(loading)) == 4
    assert not any(isinstance(obj, PoolMemoryObj) for obj in kept(loading))
    gets = loading.stats["gets"]
    assert loading.lookup(tokens, "hot") == len(tokens)
    loaded, found = loading.retrieve(tokens, "hot")
    assert (loaded, loading.stats["gets"]) == (len(tokens), gets)
    assert_same_bytes(found, kv)
    loading.assert_clean()


def test_switched_at_run_time(start: Start) -> None:
    storing, loading = start(), start()
    tokens = prompt(2 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    loading.expect_hit(tokens, kv, "off")
    assert kept(loading) == []
    loading.lmcache.set_hot_cache(True)
    loading.expect_hit(tokens, kv, "on")
    assert len(kept(loading)) == 2
    assert not any(isinstance(obj, PoolMemoryObj) for obj in kept(loading))
    loading.lmcache.set_hot_cache(False)
    loading.expect_hit(tokens, kv, "off again")
    loading.assert_clean()


@pytest.mark.parametrize("mode", [{"async_loading": True}, {"layerwise": True}])
def test_what_is_not_kept_is_not_copied(start: Start, mode: dict[str, bool]) -> None:
    storing, loading = start(**mode), start(**mode, hot_cache=True)
    tokens = prompt(3 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    loading.expect_hit(tokens, kv, "first")
    loading.expect_hit(tokens, kv, "second")
    assert kept(loading) == []
    loading.assert_clean()


def test_prompt_larger_than_lmcaches_memory(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """What there is no memory to copy to is a miss, and not an endless wait."""
    storing = start()
    tokens = prompt(20 * CHUNK, seed=1)
    storing.store(tokens, seed=1)
    # 20 chunks of 32 KiB each, and memory for 8.
    loading = start(hot_cache=True, max_local_cpu_size=0.25 / 1024)
    assert loading.lookup(tokens, "request") == len(tokens)
    loaded, _ = loading.retrieve(tokens, "request")
    assert loaded == 8 * CHUNK
    assert "max_local_cpu_size" in caplog.text
    loading.assert_clean()


def test_single_get_is_a_copy(start: Start) -> None:
    """StorageManager.get writes back whether the hot cache is on or not."""
    engine = start()
    tokens = prompt(CHUNK, seed=1)
    engine.store(tokens, seed=1)
    (key,) = [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]
    obj = engine.storage.get(key)
    assert obj is not None and not isinstance(obj, PoolMemoryObj)
    obj.ref_count_down()
    engine.assert_clean()
