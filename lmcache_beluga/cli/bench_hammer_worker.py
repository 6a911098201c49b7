"""One process of ``beluga bench hammer``.

Run as ``python -m lmcache_beluga.cli.bench_hammer_worker POOL SEED KEYS CHUNK``. Each line on
stdin, a phase and its seconds, starts one phase, so that all processes do the same at the same
time; each phase ends with one line of JSON on stdout:

- ``lookup``: batched lookups and nothing else; how many keys?
- ``control``: arithmetic and nothing else; how much can this machine do at all?
- ``mix``: lookups, views, reads, puts and removes, each one timed, each byte read verified.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcache_beluga.cli.bench_report import percentile
from lmcache_beluga.pool import Pool

_LOOKUP_KEYS = 512
_MIX_KEYS = 32
"""Keys in one batched lookup of the phases lookup and mix."""

_WARM_OPERATIONS = 500
_BATCHES = 64
_CONTROL_LOOPS = 2000
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
        self._wrong_reads = 0
        for _ in range(_WARM_OPERATIONS):
            for operation in (self.lookup, self.put, self.get, self.read, self._control):
                operation()

    def run_lookup(self, seconds: float) -> dict[str, Any]:
        """Keys looked up per second."""
        batches = [self._random.sample(self._keys, _LOOKUP_KEYS) for _ in range(_BATCHES)]

        def look() -> int:
            for batch in batches:
                self._pool.contains(batch)
            return _LOOKUP_KEYS * _BATCHES

        return {"rate": _rate(look, seconds)}

    def run_control(self, seconds: float) -> dict[str, Any]:
        """Loops of plain Python per second."""
        return {"rate": _rate(_control_loop, seconds)}

    def run_mix(self, seconds: float) -> dict[str, Any]:
        """Times of each kind of operation, in microseconds."""
        names = [name for name, share in _SHARES for _ in range(share)]
        times: dict[str, list[float]] = {name: [] for name, _ in _SHARES}
        control: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            name = self._random.choice(names)
            times[name].append(getattr(self, name)() / 1e3)
            control.append(self._control() / 1e3)
        return {
            "operations": {name: _summary(found) for name, found in times.items()},
            "all": _summary([time for found in times.values() for time in found]),
            "control": _summary(control),
            "wrong_reads": self._wrong_reads,
        }

    def lookup(self) -> int:
        """A batched lookup of keys that lie anywhere; nanoseconds."""
        keys = self._random.sample(self._keys, _MIX_KEYS)
        start = time.perf_counter_ns()
        self._pool.contains(keys)
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
            self._wrong_reads += 1
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
            self._wrong_reads += 1
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
    """Attach, fill, and run the phases that stdin asks for."""
    path, seed, keys, chunk = sys.argv[1:5]
    with Pool.attach(path) as pool:
        hammer = Hammer(pool, int(seed), int(keys), int(chunk))
        phases = {
            "lookup": hammer.run_lookup,
            "control": hammer.run_control,
            "mix": hammer.run_mix,
        }
        print("ready", flush=True)
        for line in sys.stdin:
            phase, seconds = line.split()
            print(json.dumps(phases[phase](float(seconds))), flush=True)


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Units of work per second."""
    done = 0
    start = time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        done += work()
    return done / took


def _control_loop() -> int:
    for _ in range(_CONTROL_LOOPS):
        hash(("neither", "memory", "nor", "locks"))
    return _CONTROL_LOOPS


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
