"""LMCache engines with ``beluga.verify``: KV whose bits have flipped in the pool is not loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import flip_bit, payload_of
from engine_harness import CHUNK, Engine, assert_same_bytes, prompt

from lmcache_beluga.keys import record

Start = Callable[..., Engine]

VERIFY = {"beluga.verify": "on"}
MODES = {
    "sync": {},
    "async": {"async_loading": True},
    "layerwise": {"layerwise": True},
    "hot cache": {"hot_cache": True},
    # Chunks are committed where they were written.
    "allocating": {"plugin": "LocalCPUBackend", "max_local_cpu_size": 0},
}


@pytest.mark.parametrize("mode", MODES)
def test_verified_chunks_are_loaded(start: Start, mode: str) -> None:
    storing, loading = (start(**MODES[mode], beluga=VERIFY) for _ in range(2))
    tokens = prompt(4 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    loading.expect_hit(tokens, kv, "request")
    stats = loading.stats
    assert (stats["checksum_failures"], stats["unverified"]) == (0, 0)
    assert stats["gets"] > 0
    loading.assert_clean()


@pytest.mark.parametrize("mode", ["sync", "allocating"])
def test_a_flipped_bit_ends_the_prefix(start: Start, pool: Path, mode: str) -> None:
    storing, loading = (start(**MODES[mode], beluga=VERIFY) for _ in range(2))
    tokens = prompt(4 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    keys = [key for _, _, key in loading.lmcache.token_database.process_tokens(tokens)]
    chunk = payload_of(pool, record(keys[2]))
    flip_bit(pool, chunk[len(chunk) // 2], 5)

    assert loading.lookup(tokens, "request") == len(tokens)  # a lookup reads no payload
    loaded, found = loading.retrieve(tokens, "request")
    assert loaded == 2 * CHUNK
    assert_same_bytes(found, [layer[:, :loaded] for layer in kv])
    assert loading.stats["checksum_failures"] == 1

    # Its owner takes it away, at a heartbeat if that is another host.
    deadline = time.monotonic() + 30
    while loading.backend._pool.contains(keys)[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The engine computes what was missing, and stores it anew.
    assert loading.lookup(tokens, "again") == 2 * CHUNK
    loading.retrieve(tokens[: 2 * CHUNK], "again")
    kv = storing.store(tokens, seed=1)
    loading.expect_hit(tokens, kv, "whole")
    storing.assert_clean()
    loading.assert_clean()
