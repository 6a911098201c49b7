"""Servers and engines for the tests of the shared L1, and prompts that they store and load."""

from __future__ import annotations

import itertools
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from processes import wait_until

from lmcache_beluga import Pool
from lmcache_beluga.demo.mp_engine import MPEngine
from lmcache_beluga.demo.mp_server import MPServer
from lmcache_beluga.demo.paged_kv import KVShape

CHUNK = 64
"""Tokens per chunk."""
SHAPE = KVShape(layers=2, heads=2, head_dim=32, dtype=torch.bfloat16)
NBYTES = CHUNK * SHAPE.bytes_per_token
CHUNKS = 12
"""That an engine has room for."""
MIB = 1 << 20
OPTIONS = ("--chunk-size", str(CHUNK), "--supported-transfer-mode", "auto", "--max-workers", "4")
MODES = ("engine_driven", "lmcache_driven")

_requests = itertools.count(1)
_prompts = itertools.count(1)


class Servers:
    """Servers on one pool in /dev/shm, and what they leave behind."""

    def __init__(self, folder: Path, pool: Path) -> None:
        self._folder = folder
        self.pool = pool
        self._all: list[MPServer] = []

    def start(self, *options: str, **environment: str) -> MPServer:
        """A server that is not waited for."""
        log = self._folder / f"server-{len(self._all)}.log"
        server = MPServer(log, self.pool, (*OPTIONS, *options), environment)
        self._all.append(server)
        return server

    def close(self) -> None:
        for server in self._all:
            server.process.terminate()
        for server in self._all:
            server.stop()
        if self.pool.exists():
            # What killed servers have left goes with the next process of each host.
            with Pool.attach(self.pool) as pool:
                hosts = range(1, pool.info.max_hosts)
            for host in hosts:
                Pool.attach(self.pool, host_id=host).close()


def shm_folder() -> Path:
    folder = Path("/dev/shm") / f"beluga-test-mp-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    return folder


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def engine(
    server: MPServer, mode: str = "engine_driven", shape: KVShape = SHAPE, **options: object
) -> MPEngine:
    return MPEngine(server.url, shape, CHUNKS * CHUNK // 16, mode, **options)  # type: ignore


class Prompt:
    """A prompt that no other has a chunk in common with, and its KV."""

    def __init__(self, chunks: int = 6) -> None:
        self.seed = next(_prompts)
        self.chunks = chunks
        self.tokens: Sequence[int] = [self.seed, *range(1000, 1000 + chunks * CHUNK)]

    def kv(self, engine: MPEngine) -> torch.Tensor:
        """What its chunks hold, uint8 of shape [layers, bytes]; overwrites the engine's KV."""
        engine.fill(self.seed, self.chunks * CHUNK)
        return engine.copy(0, self.chunks)


def request() -> str:
    return f"request-{next(_requests)}"


def clear_l1(server: MPServer) -> None:
    """Until nothing is left: what a task has done with may still be held for a moment."""

    def left() -> int:
        server.http("/cache/clear", {"tier": "l1", "force": False})
        return int(server.l1()["total_object_count"])

    wait_until(lambda: left() == 0)


def look(engine: MPEngine, prompt: Prompt, salt: str = "") -> int:
    """How many of its chunks are there; locks nothing."""
    name = request()
    found = engine.lookup(prompt.tokens, name, salt)
    engine.free(prompt.tokens, name, prompt.chunks, salt)
    engine.end(name)
    return found


def compute(engine: MPEngine, prompt: Prompt, salt: str = "") -> bool:
    """Compute a prompt and store what is not there of it; whether LMCache says that it did."""
    name = request()
    found = engine.lookup(prompt.tokens, name, salt)
    engine.free(prompt.tokens, name, found, salt)
    prompt.kv(engine)
    stored = engine.store(prompt.tokens, name, found, prompt.chunks - found, salt)
    engine.end(name)
    return stored


def load(engine: MPEngine, prompt: Prompt, salt: str = "") -> int:
    """Load what is there of a prompt and compare each byte; how many chunks it was."""
    name = request()
    found = engine.lookup(prompt.tokens, name, salt)
    if found:
        expected = prompt.kv(engine)
        engine.wipe()
        assert engine.retrieve(prompt.tokens, name, 0, found, salt), "LMCache could not load it"
        assert torch.equal(engine.copy(0, found), _first(expected, found, prompt)), "wrong KV"
    engine.end(name)
    return found


def _first(kv: torch.Tensor, chunks: int, prompt: Prompt) -> torch.Tensor:
    """The bytes of the first chunks: per layer keys of all chunks come before values."""
    halves = kv.view(kv.shape[0], 2, prompt.chunks, -1)
    return halves[:, :, :chunks].reshape(kv.shape[0], -1)


def comes(engine: MPEngine, prompt: Prompt, salt: str = "", seconds: float = 20) -> None:
    """Until all of a prompt is there: LMCache answers stores before it has published them."""
    deadline = time.monotonic() + seconds
    while look(engine, prompt, salt) < prompt.chunks:
        assert time.monotonic() < deadline, "it was not stored"
        time.sleep(0.02)
