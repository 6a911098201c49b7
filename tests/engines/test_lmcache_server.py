"""beluga lmcache-server: LMCache's own server on the pool, with LMCache's own clients."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mp_servers import (
    CHUNK,
    CHUNKS,
    MIB,
    MODES,
    NBYTES,
    SHAPE,
    Prompt,
    Servers,
    comes,
    compute,
    engine,
    load,
    look,
    remove,
    request,
    shm_folder,
)

from lmcache_beluga import Pool
from lmcache_beluga.demo.environment import child_environment
from lmcache_beluga.demo.mp_engine import MPEngine
from lmcache_beluga.demo.mp_server import MPServer
from lmcache_beluga.demo.paged_kv import KVShape


class Two:
    """Two servers on one pool, and an engine at each for each of LMCache's transfer modes."""

    def __init__(self, servers: Servers, a: MPServer, b: MPServer) -> None:
        self.pool, self.a, self.b = servers.pool, a.wait(), b.wait()
        self._engines: dict[tuple[MPServer, str], MPEngine] = {}

    def engine(self, server: MPServer, mode: str = "engine_driven") -> MPEngine:
        if (server, mode) not in self._engines:
            self._engines[server, mode] = engine(server, mode)
        return self._engines[server, mode]

    def close(self) -> None:
        for one in self._engines.values():
            one.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Two processes of one host. The pool has a name by which engines can map it."""
    pool = Path(f"/dev/shm/lmcache_l1_pool_beluga-test-{uuid.uuid4().hex[:12]}")
    servers = Servers(tmp_path_factory.mktemp("shared"), pool)
    Pool.format(pool, size=32 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    two = None
    try:
        loud = {"LMCACHE_LOG_LEVEL": "INFO"}
        two = Two(servers, servers.start(**loud), servers.start(**loud))
        yield two
    finally:
        if two is not None:
            two.close()
        servers.close()
        pool.unlink()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Two hosts that keep nothing coherent between them."""
    folder = shm_folder()
    servers = Servers(tmp_path_factory.mktemp("hosts"), folder / "pool")
    geometry = {"size": 32 * MIB, "extent_size": MIB, "chunk_hint": NBYTES, "max_hosts": 2}
    Pool.format(servers.pool, visibility="noncoherent", **geometry)
    two = None
    try:
        started = [
            servers.start("--host-id", str(host), BELUGA_HEARTBEAT="20ms") for host in (0, 1)
        ]
        two = Two(servers, *started)
        yield two
    finally:
        if two is not None:
            two.close()
        servers.close()
        remove(folder)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Two such hosts, in a pool that engines map: server and engines of a host are two processes
    behind the same caches."""
    pool = Path(f"/dev/shm/lmcache_l1_pool_beluga-test-{uuid.uuid4().hex[:12]}")
    servers = Servers(tmp_path_factory.mktemp("mapped"), pool)
    geometry = {"size": 32 * MIB, "extent_size": MIB, "chunk_hint": NBYTES, "max_hosts": 2}
    Pool.format(pool, visibility="noncoherent", **geometry)
    two = None
    try:
        settings = {"BELUGA_HEARTBEAT": "20ms", "LMCACHE_LOG_LEVEL": "INFO"}
        started = [servers.start("--host-id", str(host), **settings) for host in (0, 1)]
        two = Two(servers, *started)
        yield two
    finally:
        if two is not None:
            two.close()
        servers.close()
        pool.unlink()


@pytest.fixture(params=["shared", "hosts", "mapped"])
def two(request: pytest.FixtureRequest) -> Two:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Two)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_what_one_stores_the_other_loads(two: Two, mode: str) -> None:
    for storing, loading in ((two.a, two.b), (two.b, two.a)):
        prompt = Prompt()
        assert look(two.engine(loading, mode), prompt) == 0
        assert compute(two.engine(storing, mode), prompt)
        comes(two.engine(loading, mode), prompt)
        assert load(two.engine(loading, mode), prompt) == prompt.chunks
        assert load(two.engine(storing, mode), prompt) == prompt.chunks


def test_either_mode_loads_what_the_other_stored(two: Two) -> None:
    for storing, loading in (MODES, MODES[::-1]):
        prompt = Prompt()
        compute(two.engine(two.a, storing), prompt)
        comes(two.engine(two.b, loading), prompt)
        assert load(two.engine(two.b, loading), prompt) == prompt.chunks


def test_part_of_a_prompt(two: Two) -> None:
    """What is there is loaded, the rest is computed and stored by another server."""
    whole, part = Prompt(8), Prompt(3)
    part.tokens, part.seed = whole.tokens[: 3 * CHUNK], whole.seed
    a, b = two.engine(two.a), two.engine(two.b)
    name = request()
    a.lookup(whole.tokens, name)
    whole.kv(a)
    a.store(whole.tokens, name, 0, 3)
    a.end(name)
    assert load(b, whole) == 3
    assert compute(b, whole)
    assert load(a, whole) == 8


def test_salts_do_not_leak(two: Two) -> None:
    a, b = two.engine(two.a), two.engine(two.b)
    mine, yours = Prompt(), Prompt()
    yours.tokens = mine.tokens  # equal tokens, other KV
    compute(a, mine, salt="me")
    for one in (a, b):
        assert look(one, mine) == look(one, mine, salt="you") == 0
    assert compute(b, yours, salt="you")
    for one in (a, b):
        assert load(one, mine, salt="me") == mine.chunks
        assert load(one, yours, salt="you") == yours.chunks


def test_models_do_not_leak(shared: Two) -> None:
    prompt = Prompt()
    compute(shared.engine(shared.a), prompt)
    with engine(shared.b, model="other") as other:
        assert look(other, prompt) == 0


@pytest.mark.parametrize("mode", MODES)
def test_dtypes_do_not_leak(shared: Two, mode: str) -> None:
    """LMCache's keys do not tell them apart."""
    prompt = Prompt()
    half = KVShape(SHAPE.layers, SHAPE.heads, SHAPE.head_dim, torch.float16)
    with (
        engine(shared.a, mode, model=f"model {mode}") as one,
        engine(shared.b, mode, half, model=f"model {mode}") as other,
    ):
        compute(one, prompt)
        comes(one, prompt)
        assert look(other, prompt) == 0
        assert load(one, prompt) == prompt.chunks


