"""LMCache's own server with the pool as its L2: several servers, wrong parameters, kills."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from l2_harness import spec
from mp_servers import clear_l1
from processes import wait_until
from server_harness import CHUNK_BYTES, CHUNKS, Client, Server

from lmcache_beluga import Pool

Run = Callable[..., Server]
FAST = {"heartbeat": "20ms"}


@pytest.fixture
def run(tmp_path: Path, pool: Path) -> Iterator[Run]:
    """Starts servers on the test's pool; keywords are adapter_params. What is left is ended."""
    servers: list[Server] = []

    def run(**params: Any) -> Server:
        log = tmp_path / f"server-{len(servers)}.log"
        servers.append(Server(log, spec(pool, **{**FAST, **params})))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def connect(server: Server, **options: Any) -> Client:
        clients.append(Client(server, **options))
        return clients[-1]

    yield connect
    for client in clients:
        with contextlib.suppress(Exception):  # its server may have been killed
            client.close()


@pytest.mark.parametrize("mode", ["engine_driven", "lmcache_driven"])
def test_two_servers_of_one_host_share_what_either_stores(
    run: Run, connect: Callable[..., Client], mode: str
) -> None:
    """They are two processes of that host; each loads bit for bit what the other stored."""
    servers = [run(), run()]
    clients = [connect(server.wait(), mode=mode) for server in servers]
    first = clients[0].store(1)
    servers[0].settle(CHUNKS)
    clients[1].expect(1, first)
    second = clients[1].store(2)
    servers[1].settle(2 * CHUNKS)
    clients[0].expect(2, second)
    clear_l1(servers[0])
    clients[0].expect(1, first)
    for server in servers:
        wait_until(lambda server=server: server.l2["locked"] == 0)
        assert server.l2["is_healthy"] and server.l2["host_id"] == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pol": "/x"}, "adapter_params: unknown setting pol: did you mean pool?"),
        ({"size": None}, "beluga.size"),
    ],
)
def test_a_server_with_wrong_parameters_does_not_start(
    run: Run, params: dict[str, object], message: str
) -> None:
    server = run(**params)
    assert server.process.wait(90) != 0
    assert message in server.log.read_text()


def test_a_pool_that_is_all_leased(run: Run, connect: Callable[..., Client], pool: Path) -> None:
    """Stores to L2 fail, the server goes on, and stores again once there is room."""
    server = run(size="12MiB", extent_size="2MiB").wait()
    with Pool.attach(pool, heartbeat_ms=20) as other:
        views = []
        for number in range(64):
            other.put(b"%d" % number, bytes(CHUNK_BYTES))
            views.append(other.get(b"%d" % number))
        client = connect(server)
        wanted = client.store(1)
        wait_until(lambda: server.l2["refused_leased"] > 0)
        wait_until(
            lambda: "Store task" in server.log.read_text() and "failed" in server.log.read_text()
        )
        client.expect(1, wanted)  # from its own memory
        for view in views:
            if view is not None:
                view.release()
    puts = server.l2["puts"]
    more = client.store(2)
    wait_until(lambda: server.l2["puts"] == puts + CHUNKS)
    clear_l1(server)
    client.expect(2, more)


@pytest.mark.parametrize("phase", ["store", "lookup and load"])
def test_a_server_is_killed_and_comes_back(
    run: Run, connect: Callable[..., Client], pool: Path, phase: str
) -> None:
    """The pool is warm and clean: what was stored is there bit for bit, nothing is held."""
    server = run().wait()
    client = connect(server)
    wanted = {number: client.store(number) for number in range(4)}
    server.settle(4 * CHUNKS)
    if phase == "store":
        wanted[4] = client.store(4)  # its way into the pool has just begun
        server.kill()
    else:
        clear_l1(server)
        request = client.prompt(1)
        asking = threading.Thread(target=lambda: _tolerant(lambda: client.lookup(request)))
        asking.start()
        time.sleep(0.01)
        server.kill()
        asking.join(120)
    again = run().wait()
    wait_until(lambda: again.l2["writing"] == 0 and again.l2["leased"] == 0)
    with Pool.attach(pool, heartbeat_ms=20) as looking:
        assert looking.check().errors == []
    client = connect(again)
    for number in range(4):
        client.expect(number, wanted[number])
    if phase == "store":
        request = client.prompt(4)
        client.retrieve(request, wanted[4], client.lookup(request))


def _tolerant(call: Callable[[], Any]) -> None:
    with contextlib.suppress(BaseException):
        call()
