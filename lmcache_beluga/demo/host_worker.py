"""One host of ``beluga demo --hosts``: an LMCache engine with a host id of its own.

Run like the demo's other worker (see :mod:`lmcache_beluga.demo.worker`): orders on stdin, JSON
events on a descriptor.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch

from lmcache_beluga.demo.cache_engine import CacheEngine
from lmcache_beluga.demo.job import Job
from lmcache_beluga.demo.model import SHAPE
from lmcache_beluga.demo.paged_kv import PagedKV
from lmcache_beluga.demo.text import VOCABULARY
from lmcache_beluga.demo.text import tokens as text_tokens
from lmcache_beluga.pool import Pool


class HostWorker:
    """Stores one prompt, and loads those of all other hosts.

    Args:
        job: ``seed`` is the host's number, ``hosts`` how many there are.
        events: where events go.
    """

    def __init__(self, job: Job, events: TextIO) -> None:
        self._job = job
        self._events = events
        self._device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        self._kv = PagedKV(SHAPE, job.tokens, self._device, job.seed)
        self._engine = CacheEngine(job.name, Path(job.config_file), self._kv, job.backend)
        # A handle of our own: what the pool counts is not the backend's word.
        self._pool = Pool.attach(job.pool, host_id=job.seed)
        self._whole = job.tokens - job.tokens % self._engine.chunk_size

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event to the parent."""
        self._events.write(json.dumps({"event": event, **fields}) + "\n")
        self._events.flush()

    def ready(self) -> dict[str, Any]:
        """What is cached before anybody has stored anything: nothing may be."""
        hits = [self._lookup(host) for host in range(self._job.hosts)]
        device = torch.cuda.get_device_name(0) if self._device.type == "cuda" else "CPU"
        return {"hit": sum(hits), "backends": self._engine.backends, "device": device}

    def store(self) -> dict[str, Any]:
        """Store this host's own prompt."""
        self._write(self._job.seed)
        start = time.perf_counter()
        self._engine.store(self._prompt(self._job.seed))
        return {"store_s": time.perf_counter() - start}

    def load(self) -> dict[str, Any]:
        """Load the prompts of all other hosts, and compare every byte."""
        before = self._pool.stats()
        loaded = wrong = compared = 0
        seconds = 0.0
        for host in (host for host in range(self._job.hosts) if host != self._job.seed):
            self._kv.fill(0xFF)  # what is not loaded cannot look right
            prompt = self._prompt(host)
            start = time.perf_counter()
            hit = self._engine.lookup(prompt, f"load {host}")
            loaded += self._engine.retrieve(prompt, f"load {host}") if hit else 0
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            seconds += time.perf_counter() - start
            found = self._bytes()
            self._write(host)
            for mine, theirs in zip(found, self._bytes(), strict=True):
                compared += mine.numel()
                wrong += int((mine != theirs).sum())
        after = self._pool.stats()
        return {
            "loaded": loaded,
            "load_s": seconds,
            "compared": compared,
            "wrong": wrong,
            "counters": {
                name: after[name] - before[name]
                for name in ("lookups", "hits", "misses", "gets", "get_bytes", "lost_leases")
            },
            "chunks": after["chunks"],
            "extents": after["extents_owned"],
        }

    def close(self) -> None:
        """Destroy the engine."""
        self._pool.close()
        self._engine.close()

    def _lookup(self, host: int) -> int:
        hit = self._engine.lookup(self._prompt(host), f"look {host}")
        self._engine.lmcache.lookup_unpin(f"look {host}")
        return hit

    def _prompt(self, host: int) -> torch.Tensor:
        """The text, with a first token that makes all chunks of a host its own."""
        return torch.tensor([VOCABULARY + host, *text_tokens(self._job.tokens)[1:]])

    def _write(self, host: int) -> None:
        """A host's KV: noise that everybody can make again."""
        shape = (self._job.tokens, SHAPE.heads, SHAPE.head_dim)
        generator = torch.Generator().manual_seed(host)

        def noise() -> list[torch.Tensor]:
            drawn = (torch.randn(shape, generator=generator) for _ in range(SHAPE.layers))
            return [layer.to(self._device, SHAPE.dtype) for layer in drawn]

        self._kv.write(0, noise(), noise())

    def _bytes(self) -> list[torch.Tensor]:
        """KV bytes of the cached tokens, a copy per layer."""
        layers = (self._kv.gather(layer, self._whole) for layer in range(SHAPE.layers))
        return [layer.contiguous().view(torch.uint8).reshape(-1) for layer in layers]


def main() -> None:
    """Answer orders until stdin closes or one says close."""
    job = Job.load(Path(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    torch.set_num_threads(1)  # there are several of these
    with os.fdopen(int(sys.argv[2]), "w") as events:
        worker = HostWorker(job, events)
        try:
            worker.emit("started")
            for order in map(str.strip, sys.stdin):
                answer = {"ready": worker.ready, "store": worker.store, "load": worker.load}
                if order not in answer:
                    break
                worker.emit(order, **answer[order]())
        finally:
            worker.close()
        worker.emit("closed")


if __name__ == "__main__":
    main()