@pytest.mark.parametrize("mode", MODES)
def test_no_byte_is_copied_on_its_way(shared: Two, mode: str) -> None:
    prompt = Prompt()
    one, other = shared.engine(shared.a, mode), shared.engine(shared.b, mode)
    before = [counters(server) for server in (shared.a, shared.b)]
    compute(one, prompt)
    comes(other, prompt)
    assert load(other, prompt) == prompt.chunks
    after = [counters(server) for server in (shared.a, shared.b)]
    written, read = (after[0][k] - before[0][k] for k in ("written_in_place", "read_in_place"))
    assert (written, read) == (prompt.chunks * NBYTES, 0)
    # In chunks: those of the look above, and those that were loaded.
    assert after[1]["read_in_place"] - before[1]["read_in_place"] >= 2 * prompt.chunks * NBYTES
    for counted in after:
        assert counted["read_by_copy"] == counted["written_by_copy"] == 0
    assert "Using shm non-GPU transfer strategy" in shared.a.log.read_text()


@pytest.mark.parametrize("mode", MODES)
def test_caches_are_flushed_around_transfers(mapped: Two, mode: str) -> None:
    """Whoever copies: a store reaches the device before it is published, and what a host may have
    in its caches of older chunks is gone before its first read, once for all of its engines."""
    one, other = mapped.engine(mapped.a, mode), mapped.engine(mapped.b, mode)
    prompt = Prompt()
    nbytes = prompt.chunks * NBYTES

    def flushed() -> tuple[int, int]:
        a, b = (server.l1()["pool"]["host"]["flushed_bytes"] for server in (mapped.a, mapped.b))
        return a - before[0], b - before[1]

    before = (0, 0)
    before = flushed()
    assert compute(one, prompt)
    comes(one, prompt)
    assert flushed() == (nbytes, 0)
    assert load(one, prompt) == prompt.chunks
    assert flushed() == (nbytes, 0)  # read through the caches that it was written through
    comes(other, prompt)
    assert load(other, prompt) == prompt.chunks
    with engine(mapped.b, mode) as third:
        assert load(third, prompt) == prompt.chunks
    assert flushed() == (nbytes, nbytes)
    assert "Using shm non-GPU transfer strategy" in mapped.a.log.read_text()


