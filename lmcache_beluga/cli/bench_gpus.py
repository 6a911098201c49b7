"""``beluga bench gpus``: several processes, each with a GPU, on one pool at once."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch

from lmcache_beluga.cli.bench_processes import Crew, crew
from lmcache_beluga.cli.bench_report import Bar, BenchError, Progress, Section
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.pool import Pool
from lmcache_beluga.quantities import format_size

_WORKER = "lmcache_beluga.cli.bench_gpus_worker"
_CHUNK = 32 << 20
_CHUNKS = 16
_PATIENCE_S = 120.0
_ENOUGH = 0.95
"""Of the bus, for processes that share it or have one each: what is lost in between is noise."""


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """Two processes on one GPU, and one process on each GPU, against the limit of each bus.

    Args:
        folder: where the pool goes; needs 4 GiB.
    """
    gpus = torch.cuda.device_count()
    if gpus == 0:
        raise BenchError("needs a CUDA device")
    workers = max(2, gpus)
    size = (2 * workers * _CHUNKS + _CHUNKS) * _CHUNK
    require(folder, size)
    path = folder / "gpus.pool"
    Pool.format(str(path), size=size, extent_size=256 << 20, chunk_hint=_CHUNK)
    chunk = np.random.default_rng(5).integers(0, 256, _CHUNK, dtype=np.uint8)
    with Pool.attach(str(path)) as pool:
        for number in range(_CHUNKS):
            pool.put(b"%d" % number, chunk)
    section = Section(f"{gpus} GPUs, chunks of {format_size(_CHUNK)}")
    rounds, seconds = (1, 0.5) if quick else (5, 1.0)
    cases = [("one process", [0]), ("two processes on one GPU", [0, 0])]
    if gpus > 1:
        cases.append((f"one process on each of {gpus} GPUs", list(range(gpus))))
    for title, places in cases:
        progress(title)
        arguments = [[str(path), str(gpu), str(_CHUNK), str(_CHUNKS)] for gpu in places]
        with crew(_WORKER, arguments, _PATIENCE_S) as processes:

            def rate(what: str, processes: Crew = processes) -> float:
                return sum(float(answer) for answer in processes.ask(f"{what} {seconds}"))

            for way in ("load", "store"):
                totals: list[float] = []
                shares: list[float] = []
                for _ in range(rounds):
                    # What is the limit for so many at once is measured the same way.
                    limit = rate(f"pinned {way}")
                    totals.append(rate(way))
                    shares.append(totals[-1] / limit)
                note = f"of {statistics.median(totals) / statistics.median(shares):.1f} GB/s pinned"
                section.add(f"{way}, {title}", totals, "GB/s", note=note)
                section.add(f"{way}, {title} / pinned memory", shares, "x", Bar(False, _ENOUGH))
    _compare(section, cases)
    path.unlink()
    return section


def _compare(section: Section, cases: list[tuple[str, list[int]]]) -> None:
    """Do two on one bus get as much as one, and do several buses add up?"""
    for way in ("load", "store"):
        alone = statistics.median(section.samples[f"{way}, one process"])
        for title, places in cases[1:]:
            buses = len(set(places))
            ratios = [total / alone / buses for total in section.samples[f"{way}, {title}"]]
            section.add(f"{way}, {title} / one process", ratios, "x")
