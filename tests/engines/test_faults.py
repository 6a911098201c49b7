"""What a user gets wrong, and what goes wrong by itself: said once, with the fix, and survived."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import CHUNK, Engine, Group, assert_same_bytes, prompt

from lmcache_beluga import BelugaBackend, Pool, PoolClosedError, UnsupportedError, View
from lmcache_beluga.keys import record

Start = Callable[..., Engine]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        log.getMessage()
        for log in caplog.records
        if log.name == "lmcache_beluga" and log.levelno >= logging.WARNING
    ]


def keys_of(engine: Engine, tokens: list[int]) -> list[object]:
    return [key for _, _, key in engine.lmcache.token_database.process_tokens(tokens)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beluga.pool": None}, "beluga.pool is not set"),
        ({"beluga.pol": "/dev/shm/x"}, "did you mean beluga.pool"),
        ({"beluga.size": "lots"}, "give a size such as 64GiB"),
        ({"beluga.size": None}, "beluga.size"),
        ({"beluga.host_id": 5}, "beluga.max_hosts"),
    ],
)
def test_misconfigured(
    start: Start, caplog: pytest.LogCaptureFixture, settings: dict[str, object], message: str
) -> None:
    """LMCache logs it and goes on without the backend; so do we, with the fix."""
    engine = start(beluga=settings)
    assert "beluga" not in engine.storage.storage_backends
    (said,) = errors(caplog)
    assert message in said
    tokens = prompt(2 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    assert engine.lookup(tokens, "request") == 0


def test_file_that_is_no_pool(start: Start, pool: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool.write_bytes(b"somebody's data" * 100_000)
    engine = start()
    assert "beluga" not in engine.storage.storage_backends
    (said,) = errors(caplog)
    assert str(pool) in said
    assert pool.read_bytes() == b"somebody's data" * 100_000


def test_pool_of_another_key_scheme(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start()
    engine = start(lmcache={"chunk_size": 2 * CHUNK})
    assert "beluga" not in engine.storage.storage_backends
    (said,) = errors(caplog)
    assert "KeySchemeError" in said and f"set chunk_size: {CHUNK}" in said


def test_pool_full_of_leased_chunks(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """The put is refused and counted, the engine goes on, and stores again when there is room."""
    engine = start(beluga={"beluga.size": "8MiB", "beluga.extent_size": "1MiB"})
    prompts = [prompt(20 * CHUNK, seed) for seed in range(16)]
    for seed, tokens in enumerate(prompts):
        engine.store(tokens, seed)
        engine.lookup(tokens, f"request {seed}")
    assert engine.stats["refused_leased"] > 0
    full = [said for said in errors(caplog) if "refused" in said]
    assert len(full) == 1 and "beluga.size" in full[0]

    for seed in range(16):
        engine.lmcache.lookup_unpin(f"request {seed}")
    late = prompt(4 * CHUNK, seed=99)
    kv = engine.store(late, seed=99)
    engine.expect_hit(late, kv, "late")
    engine.assert_clean()


def test_chunk_larger_than_an_extent(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    large = (Group(layers=8, heads=8, head_dim=128),)
    engine = start(groups=large, beluga={"beluga.size": "16MiB", "beluga.extent_size": "1MiB"})
    tokens = prompt(2 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    engine.store(tokens, seed=1)
    assert engine.lookup(tokens, "request") == 0
    (said,) = errors(caplog)
    assert "extent_size" in said
    engine.assert_clean()


def test_pool_truncated_under_the_engine(
    start: Start, pool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    objs = engine.backend.batched_get_blocking(keys_of(engine, tokens))
    os.truncate(pool, 1 << 20)
    deadline = time.monotonic() + 30
    while True:
        try:
            engine.stats  # noqa: B018
        except PoolClosedError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)

    for number in range(3):
        assert engine.lookup(tokens, f"request {number}") == 0
        assert engine.retrieve(tokens, f"request {number}")[0] == 0
        engine.store(tokens, seed=1)
    assert engine.backend.clear() == 0
    # The objects that were being read meanwhile may have been wrong, and that is said.
    for obj in objs:
        obj.ref_count_down()
    assert engine.backend.memory_allocator.lost_leases == 3
    said = errors(caplog)
    assert len([line for line in said if "PoolClosedError" in line]) == 1
    assert len([line for line in said if "may have seen wrong KV" in line]) == 1
    assert not engine.storage.memcheck()


def test_chunks_that_are_not_kv(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Anybody who may write the pool may have put anything under a key."""
    engine = start()
    tokens = prompt(4 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    keys = keys_of(engine, tokens)
    pool: Pool = engine.backend._pool
    assert pool.remove([keys[2], keys[3]]) == 2
    pool.put(record(keys[2]), b"x" * 4096, meta=b"no layout")
    pool.put(record(keys[3]), b"x" * 4096, meta=b"")
    assert engine.lookup(tokens, "request") == len(tokens)
    loaded, found = engine.retrieve(tokens, "request")
    assert loaded == 2 * CHUNK
    assert_same_bytes(found, [layer[:, :loaded] for layer in kv])
    assert "are not LMCache's KV" in errors(caplog)[0]
    engine.assert_clean()


def test_lost_lease_is_said(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMCache as it is takes no verdict after a transfer: all that can be done is to say it."""
    engine = start(beluga={"beluga.lmcache_hooks": False})
    tokens = prompt(3 * CHUNK, seed=1)
    engine.store(tokens, seed=1)
    engine.lookup(tokens, "request")
    monkeypatch.setattr(View, "valid", lambda self: False)
    assert engine.retrieve(tokens, "request")[0] == len(tokens)
    assert engine.backend.memory_allocator.lost_leases == 3
    (said,) = errors(caplog)
    assert "may have seen wrong KV" in said
    engine.assert_clean()


def test_lease_lost_while_copying_is_a_miss(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    storing, engine = start(), start(hot_cache=True)
    tokens = prompt(3 * CHUNK, seed=1)
    kv = storing.store(tokens, seed=1)
    engine.lookup(tokens, "request")
    with monkeypatch.context() as patch:
        patch.setattr(View, "valid", lambda self: False)
        assert engine.retrieve(tokens, "request")[0] == 0
    local_cpu = engine.storage.storage_backends["LocalCPUBackend"]
    assert local_cpu.memory_allocator.pin_allocator.num_active_allocations == 0
    engine.expect_hit(tokens, kv, "again")
    engine.assert_clean()


def test_forked_child_finds_nothing(start: Start) -> None:
    """Its handle on the pool is dead; the parent's is not."""
    engine = start()
    tokens = prompt(3 * CHUNK, seed=1)
    kv = engine.store(tokens, seed=1)
    keys = keys_of(engine, tokens)
    pid = os.fork()
    if pid == 0:
        found = 1
        try:
            found = engine.backend.batched_contains(keys, pin=True)
            found += sum(obj is not None for obj in engine.backend.batched_get_blocking(keys))
        finally:
            os._exit(found)
    assert os.waitpid(pid, 0) == (pid, 0)
    engine.expect_hit(tokens, kv, "parent")
    engine.assert_clean()


def test_gpu_without_memory_of_lmcaches_own(start: Start) -> None:
    engine = start()
    with pytest.raises(UnsupportedError, match="max_local_cpu_size"):
        BelugaBackend(
            config=engine.lmcache.config,
            metadata=engine.metadata,
            local_cpu_backend=None,
            dst_device="cuda:0",
        )