def counters(server: MPServer) -> dict[str, int]:
    status = server.l1()["pool"]
    return {n.removeprefix("bytes_"): v for n, v in status.items() if n.startswith("bytes_")}


def test_nothing_stays_locked(two: Two) -> None:
    """After all that the tests before have done."""
    for server in (two.a, two.b):
        status = server.l1()
        assert status["read_locked_count"] == status["staging_object_count"] == 0
        assert status["memory_used_bytes"] == status["pool"]["host"]["views"] == 0
        assert status["pool"]["lost_while_locked"] == 0


def test_a_pool_full_of_leases(shared: Two) -> None:
    """Stores fail, and nothing else; when the leases end, stores evict."""
    before = Prompt()
    a, b = shared.engine(shared.a), shared.engine(shared.b)
    compute(a, before)
    with Pool.attach(shared.pool) as pool:
        kept = [pool.get(entry.record) for entry in pool.keys()]  # noqa: SIM118
        held = []
        while (slot := pool.reserve(NBYTES)) is not None:
            held.append(slot)
        prompt = Prompt()
        compute(a, prompt)
        assert look(a, prompt) == 0
        assert load(b, before) == before.chunks
        assert shared.a.http("/healthcheck") and shared.a.l1()["is_healthy"]
        for hold in held:
            hold.abort()
        del kept
    assert compute(a, prompt)
    assert load(b, prompt) == prompt.chunks


def test_what_a_vanished_engine_was_writing_is_not_stored(shared: Two) -> None:
    """LMCache 0.5.6 finishes the writes of an engine that leaves in the middle of one."""
    prompt = Prompt()
    leaving = engine(shared.a)
    context: Any = leaving._context
    key = leaving._key(prompt.tokens, request(), 0, prompt.chunks * CHUNK, "", worker=0)
    slots, _ = context._engine_driven_context.prepare_store(key, leaving._instance)
    assert len(slots) == prompt.chunks
    slots[0].fill_(1)
    del slots
    leaving.close()
    assert look(shared.engine(shared.b), prompt) == 0
    assert "an engine vanished while it wrote" in shared.a.log.read_text()
    assert compute(shared.engine(shared.a), prompt)
    assert load(shared.engine(shared.b), prompt) == prompt.chunks


def test_clear(shared: Two) -> None:
    prompt = Prompt()
    a, b = shared.engine(shared.a), shared.engine(shared.b)
    compute(a, prompt)
    assert look(b, prompt) == prompt.chunks
    shared.b.http("/cache/clear", {"tier": "l1"})
    assert look(a, prompt) == look(b, prompt) == 0
    compute(b, prompt)
    assert load(a, prompt) == prompt.chunks


def test_lmcache_s_own_bench(shared: Two) -> None:
    """Stores through one server; the other has it all; checksums are LMCache's."""
    shape = "(2,64,16,2,32):bfloat16:2"
    for server, stored in ((shared.a, True), (shared.b, False)):
        command = [
            *(sys.executable, "-m", "lmcache.cli.main", "bench", "server", "--mode", "cpu"),
            *("--rpc-url", server.url, "--url", server.http_url),
            *("--num-tokens", str(CHUNKS * CHUNK), "--kvcache-shape-spec", shape),
            *("--end", "2", "--interval", "0"),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=child_environment()
        )
        assert result.returncode == 0, result.stdout + result.stderr
        hit = f"LOOKUP: {CHUNKS}/{CHUNKS} chunks hit"
        assert result.stdout.count(hit) == (2 if stored else 4)
        assert result.stdout.count("CHECKSUM MATCH OK") == (2 if stored else 0)
        assert "MISMATCH" not in result.stdout and "FAILED" not in result.stdout
