"""One of the demo's two processes: an LMCache engine, a model, and orders read from stdin.

Run as ``python -m lmcache_beluga.demo.worker JOB.json EVENT_FD``. Each line of stdin is an order,
each line written to the event descriptor a JSON event. Standard output and error stay free for
whatever the libraries print.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from lmcache_beluga.demo.cache_engine import CacheEngine
from lmcache_beluga.demo.job import Job
from lmcache_beluga.demo.model import SHAPE, SmallLlama
from lmcache_beluga.demo.paged_kv import PagedKV
from lmcache_beluga.demo.text import tokens as text_tokens
from lmcache_beluga.pool import Pool

STEPS = 8
"""Tokens decoded after the prompt; logits of all of them are compared."""


class Worker:
    """Carries out the orders; each method returns the event that answers one.

    Args:
        job: see `Job`.
        events: where progress events go.
    """

    def __init__(self, job: Job, events: TextIO) -> None:
        self._job = job
        self._events = events
        self._device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        self._model = SmallLlama(self._device)
        self._model.warm_up()
        self._tokens = text_tokens(job.tokens)
        self._ids = torch.tensor(self._tokens)
        self._kv = PagedKV(SHAPE, job.tokens, self._device, job.seed)
        self._engine = CacheEngine(job.name, Path(job.config_file), self._kv, job.backend)
        # A handle of our own: what the pool counts is not the backend's word.
        self._pool = Pool.attach(job.pool)
        # All full chunks are cached; but the last token is always computed, to have logits.
        self._stored = job.tokens - job.tokens % self._engine.chunk_size
        self._cached = min(self._stored, job.tokens - 1)

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event to the parent."""
        self._events.write(json.dumps({"event": event, **fields}) + "\n")
        self._events.flush()

    def ready(self) -> dict[str, Any]:
        """Where and with what this process runs."""
        device = torch.cuda.get_device_name(0) if self._device.type == "cuda" else "CPU"
        return {
            "backends": self._engine.backends,
            "device": device,
            "threads": torch.get_num_threads(),
            "chunk_size": self._engine.chunk_size,
            "bytes_per_token": SHAPE.bytes_per_token,
        }

    def look(self) -> dict[str, Any]:
        """Look the prompt up without loading anything."""
        hit = self._engine.lookup(self._ids, "look")
        self._engine.lmcache.lookup_unpin("look")
        return {"hit": hit}

    def compute(self) -> dict[str, Any]:
        """Prefill from nothing, store, leave the KV bytes and the logits for comparison."""
        start = time.perf_counter()
        self._model.prefill(self._tokens, self._kv, lambda done: self.emit("progress", done=done))
        prefill = time.perf_counter() - start
        before = self._stats()
        start = time.perf_counter()
        self._engine.store(self._ids)
        store = time.perf_counter() - start
        with self._job.kv_file.open("wb") as file:
            for layer in range(SHAPE.layers):
                file.write(self._bytes_of(layer).tobytes())
        logits, step = self._continue(self._kv)
        np.save(self._job.logits_file, logits.numpy())
        return {
            "prefill_s": prefill,
            "store_s": store,
            "step_s": step,
            "stored": self._stored,
            "pool": self._delta(before),
        }

    def load(self) -> dict[str, Any]:
        """Look the prompt up, load its KV, continue, compare everything with the reference."""
        self._kv.fill(0xFF)  # NaN: what is not loaded cannot look right
        before = self._stats()
        start = time.perf_counter()
        hit = self._engine.lookup(self._ids, "load")
        lookup = time.perf_counter() - start
        loaded = self._engine.retrieve(self._ids, "load") if hit else 0
        self._synchronize()
        load = time.perf_counter() - start
        result: dict[str, Any] = {
            "hit": hit,
            "loaded": loaded,
            "lookup_s": lookup,
            "load_s": load,
            "bytes": loaded * SHAPE.bytes_per_token,
            "pool": self._delta(before),
        }
        if loaded < self._stored:
            return result
        kv_compared, kv_wrong = self._compare_kv()
        logits, step = self._continue(self._kv)
        wanted = torch.from_numpy(np.load(self._job.logits_file))
        damaged_kv, damaged = self._damaged()
        return result | {
            "step_s": step,
            "kv_bytes_compared": kv_compared,
            "kv_bytes_wrong": kv_wrong,
            "logits_compared": wanted.numel(),
            "logits_wrong": int((logits.view(torch.int32) != wanted.view(torch.int32)).sum()),
            "top_tokens": logits.argmax(dim=1).tolist(),
            "control_kv_bytes_wrong": damaged_kv,
            "control_logits_wrong": int((damaged != wanted).sum()),
            "control_logits_max_difference": float((damaged - wanted).abs().max()),
        }

    def close(self) -> None:
        """Destroy the engine."""
        self._pool.close()
        self._engine.close()

    def _continue(self, kv: PagedKV) -> tuple[torch.Tensor, float]:
        """Logits of the continuation, and seconds until the first of them."""
        start = time.perf_counter()
        self._model.continue_from(self._tokens, self._cached, kv, steps=1)
        step = time.perf_counter() - start
        return self._model.continue_from(self._tokens, self._cached, kv, steps=STEPS), step

    def _damaged(self) -> tuple[int, torch.Tensor]:
        """Wrong bytes of KV, and the logits, when one chunk is overwritten by its neighbour."""
        chunk = self._engine.chunk_size
        middle = self._stored // 2 // chunk * chunk
        source, target = slice(middle - chunk, middle), slice(middle, middle + chunk)
        slots = self._kv.slot_mapping
        for layer in self._kv.layers:
            flat = layer.view(2, -1, SHAPE.heads, SHAPE.head_dim)
            flat[:, slots[target]] = flat[:, slots[source]]
        _, wrong = self._compare_kv()
        logits, _ = self._continue(self._kv)
        return wrong, logits

    def _compare_kv(self) -> tuple[int, int]:
        """Bytes compared with the reference, and bytes that differ."""
        layer_bytes = self._stored * SHAPE.bytes_per_token // SHAPE.layers
        wanted = np.memmap(self._job.kv_file, dtype=np.uint8, mode="r")
        if wanted.size != layer_bytes * SHAPE.layers:
            raise RuntimeError(f"the reference holds {wanted.size} bytes of KV, which is wrong")
        wrong = 0
        for layer in range(SHAPE.layers):
            want = wanted[layer * layer_bytes : (layer + 1) * layer_bytes]
            wrong += int(np.count_nonzero(self._bytes_of(layer) != want))
        return wanted.size, wrong

    def _bytes_of(self, layer: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """KV bytes of the cached tokens of one layer, in token order."""
        gathered = self._kv.gather(layer, self._stored).cpu().contiguous()
        flat: np.ndarray[Any, np.dtype[np.uint8]] = gathered.view(torch.uint8).reshape(-1).numpy()
        return flat

    def _stats(self) -> dict[str, int]:
        return dict(self._pool.stats())

    def _delta(self, before: dict[str, int]) -> dict[str, int]:
        """What the pool's counters moved by."""
        return {name: value - before[name] for name, value in self._stats().items()}

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _orders() -> Iterator[str]:
    for line in sys.stdin:
        yield line.strip()


def main() -> None:
    """Answer orders until stdin closes or one says close."""
    job = Job.load(Path(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    with os.fdopen(int(sys.argv[2]), "w") as events:
        worker = Worker(job, events)
        try:
            worker.emit("ready", **worker.ready())
            for order in _orders():
                answer = {
                    "look": worker.look,
                    "compute": worker.compute,
                    "load": worker.load,
                }.get(order)
                if answer is None:
                    break
                worker.emit(order, **answer())
        finally:
            worker.close()
        worker.emit("closed")


if __name__ == "__main__":
    main()
