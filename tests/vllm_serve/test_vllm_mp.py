"""Real vLLM instances over ``beluga lmcache-server``: a server each, one pool."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from instances import CHUNK, Pair, Serving, check, prompt, stats
from processes import wait_until
from vllm_server import VLLM

from lmcache_beluga import Pool
from lmcache_beluga.demo import mp_server
from lmcache_beluga.demo.mp_server import MPServer

MIB = 1 << 20
LEASE_S = 3
POOL = 128 * MIB
OPTIONS = ("--chunk-size", str(CHUNK), "--supported-transfer-mode", "auto", "--max-workers", "4")


@dataclass
class Served:
    """Two instances, and the second one's server."""

    pool: Path
    first: VLLM
    second: VLLM
    server: MPServer
    stop: Path
    """While this file exists, that server will stand still in its next load."""

    def stored(self, chunks: int) -> None:
        """Wait: instances are answered before their chunks are in the pool."""
        wait_until(lambda: check(self.pool).chunks == chunks)

    def is_stopped(self) -> bool:
        fields = Path(f"/proc/{self.server.process.pid}/stat").read_text().rpartition(")")[2]
        return fields.split()[0] == "T"


@pytest.fixture(scope="module")
def served(serving: Serving) -> Iterator[Served]:
    pool = serving.pool.with_name("mp-pool")
    Pool.format(pool, size=POOL, extent_size=16 * MIB)
    stop = serving.folder / "stop"
    environment = {
        "BELUGA_LEASE": f"{LEASE_S}s",
        "BELUGA_TEST_STOP": str(stop),
        "PYTHONPATH": str(Path(__file__).with_name("stopping")),
    }
    servers: list[MPServer] = []
    started: list[VLLM] = []
    try:
        servers.append(MPServer(serving.folder / "server-1.log", pool, OPTIONS, environment))
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(mp_server, "_OURS", ("stopping_server", "lmcache-server"))
            servers.append(MPServer(serving.folder / "server-2.log", pool, OPTIONS, environment))
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
        yield Served(pool, started[0].wait(), started[1].wait(), servers[1], stop)
    finally:
        for instance in started:
            instance.stop()
        for server in servers:
            server.process.send_signal(signal.SIGCONT)
            server.stop()


def test_hit_through_another_server(pair: Pair, served: Served) -> None:
    tokens = prompt(60)
    wanted = pair.alone.complete(tokens)
    stored = served.first.complete(tokens)
    assert (stored.tokens, stored.cached) == (wanted.tokens, 0)
    served.stored(4)
    before = stats(served.pool)
    loaded = served.second.complete(tokens)
    assert (loaded.tokens, loaded.cached) == (wanted.tokens, 4 * CHUNK)
    assert stats(served.pool)["gets"] - before["gets"] == 4


def test_server_that_stood_still_while_it_loaded(pair: Pair, served: Served) -> None:
    """For longer than its leases; meanwhile every slot got other bytes. The load fails, and the
    prompt is computed."""
    tokens = prompt(61)
    wanted = pair.alone.complete(tokens)
    with Pool.attach(served.pool) as pool:
        pool.clear()
        assert served.first.complete(tokens).tokens == wanted.tokens
        served.stored(4)
        size = next(pool.keys()).size
        served.stop.touch()
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(served.second.complete, tokens)
            wait_until(served.is_stopped)
            time.sleep(2 * LEASE_S)
            pool.clear()
            for number in range(POOL // size):
                pool.put(b"%d" % number, b"\x3c" * size)
            served.server.process.send_signal(signal.SIGCONT)
            assert answer.result().tokens == wanted.tokens
    assert "lost" in served.server.said()
