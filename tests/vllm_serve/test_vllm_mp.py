"""Real vLLM instances over ``beluga lmcache-server``: a server each, one pool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from instances import CHUNK, Pair, Serving, check, prompt, stats
from processes import wait_until
from vllm_server import VLLM

from lmcache_beluga import Pool
from lmcache_beluga.demo.mp_server import MPServer

MIB = 1 << 20
OPTIONS = ("--chunk-size", str(CHUNK), "--supported-transfer-mode", "auto", "--max-workers", "4")


@pytest.fixture
def instances(serving: Serving) -> Iterator[tuple[VLLM, VLLM]]:
    pool = serving.pool.with_name("mp-pool")
    Pool.format(pool, size=128 * MIB, extent_size=16 * MIB)
    servers: list[MPServer] = []
    started: list[VLLM] = []
    try:
        for name in ("server-1", "server-2"):
            servers.append(MPServer(serving.folder / f"{name}.log", pool, OPTIONS))
        for number, server in enumerate(servers, 1):
            port = server.wait().port
            connector = {
                "kv_connector": "LMCacheMPConnector",
                "kv_connector_module_path": "lmcache_mp_on_cpu",
                "kv_connector_extra_config": {
                    "lmcache.mp.host": "tcp://127.0.0.1",
                    "lmcache.mp.port": port,
                },
            }
            started.append(serving.start(f"mp-{number}", connector=connector))
        yield started[0].wait(), started[1].wait()
    finally:
        for instance in started:
            instance.stop()
        for server in servers:
            server.stop()


def test_hit_through_another_server(
    pair: Pair, instances: tuple[VLLM, VLLM], serving: Serving
) -> None:
    pool = serving.pool.with_name("mp-pool")
    first, second = instances
    tokens = prompt(60)
    wanted = pair.alone.complete(tokens)
    stored = first.complete(tokens)
    assert (stored.tokens, stored.cached) == (wanted.tokens, 0)
    wait_until(lambda: check(pool).chunks >= 4)
    before = stats(pool)
    loaded = second.complete(tokens)
    assert (loaded.tokens, loaded.cached) == (wanted.tokens, 4 * CHUNK)
    assert stats(pool)["gets"] - before["gets"] == 4
