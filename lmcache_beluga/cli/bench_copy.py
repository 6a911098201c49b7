"""``beluga bench copy``: chunks into and out of a pool, against copies between ordinary buffers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmcache_beluga.cli.bench_report import Bar, Progress, Section, interleaved
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.pool import Pool, PutResult
from lmcache_beluga.quantities import format_size

_MIB = 1 << 20
_SIZES = (64 << 10, _MIB, 16 * _MIB, 64 * _MIB)
_BARRED = 16 * _MIB
"""The size that the bars on bandwidth are set for."""

Buffer = npt.NDArray[np.uint8]


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """Measure put, get by view and read_into for chunks of several sizes.

    Args:
        folder: where the pools go; needs 600 MiB (quick: 200 MiB).
    """
    require(folder, (200 if quick else 600) * _MIB)
    section = Section("Copies: one pool, one process")
    sizes = _SIZES[:3] if quick else _SIZES
    for size in sizes:
        progress(f"copies of {format_size(size)}")
        _one_size(section, folder, size, rounds=7 if quick else 25)
    return section


def _one_size(section: Section, folder: Path, size: int, rounds: int) -> None:
    # As many chunks as exceed the last-level cache, on either side alike.
    count = max(4, min(256, 128 * _MIB // size))
    path = folder / f"copy-{size}.pool"
    pool_size = 2 * count * size + 256 * _MIB
    extent = max(16 * _MIB, 2 * size)
    Pool.format(str(path), size=pool_size, extent_size=extent, chunk_hint=size)
    random = np.random.default_rng(size)
    sources = [random.integers(0, 256, size, dtype=np.uint8) for _ in range(count)]
    targets = [np.zeros(size, dtype=np.uint8) for _ in range(count)]
    keys = [b"copy-%d" % number for number in range(count)]
    with Pool.attach(str(path)) as pool:

        def put() -> float:
            pool.remove(keys)
            start = time.perf_counter()
            results = [pool.put(key, data) for key, data in zip(keys, sources, strict=True)]
            seconds = time.perf_counter() - start
            if any(result != PutResult.STORED for result in results):
                section.wrong.append(f"put of {format_size(size)}: {set(results)}")
            return seconds / count

        def memcpy() -> float:
            start = time.perf_counter()
            for target, source in zip(targets, sources, strict=True):
                np.copyto(target, source)
            return (time.perf_counter() - start) / count

        def read() -> float:
            start = time.perf_counter()
            for key, target in zip(keys, targets, strict=True):
                pool.read_into(key, target)
            return (time.perf_counter() - start) / count

        def view() -> float:
            start = time.perf_counter()
            for key in keys:
                found = pool.get(key)
                if found is None:
                    section.wrong.append(f"get of {format_size(size)} missed")
                else:
                    found.release()
            return (time.perf_counter() - start) / count

        put()  # rounds start anywhere
        samples = interleaved(
            rounds, {"put": put, "memcpy": memcpy, "read_into": read, "get": view}, discard=2
        )
        _verify(section, pool, keys, sources, targets)
    path.unlink()
    _rows(section, size, samples)


def _rows(section: Section, size: int, samples: dict[str, list[float]]) -> None:
    name = format_size(size)
    copies = zip(samples["memcpy"], samples["put"], samples["read_into"], strict=True)
    ratios = [(plain / put, plain / read) for plain, put, read in copies]
    barred = size == _BARRED
    gb = size / 1e9
    section.add(f"memcpy {name}", [gb / second for second in samples["memcpy"]], "GB/s")
    section.add(f"put {name}", [gb / second for second in samples["put"]], "GB/s")
    section.add(
        f"put {name} / memcpy",
        [ratio for ratio, _ in ratios],
        "x",
        Bar(False, 0.85) if barred else None,
    )
    section.add(f"read_into {name}", [gb / second for second in samples["read_into"]], "GB/s")
    section.add(
        f"read_into {name} / memcpy",
        [ratio for _, ratio in ratios],
        "x",
        Bar(False, 0.9) if barred else None,
    )
    section.add(
        f"get {name} by view",
        [second * 1e6 for second in samples["get"]],
        "µs",
        Bar(True, 20),
        "lease and release",
    )


def _verify(
    section: Section,
    pool: Pool,
    keys: Sequence[bytes],
    sources: Sequence[Buffer],
    targets: Sequence[Buffer],
) -> None:
    for key, source, target in zip(keys, sources, targets, strict=True):
        target.fill(0)
        if pool.read_into(key, target) != source.size or not np.array_equal(source, target):
            section.wrong.append(f"read_into of {key!r} differs")
        found = pool.get(key)
        if found is None or not np.array_equal(found.array, source):
            section.wrong.append(f"view of {key!r} differs")
        if found is not None:
            found.release()
