"""A real Redis below the pool: what left the pool is served from there, and back in the pool."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from engine_harness import CHUNK, Engine, prompt
from lmcache.v1.storage_backend.connector.redis_connector import RedisConnector
from mp_servers import MIB, NBYTES, Prompt, Servers, compute, engine, load, look, remove, shm_folder
from processes import wait_until

from lmcache_beluga import Pool
from lmcache_beluga.cli.bench_redis import RedisServer, redis_missing

CHUNKS = 4
EXAMPLE = Path(__file__).parents[2] / "integration" / "vllm" / "remote-below.yaml"


@pytest.fixture
def host_of() -> Callable[[dict[str, str]], dict[str, str]]:
    """All engines are one host: the order of LMCache's tiers does not depend on it."""
    return lambda own: own


async def _nothing(connector: RedisConnector) -> None:
    pass


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    if missing := redis_missing():
        pytest.skip(missing)
    # LMCache 0.5.6 waits in its event loop for a task of that same loop when it closes a Redis.
    monkeypatch.setattr(RedisConnector, "close", _nothing)
    with RedisServer(tmp_path) as server:
        server.wait()
        yield server


def keys(redis: RedisServer) -> int:
    return int(redis._say(b"DBSIZE").lstrip(b":"))


def below(redis: RedisServer) -> dict[str, object]:
    """What the example tells LMCache, with this Redis."""
    written = yaml.safe_load(EXAMPLE.read_text())
    assert written["remote_url"].startswith("redis://")
    return {
        "remote_url": f"redis://127.0.0.1:{redis.port}",
        "remote_serde": written["remote_serde"],
    }


def first_tier(start: Callable[..., Engine], redis: RedisServer, **beluga: str) -> Engine:
    extra = yaml.safe_load(EXAMPLE.read_text())["extra_config"]
    name = "storage_plugin.LocalCPUBackend.class_name"
    return start(
        plugin="LocalCPUBackend", lmcache=below(redis), beluga={name: extra[name], **beluga}
    )


def test_what_left_the_pool_comes_back_from_redis(
    redis: RedisServer, start: Callable[..., Engine]
) -> None:
    one = first_tier(start, redis)
    tokens = prompt(CHUNKS * CHUNK, seed=1)
    kv = one.store(tokens, seed=1)
    wait_until(lambda: keys(redis) == 2 * CHUNKS)  # LMCache stores metadata and bytes apart
    one.expect_hit(tokens, kv, "from the pool")
    assert one.backend.clear() == CHUNKS * CHUNK
    wait_until(lambda: one.chunks == 0)
    gets = one.stats["gets"]
    loaded, found = (one.lookup(tokens, "below"), one.retrieve(tokens, "below")[1])
    assert loaded == CHUNKS * CHUNK
    assert all(a.equal(b) for a, b in zip(found, kv, strict=True))
    assert one.stats["gets"] == gets, "it was in the pool"
    assert one.chunks == CHUNKS
    redis.flush()
    one.expect_hit(tokens, kv, "from the pool again")
    one.assert_clean()


def test_what_was_evicted_is_served_and_stored_again(
    redis: RedisServer, start: Callable[..., Engine]
) -> None:
    small = {"beluga.size": "4MiB", "beluga.extent_size": "1MiB"}
    one = first_tier(start, redis, **small)
    tokens = prompt(CHUNKS * CHUNK, seed=1)
    kv = one.store(tokens, seed=1)
    for seed in range(2, 200):
        one.store(prompt(CHUNKS * CHUNK, seed=seed), seed=seed)
        if not one.backend._pool.stats()["evictions"]:
            continue
        keys_of = [key for _, _, key in one.lmcache.token_database.process_tokens(tokens)]
        if not one.backend.batched_contains(keys_of):
            break
    assert one.backend.batched_contains(keys_of) == 0
    wait_until(lambda: keys(redis) == 2 * CHUNKS * seed)
    assert one.lookup(tokens, "below") == CHUNKS * CHUNK
    _, found = one.retrieve(tokens, "below")
    assert all(a.equal(b) for a, b in zip(found, kv, strict=True))
    redis.flush()
    # The pool is full: to take the beginning back, it may have evicted the end once more.
    back = one.backend.batched_contains(keys_of)
    assert back > 0
    one.expect_hit(tokens[: back * CHUNK], [layer[:, : back * CHUNK] for layer in kv], "again")
    one.assert_clean()


def test_other_plugins_are_asked_after_redis(
    redis: RedisServer, start: Callable[..., Engine]
) -> None:
    """Why the first tier exists: LMCache 0.5.6 reads from its remote backend what is in the pool,
    and puts nothing back. If this fails, LMCache has changed, and integration/vllm can be simpler.
    """
    one = start(lmcache=below(redis))
    assert list(one.storage.storage_backends)[-2:] == ["RemoteBackend", "beluga"]
    tokens = prompt(CHUNKS * CHUNK, seed=1)
    one.store(tokens, seed=1)
    wait_until(lambda: keys(redis) == 2 * CHUNKS)
    gets = one.stats["gets"]
    assert one.lookup(tokens, "redis") == CHUNKS * CHUNK
    one.retrieve(tokens, "redis")
    assert one.stats["gets"] == gets
    one.backend.clear()
    wait_until(lambda: one.chunks == 0)
    one.lookup(tokens, "once more")
    one.retrieve(tokens, "once more")
    assert one.chunks == 0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    folder = shm_folder()
    servers = Servers(tmp_path, folder / "pool")
    yield servers
    servers.close()
    remove(folder)


def test_the_server_brings_back_what_left_the_pool(servers: Servers, redis: RedisServer) -> None:
    """With --l2-prefetch-policy retain; without, what is loaded stays out of the pool."""
    Pool.format(servers.pool, size=8 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    adapter = {"type": "resp", "host": "127.0.0.1", "port": redis.port, "num_workers": 2}
    options = ("--l2-adapter", json.dumps(adapter), "--l2-prefetch-policy", "retain")
    server = servers.start(*options).wait()
    prompt = Prompt()
    with engine(server) as one, Pool.attach(servers.pool) as pool:
        compute(one, prompt)
        wait_until(lambda: keys(redis) >= prompt.chunks)
        wait_until(lambda: server.l1()["read_locked_count"] == 0)
        pool.clear()
        assert load(one, prompt) == prompt.chunks  # compares the bytes
        wait_until(lambda: pool.stats()["chunks"] == prompt.chunks)
        redis.flush()
        assert look(one, prompt) == prompt.chunks
        assert load(one, prompt) == prompt.chunks
