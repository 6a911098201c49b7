"""LMCache's serde, which compresses or encrypts KV on its way to an L2: with the pool as that L2,
and with the pool as the L1 above one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mp_servers
import pytest
import torch
from l2_harness import spec
from mp_servers import NBYTES, Prompt, Servers, compute, engine, load, remove, shm_folder
from processes import wait_until
from server_harness import CHUNK_BYTES, CHUNKS, Client, Server

from lmcache_beluga import Pool

Run = Callable[..., Server]
FRAME = 29
"""Bytes that LMCache's encryption adds to a chunk."""


@pytest.fixture
def master(tmp_path: Path) -> Path:
    path = tmp_path / "master-key"
    path.write_bytes(b"k" * 32)
    return path


@pytest.fixture
def run(tmp_path: Path, pool: Path) -> Iterator[Run]:
    """Starts servers with the test's pool as L2 below a serde."""
    servers: list[Server] = []

    def run(serde: dict[str, Any] | None) -> Server:
        l2 = spec(pool, heartbeat="20ms")
        if serde is not None:
            l2["serde"] = serde
        servers.append(Server(tmp_path / f"server-{len(servers)}.log", l2))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


def settled(server: Server, bytes_stored: int) -> None:
    wait_until(lambda: server.l2["put_bytes"] == bytes_stored)
    wait_until(lambda: server.l2["tasks"] == 0)


def test_compressed_in_the_pool(run: Run) -> None:
    """Half the bytes; what another server loads is what fp8 leaves of the KV."""
    serde = {"type": "fp8", "fp8_dtype": "float8_e4m3fn"}
    one, other = run(serde), run(serde)
    storing, loading = Client(one.wait()), Client(other.wait(), mode="lmcache_driven")
    wanted = storing.store(1)
    settled(one, CHUNKS * CHUNK_BYTES // 2)
    rounded = [layer.to(torch.float8_e4m3fn).to(layer.dtype) for layer in wanted]
    loading.expect(1, rounded)
    for client in (storing, loading):
        client.close()
    for server in (one, other):
        wait_until(lambda server=server: server.l2["locked"] == 0)
        assert "Traceback" not in server.log.read_text()


def test_encrypted_in_the_pool(run: Run, pool: Path, master: Path, tmp_path: Path) -> None:
    """The pool's bytes are not the KV's; with another key they are misses, not wrong KV."""
    (tmp_path / "other-key").write_bytes(b"o" * 32)
    serde = {"type": "aesgcm", "master_key_path": str(master)}
    one, other = run(serde), run(serde)
    stranger = run({**serde, "master_key_path": str(tmp_path / "other-key")})
    client = Client(one.wait())
    wanted = client.store(1)
    settled(one, CHUNKS * (CHUNK_BYTES + FRAME))
    kv = wanted[0].contiguous().view(torch.uint8).flatten()[:256].numpy().tobytes()
    with Pool.attach(pool, heartbeat_ms=20) as looking:
        for entry in looking.keys():  # noqa: SIM118
            assert kv not in bytes(looking.get(entry.record).array)
    clients = [client, Client(other.wait()), Client(stranger.wait())]
    clients[1].expect(1, wanted)
    clients[2].expect(1, wanted, hits=0)
    for one_of_them in clients:
        one_of_them.close()


def test_servers_without_the_serde_see_misses(run: Run) -> None:
    """What is compressed is no KV to them, and they go on."""
    one, plain = run({"type": "fp8"}), run(None)
    clients = [Client(one.wait()), Client(plain.wait())]
    clients[0].store(1)
    settled(one, CHUNKS * CHUNK_BYTES // 2)
    wanted = clients[1].store(1)
    clients[1].expect(1, wanted)  # from its own memory
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["fp8", "aesgcm"])
def test_below_the_pool(tmp_path: Path, master: Path, kind: str) -> None:
    """The pool's slots are the source, and what is made of it lies in slots for a moment."""
    folder = shm_folder()
    servers = Servers(tmp_path, folder / "pool")
    geometry = {"extent_size": mp_servers.MIB, "chunk_hint": NBYTES}
    Pool.format(servers.pool, size=8 * mp_servers.MIB, **geometry)
    (tmp_path / "l2").mkdir()
    serde = {"type": kind, **({"master_key_path": str(master)} if kind == "aesgcm" else {})}
    adapter = {"type": "fs", "base_path": str(tmp_path / "l2"), "serde": serde}
    try:
        server = servers.start("--l2-adapter", json.dumps(adapter)).wait()
        prompt = Prompt()
        with engine(server) as one, Pool.attach(servers.pool) as pool:
            compute(one, prompt)
            wait_until(lambda: len(files(tmp_path / "l2")) == prompt.chunks)
            size = NBYTES // 2 if kind == "fp8" else NBYTES + FRAME
            assert {path.stat().st_size for path in files(tmp_path / "l2")} == {size}
            wait_until(lambda: server.l1()["total_object_count"] == 0)
            assert load(one, prompt) == prompt.chunks  # from the pool
            pool.clear()
            if kind == "aesgcm":
                assert load(one, prompt) == prompt.chunks
            else:
                assert mp_servers.look(one, prompt) == prompt.chunks
            wait_until(lambda: server.l1()["total_object_count"] == 0)
            assert pool.stats()["chunks"] == pool.stats()["writing"] == 0
        assert "Traceback" not in server.log.read_text()
    finally:
        servers.close()
        remove(folder)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
