"""A place for an LMCache server on a shared pool: it is killed and comes back, with its clients."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from lmcache_beluga.demo.environment import child_environment
from lmcache_beluga.demo.mp_engine import BLOCK, MPEngine
from lmcache_beluga.demo.mp_server import MPServer
from lmcache_beluga.demo.paged_kv import KVShape

CHUNK = 64
"""Tokens per chunk."""
SHAPE = KVShape(layers=2, heads=2, head_dim=32, dtype=torch.bfloat16)
NBYTES = CHUNK * SHAPE.bytes_per_token
_CHUNKS = 8
_SALTS = ("", "tenant")
_ANSWER_S = 4.0
_BENCH_SHAPE = "(2,64,16,2,32):bfloat16:2"
# It also calls it a mismatch when a chunk was evicted since it was stored, and then lists the rest.
_CHECKSUM = re.compile(r"CHECKSUM MATCH OK|chunk \d+: cold=\w+ warm=\w+ (?:OK|FAIL)")


class Seat:
    """One server after the other, and two clients of each: an engine that knows what each prompt's
    KV is, whoever stored it, and ``lmcache bench server`` with its checksums."""

    def __init__(self, number: int, folder: Path, pool: Path, options: Sequence[str]) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._number = number
        self._folder = folder
        self._pool = pool
        self._options = options
        self._draw = random.Random(number)
        self._names = itertools.count()
        self._lives = 0
        self._over = threading.Event()
        self._server = self._start()
        self._up = threading.Event()
        self._bench: subprocess.Popen[str] | None = None
        self._threads = [threading.Thread(target=self._engine), threading.Thread(target=self._run)]
        for thread in self._threads:
            thread.start()

    # The conductor's

    def ready(self) -> bool:
        """Whether its server serves, and both clients have had something of it."""
        return self._up.is_set() and bool(self.counts["life"])

    def kill(self) -> None:
        """SIGKILL, in the middle of something; the next server starts at once."""
        self._up.clear()
        # The bench takes an answer that does not come for wrong bytes, so it goes first.
        if self._bench is not None:
            self._bench.kill()
        self._server.kill()
        self.counts["kills"] += 1
        self.counts["life"] = 0
        self._server = self._start()

    def close(self) -> int:
        """Ends everything in order; the status of the last server."""
        self._over.set()
        if self._bench is not None:
            self._bench.terminate()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"
        return self._server.stop()

    def said(self) -> str:
        """What its servers have said."""
        return "".join(log.read_text() for log in self._folder.glob(f"server-{self._number}-*"))

    def _start(self) -> MPServer:
        self._lives += 1
        log = self._folder / f"server-{self._number}-{self._lives}.log"
        return MPServer(log, self._pool, self._options)

    # The engine

    def _engine(self) -> None:
        while not self._over.is_set():
            server = self._server
            try:
                server.http("/healthcheck")
            except OSError:
                time.sleep(0.1)
                continue
            self._up.set()
            with contextlib.suppress(TimeoutError, RuntimeError, OSError):
                mode = self._draw.choice(("engine_driven", "lmcache_driven"))
                blocks = _CHUNKS * CHUNK // BLOCK
                with MPEngine(server.url, SHAPE, blocks, mode, "stress", _ANSWER_S) as engine:
                    while not self._over.is_set() and server is self._server:
                        self._request(engine, server)

    def _request(self, engine: MPEngine, server: MPServer) -> None:
        prompt, salt = self._draw.randrange(200), self._draw.randrange(2)
        tokens = [prompt, *range(1000, 1000 + _CHUNKS * CHUNK)]
        name = f"seat-{self._number}-{next(self._names)}"
        found = engine.lookup(tokens, name, _SALTS[salt])
        engine.fill(2 * prompt + salt, _CHUNKS * CHUNK)
        if found:
            expected = _first(engine.copy(0, _CHUNKS), found)
            engine.wipe()
            if engine.retrieve(tokens, name, 0, found, _SALTS[salt]):
                self.counts["chunks loaded"] += found
                if not torch.equal(engine.copy(0, found), expected):
                    self.wrong.append(f"prompt {prompt}, salt {salt}: wrong KV")
            elif server is self._server and server.process.poll() is None:
                self.counts["loads refused"] += 1  # the pool had evicted it, or time was up
            else:
                self.counts["loads cut off by a kill"] += 1  # LMCache's client gave up
        elif engine.store(tokens, name, 0, _CHUNKS, _SALTS[salt]):
            self.counts["chunks stored"] += _CHUNKS
        engine.end(name)
        self.counts["requests"] += 1
        self.counts["life"] += 1

    # LMCache's bench

    def _run(self) -> None:
        start = 1_000_000 * (self._number + 1)
        while not self._over.is_set():
            if not self._up.is_set():
                time.sleep(0.1)
                continue
            start += 10_000
            server = self._server
            command = [
                *(sys.executable, "-m", "lmcache.cli.main", "bench", "server", "--mode", "cpu"),
                *("--rpc-url", server.url, "--url", server.http_url),
                *("--num-tokens", "511", "--kvcache-shape-spec", _BENCH_SHAPE),
                *("--interval", "0.02", "--start", str(start)),
            ]
            self._bench = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**child_environment(), "PYTHONUNBUFFERED": "1"},
            )
            if self._over.is_set() or server is not self._server:
                self._bench.kill()
            assert self._bench.stdout is not None
            for line in self._bench.stdout:
                if found := _CHECKSUM.search(line):
                    self.counts["checksums compared"] += 1
                    if found[0].endswith("FAIL"):
                        self.wrong.append(line)
            self._bench.wait()


def _first(kv: torch.Tensor, chunks: int) -> torch.Tensor:
    """The bytes of the first chunks: per layer keys of all chunks come before values."""
    halves = kv.view(kv.shape[0], 2, _CHUNKS, -1)
    return halves[:, :, :chunks].reshape(kv.shape[0], -1)
