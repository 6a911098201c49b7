"""``beluga bench hammer``: several processes at once on one pool, every operation timed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lmcache_beluga.cli.bench_processes import crew
from lmcache_beluga.cli.bench_report import Bar, Progress, Section
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.pool import Pool

_WORKER = "lmcache_beluga.cli.bench_hammer_worker"
_CHUNK = 64 << 10
_KEYS = 2000
_PATIENCE_S = 120.0
_POOL_SIZE = 96 << 20
"""Less than all keys' chunks take, so that eviction goes on all the time."""


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """One process, then several: do lookups scale, and is every operation short?

    Args:
        folder: where the pool goes; needs 100 MiB.
    """
    require(folder, _POOL_SIZE)
    cores = len(os.sched_getaffinity(0))
    many = 16 if cores >= 16 else 4
    seconds = 1.0 if quick else 10.0
    section = Section(f"Hammer: {many} processes on {cores} cores, one pool")
    path = folder / "hammer.pool"
    Pool.format(str(path), size=_POOL_SIZE, extent_size=8 << 20, chunk_hint=_CHUNK)
    rates: dict[str, dict[int, float]] = {"lookup": {}, "control": {}}
    # Alternating, so that what else runs on the machine meets both alike.
    for repeat in range(1 if quick else 3):
        for processes in (1, many):
            progress(f"lookups of {processes} processes, {repeat + 1}")
            found = _hammer(path, processes, [("lookup", seconds / 5), ("control", seconds / 5)])
            for phase, workers in found.items():
                rate = sum(worker["rate"] for worker in workers)
                section.samples.setdefault(f"{phase}s/s, {processes} processes", []).append(rate)
                rates[phase][processes] = max(rate, rates[phase].get(processes, 0.0))
    progress(f"mixed operations of {many} processes")
    mixed = _hammer(path, many, [("mix", seconds)])["mix"]
    with Pool.attach(str(path)) as pool:
        section.wrong += [f"pool afterwards: {error}" for error in pool.check().errors]
    path.unlink()
    _scaling(section, rates, many, min(many, cores))
    for name in ("all", "lookup", "get", "read", "put", "remove"):
        _latency(section, mixed, name)
    control = [worker["control"] for worker in mixed]
    section.add_value(
        "control (no pool), worst",
        max(times["worst"] for times in control) / 1e3,
        "ms",
        note=f"p99.9 {max(times['p99.9'] for times in control) / 1e3:.2f} ms",
    )
    operations = sum(worker["all"]["count"] for worker in mixed)
    section.add_value("operations, reads verified", operations, "")
    wrong = sum(worker["wrong_reads"] for worker in mixed)
    if wrong:
        section.wrong.append(f"{wrong} reads returned wrong bytes")
    return section


def _scaling(section: Section, rates: dict[str, dict[int, float]], many: int, usable: int) -> None:
    for phase, unit in (("lookup", "M keys/s"), ("control", "M loops/s")):
        for processes, rate in rates[phase].items():
            section.add_value(f"{phase}, processes: {processes}", rate / 1e6, unit)
    scale = {phase: rate[many] / rate[1] / usable for phase, rate in rates.items()}
    # Cores that something else uses, or that share a package's clock, hold everything back alike.
    section.add_value(
        "lookup scaling / control's",
        scale["lookup"] / scale["control"],
        "x",
        Bar(False, 0.75),
        f"per core {scale['lookup']:.2f} / {scale['control']:.2f}",
    )


def _latency(section: Section, workers: list[dict[str, Any]], name: str) -> None:
    times = [worker["all"] if name == "all" else worker["operations"][name] for worker in workers]
    times = [found for found in times if found["count"]]
    if not times:
        return
    section.add_value(
        "any operation, worst" if name == "all" else f"{name}, worst",
        max(found["worst"] for found in times) / 1e3,
        "ms",
        Bar(True, 50),
        f"p99.9 {max(found['p99.9'] for found in times) / 1e3:.2f} ms",
    )


def _hammer(
    path: Path, processes: int, phases: list[tuple[str, float]]
) -> dict[str, list[dict[str, Any]]]:
    """By phase, the result of each of so many processes that run it at once, for so many seconds.

    Raises:
        BenchError: one of them failed, and said so on stderr, or hung and was killed.
    """
    arguments = [[str(path), str(seed), str(_KEYS), str(_CHUNK)] for seed in range(processes)]
    patience = _PATIENCE_S + 2 * sum(seconds for _, seconds in phases)
    with crew(_WORKER, arguments, patience) as members:
        return {
            phase: [json.loads(answer) for answer in members.ask(f"{phase} {seconds}")]
            for phase, seconds in phases
        }
