"""LMCache servers that are killed, or that cannot start, and LMCache's L2 below the pool."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lmcache.v1.distributed import storage_manager
from lmcache.v1.distributed.l1_manager import L1Manager
from mp_servers import (
    CHUNK,
    MIB,
    NBYTES,
    OPTIONS,
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
from processes import wait_until

from lmcache_beluga import Pool
from lmcache_beluga.cli.root import beluga
from lmcache_beluga.demo.mp_engine import MPEngine
from lmcache_beluga.demo.mp_server import MPServer, ServerError

KILLS = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    found = shm_folder()
    yield found
    remove(found)


@pytest.fixture
def servers(folder: Path, tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path, folder / "pool")
    yield found
    found.close()


def storing(engine: MPEngine, kept: list[Prompt]) -> None:
    prompt = Prompt(12)
    if compute(engine, prompt):
        kept.append(prompt)


def loading(engine: MPEngine, kept: list[Prompt]) -> None:
    assert load(engine, kept[0]) == kept[0].chunks


def looking(engine: MPEngine, kept: list[Prompt]) -> None:
    name = request()
    assert engine.lookup(kept[0].tokens, name) == kept[0].chunks
    engine.free(kept[0].tokens, name, kept[0].chunks)
    engine.end(name)


def test_kill_and_restart(servers: Servers) -> None:
    """While it stores, loads and looks up; its chunks stay, and nothing of it stays behind."""
    Pool.format(servers.pool, size=32 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    victim, other = servers.start(), servers.start()
    witness = engine(other.wait())
    kept: list[Prompt] = [Prompt(12)]
    compute(witness, kept[0])
    for work in (storing, loading, looking):
        successor = servers.start()  # meanwhile: servers take seconds to start
        doomed = engine(victim.wait(), timeout=2)
        done = threading.Event()

        def toil(
            work: Callable[[MPEngine, list[Prompt]], None] = work,
            doomed: MPEngine = doomed,
            done: threading.Event = done,
        ) -> None:
            with contextlib.suppress(TimeoutError, RuntimeError):
                while True:
                    work(doomed, kept)
                    done.set()

        thread = threading.Thread(target=toil)
        thread.start()
        assert done.wait(30)
        victim.kill()
        # The others go on at once, with all that was stored.
        for prompt in kept[-3:]:
            comes(witness, prompt)
            assert load(witness, prompt) == prompt.chunks
        new = Prompt()
        assert compute(witness, new)
        thread.join(30)
        assert not thread.is_alive()
        doomed.close()
        victim = successor.wait()
        with engine(victim) as heir:
            assert load(heir, new) == new.chunks
            assert load(heir, kept[-1]) == kept[-1].chunks
        with Pool.attach(servers.pool) as pool:
            # What was being written is free again, what was leased can be evicted.
            wait_until(lambda pool=pool: pool.stats()["writing"] == 0)  # type: ignore[misc]
            wait_until(lambda pool=pool: pool.stats()["leased"] == 0)  # type: ignore[misc]
            assert pool.check().ok
            assert pool.stats()["garbage"] == pool.stats()["lost_leases"] == 0
    witness.close()
    assert other.stop() in (0, -15)
    assert "Traceback" not in other.log.read_text()


def test_what_a_killed_server_has_locked_can_be_evicted(servers: Servers) -> None:
    Pool.format(servers.pool, size=4 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    server = servers.start()
    prompt = Prompt(12)
    with Pool.attach(servers.pool) as pool:
        one = engine(server.wait())
        compute(one, prompt)
        assert one.lookup(prompt.tokens, request()) == prompt.chunks  # and locked
        assert pool.stats()["leased"] == prompt.chunks
        server.kill()
        wait_until(lambda: pool.stats()["leased"] == 0)
        for number in range(8 * MIB // NBYTES):
            pool.put(b"%d" % number, bytes(NBYTES))
        assert pool.stats()["evictions"] >= prompt.chunks
        one.close()


def test_an_engine_writes_on_after_its_server_has_died(tmp_path: Path) -> None:
    """It maps the pool and knows of no death: its slot must not be another chunk's by then."""
    servers = Servers(tmp_path, Path(f"/dev/shm/lmcache_l1_pool_beluga-test-{uuid.uuid4().hex}"))
    Pool.format(servers.pool, size=2 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    try:
        started = [servers.start() for _ in range(3)]
        survivor = engine(started[2].wait())
        writers: list[MPEngine] = []  # with them goes what they have mapped
        slots: list[Any] = []
        for server, end in zip(started, (server_killed, server_stopped), strict=False):
            writers.append(engine(server.wait()))
            writer = writers[-1]
            prompt = Prompt()
            context: Any = writer._context
            key = writer._key(prompt.tokens, request(), 0, prompt.chunks * CHUNK, "", worker=0)
            mapped, _ = context._engine_driven_context.prepare_store(key, writer._instance)
            assert len(mapped) == prompt.chunks
            slots += mapped
            end(server)
        prompts = [Prompt(12) for _ in range(2 * MIB // NBYTES // 12 + 1)]
        for prompt in prompts:
            compute(survivor, prompt)
        assert started[2].l1()["pool"]["host"]["evictions"] > 0  # it had to look for room
        assert started[2].l1()["pool"]["host"]["writing"] == len(slots)
        for slot in slots:
            slot.fill_(1)
        assert sum(load(survivor, prompt) for prompt in prompts) > 0  # each byte compared
    finally:
        servers.close()
        servers.pool.unlink()


def server_killed(server: MPServer) -> None:
    server.kill()


def server_stopped(server: MPServer) -> None:
    assert server.stop() in (0, -15)


def test_a_server_that_cannot_start(folder: Path, tmp_path: Path) -> None:
    """Says why in one line and ends with a status that tells; it creates nothing."""
    missing = MPServer(tmp_path / "log", folder / "missing", OPTIONS)
    with pytest.raises(ServerError, match="ended with status 2"):
        missing.wait()
    assert "missing" in missing.said() and "beluga: error: " in missing.said()
    assert "Traceback" not in missing.said()
    assert not (folder / "missing").exists()


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ((), {"BELUGA_UUID": str(uuid.uuid4())}, "uuid"),
        ((), {"BELUGA_LEESE": "10s"}, "did you mean BELUGA_LEASE"),
        ((), {"BELUGA_POOL": "{folder}/no-pool"}, "no-pool"),
        (
            (),
            {"BELUGA_POOL": "{folder}/others"},
            "all servers of a pool with the same --chunk-size",
        ),
        (("--host-id", "64"), {}, "--host-id"),
        (("--pool-size", "much"), {}, "give a size such as"),
        (("--l1-manager", '{"type": "DRAM"}'), {}, "the pool is the only L1"),
        (("--l1-devdax-path", "/dev/dax0.0"), {}, "name the device with --pool"),
        (("--gds-l1-path", "/tmp"), {}, "the pool is the L1"),
        (("--p2p-advertise-url", "host:1"), {}, "find each other's chunks in the pool"),
        (("--shm-name", "mine"), {}, "--shm-name"),
        (("--engine-type", "blend"), {}, "with the pool as its L2"),
        (("--no-such-option",), {}, "--no-such-option"),
    ],
)
def test_wrong_settings(
    folder: Path, options: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    Pool.format(folder / "plain", size=8 * MIB)
    scheme = "lmcache/chunk=17/builtin/0123456789abcdef"
    Pool.format(folder / "others", size=8 * MIB, key_scheme=scheme)
    (folder / "no-pool").write_bytes(b"somebody's data" * 100_000)
    variables = {"BELUGA_POOL": str(folder / "plain"), **environment}
    variables = {name: value.format(folder=folder) for name, value in variables.items()}
    result = CliRunner().invoke(beluga, ["lmcache-server", *options], env=variables)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert storage_manager.L1Manager is L1Manager
    assert (folder / "no-pool").read_bytes() == b"somebody's data" * 100_000


def test_an_l2_below_the_pool(servers: Servers, tmp_path: Path) -> None:
    """LMCache stores to its L2 what engines store to the pool, and loads from there what the pool
    has not; that is for one request, and stays out of the pool."""
    Pool.format(servers.pool, size=8 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    (tmp_path / "l2").mkdir()
    adapter = {"type": "fs", "base_path": str(tmp_path / "l2")}
    server = servers.start("--l2-adapter", json.dumps(adapter)).wait()
    prompt = Prompt()
    with engine(server) as one, Pool.attach(servers.pool) as pool:
        compute(one, prompt)
        wait_until(lambda: stored_files(tmp_path / "l2") == prompt.chunks)
        wait_until(lambda: server.l1()["read_locked_count"] == 0)
        pool.clear()
        assert load(one, prompt) == prompt.chunks
        wait_until(lambda: server.l1()["total_object_count"] == 0)
        assert pool.stats()["chunks"] == pool.stats()["writing"] == 0
        # What one server has in its pool, it does not load from there.
        compute(one, prompt)
        assert look(one, prompt) == prompt.chunks


def stored_files(folder: Path) -> int:
    return sum(path.is_file() and path.suffix != ".tmp" for path in folder.rglob("*"))
