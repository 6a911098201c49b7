"""One process of ``beluga bench hammer``: random operations on a shared pool, each one timed.

Run as ``python -m lmcache_beluga.cli.bench_hammer_worker POOL SEED SECONDS KEYS CHUNK`` and started
by a line on stdin, so that all processes begin together. Prints one JSON object.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcache_beluga.cli.bench_report import percentile
from lmcache_beluga.pool import Pool

LOOKUP_KEYS = 32
"""Keys in one batched lookup."""

_WARM_OPERATIONS = 200
_SHARES = (("lookup", 70), ("get", 15), ("read", 5), ("put", 8), ("remove", 2))


class Content:
    """The bytes that belong to each key: one block, every 8-byte word shifted by the key.

    Args:
        chunk: bytes, a multiple of 8.
    """

    def __init__(self, chunk: int) -> None:
        self._block = np.random.default_rng(1).integers(0, 1 << 62, chunk // 8, dtype=np.uint64)
        self.scratch = np.empty(chunk, dtype=np.uint8)

    def of(self, key: int) -> npt.NDArray[np.uint8]:
        """The chunk of ``key``, in a new buffer."""
        return (self._block + np.uint64(key)).view(np.uint8)

    def wrong(self, key: int, data: npt.NDArray[np.uint8]) -> bool:
        """Whether any byte differs from the chunk of ``key``."""
        return not np.array_equal(data.view(np.uint64) - np.uint64(key), self._block)


class Hammer:
    """Draws and times the operations of one process."""

    def __init__(self, pool: Pool, seed: int, keys: int, chunk: int) -> None:
        self._pool = pool
        self._random = random.Random(seed)
        self._keys = [b"hammer-%d" % number for number in range(keys)]
        self._content = Content(chunk)
        self.times_us: dict[str, list[float]] = {name: [] for name, _ in _SHARES}
        self.control_us: list[float] = []
        self.lookups = 0
        self.wrong_reads = 0

    def run(self, seconds: float) -> float:
        """Operate for so long; the seconds it really took."""
        names = [name for name, share in _SHARES for _ in range(share)]
        start = time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            name = self._random.choice(names)
            self.times_us[name].append(getattr(self, name)() / 1e3)
            self.control_us.append(self._control() / 1e3)
        return now - start

    def reset(self) -> None:
        """Forget what was measured so far; what was wrong stays wrong."""
        for times in self.times_us.values():
            times.clear()
        self.control_us.clear()
        self.lookups = 0

    def lookup(self) -> int:
        """A batched lookup of keys that lie anywhere; nanoseconds."""
        keys = self._random.sample(self._keys, LOOKUP_KEYS)
        start = time.perf_counter_ns()
        self._pool.contains(keys)
        self.lookups += LOOKUP_KEYS
        return time.perf_counter_ns() - start

    def get(self) -> int:
        """A view of one chunk, verified, released; nanoseconds without the verification."""
        number = self._random.randrange(len(self._keys))
        start = time.perf_counter_ns()
        view = self._pool.get(self._keys[number])
        taken = time.perf_counter_ns() - start
        if view is None:
            return taken
        wrong = self._content.wrong(number, np.asarray(view.array))
        # Bytes under a lease that was lost meanwhile promise nothing.
        if wrong and view.valid():
            self.wrong_reads += 1
        start = time.perf_counter_ns()
        view.release()
        return taken + time.perf_counter_ns() - start

    def read(self) -> int:
        """A copy of one chunk, verified; nanoseconds without the verification."""
        number = self._random.randrange(len(self._keys))
        scratch = self._content.scratch
        start = time.perf_counter_ns()
        size = self._pool.read_into(self._keys[number], scratch)
        taken = time.perf_counter_ns() - start
        if size is not None and (size != scratch.size or self._content.wrong(number, scratch)):
            self.wrong_reads += 1
        return taken

    def put(self) -> int:
        """Store one chunk; nanoseconds."""
        number = self._random.randrange(len(self._keys))
        data = self._content.of(number)
        start = time.perf_counter_ns()
        self._pool.put(self._keys[number], data)
        return time.perf_counter_ns() - start

    def remove(self) -> int:
        """Remove one chunk; nanoseconds."""
        key = self._random.choice(self._keys)
        start = time.perf_counter_ns()
        self._pool.remove([key])
        return time.perf_counter_ns() - start

    def _control(self) -> int:
        """The time some work outside the pool takes: what it shows beyond that is the machine."""
        start = time.perf_counter_ns()
        self._content.scratch.sum()
        return time.perf_counter_ns() - start


def main() -> None:
    """Attach, wait for the start, hammer, report."""
    path, seed, seconds, keys, chunk = sys.argv[1:6]
    with Pool.attach(path) as pool:
        hammer = Hammer(pool, int(seed), int(keys), int(chunk))
        for _ in range(_WARM_OPERATIONS):
            hammer.lookup(), hammer.put(), hammer.get()
        hammer.reset()
        print("ready", flush=True)
        sys.stdin.readline()
        took = hammer.run(float(seconds))
        stats = pool.stats()
    result: dict[str, Any] = {
        "seconds": took,
        "lookups": hammer.lookups,
        "wrong_reads": hammer.wrong_reads,
        "operations": {name: _summary(times) for name, times in hammer.times_us.items()},
        "all": _summary([time for times in hammer.times_us.values() for time in times]),
        "control": _summary(hammer.control_us),
        "evictions": stats["evictions"],
    }
    print(json.dumps(result), flush=True)


def _summary(times_us: list[float]) -> dict[str, float]:
    if not times_us:
        return {"count": 0}
    return {
        "count": len(times_us),
        "p50": percentile(times_us, 50),
        "p99": percentile(times_us, 99),
        "p99.9": percentile(times_us, 99.9),
        "worst": max(times_us),
    }


if __name__ == "__main__":
    main()
