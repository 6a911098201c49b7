"""``beluga bench hammer``: several processes at once on one pool, every operation timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from lmcache_beluga.cli.bench_report import Bar, Progress, Section
from lmcache_beluga.pool import Pool

_WORKER = "lmcache_beluga.cli.bench_hammer_worker"
_CHUNK = 64 << 10
_KEYS = 2000
_POOL_SIZE = 96 << 20
"""Less than all keys' chunks take, so that eviction goes on all the time."""


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """One process, then several: do lookups scale, and is every operation short?

    Args:
        folder: where the pool goes; needs 100 MiB.
    """
    cores = len(os.sched_getaffinity(0))
    many = 16 if cores >= 16 else 4
    seconds = 2.0 if quick else 10.0
    section = Section(f"Hammer: {many} processes on {cores} cores, one pool, {seconds:g} s")
    path = folder / "hammer.pool"
    Pool.format(str(path), size=_POOL_SIZE, extent_size=8 << 20, chunk_hint=_CHUNK)
    results: dict[int, list[dict[str, Any]]] = {}
    for processes in (1, many):
        progress(f"{processes} processes for {seconds:g} s")
        results[processes] = _hammer(path, processes, seconds)
    with Pool.attach(str(path)) as pool:
        section.wrong += [f"pool afterwards: {error}" for error in pool.check().errors]
    path.unlink()

    rates = {count: _rate(workers) for count, workers in results.items()}
    section.add_value("lookups/s, 1 process", rates[1] / 1e6, "M keys/s")
    section.add_value(f"lookups/s, {many} processes", rates[many] / 1e6, "M keys/s")
    usable = min(many, cores)
    section.add_value(
        f"aggregate / (1 process x {usable} cores)",
        rates[many] / rates[1] / usable,
        "x",
        Bar(False, 0.75),
        "1 is perfect scaling",
    )
    workers = results[many]
    for name in ("all", "lookup", "get", "read", "put", "remove"):
        _latency(section, workers, name)
    control = [worker["control"] for worker in workers]
    section.add_value(
        "control: same loop, no pool, worst",
        max(times["worst"] for times in control) / 1e3,
        "ms",
        note=f"scheduler alone; p99.9 {max(times['p99.9'] for times in control) / 1e3:.2f} ms",
    )
    for worker in results[1] + workers:
        if worker["wrong_reads"]:
            section.wrong.append(f"{worker['wrong_reads']} reads returned wrong bytes")
    operations = sum(worker["all"]["count"] for worker in workers)
    section.add_value("operations, each read verified", operations, "")
    for count, found in results.items():
        for number, worker in enumerate(found):
            flat = {name: worker["all"][name] for name in ("p50", "p99", "p99.9", "worst")}
            section.samples[f"{count} processes, process {number}, µs: {list(flat)}"] = list(
                flat.values()
            )
    return section


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
        f"p50 {max(found['p50'] for found in times):.1f} µs, "
        f"p99.9 {max(found['p99.9'] for found in times) / 1e3:.2f} ms",
    )


def _rate(workers: list[dict[str, Any]]) -> float:
    """Keys looked up per second of the whole mix, all processes together."""
    return float(sum(worker["lookups"] / worker["seconds"] for worker in workers))


def _hammer(path: Path, processes: int, seconds: float) -> list[dict[str, Any]]:
    """Results of processes that start together.

    Raises:
        RuntimeError: one of them failed, and said so on stderr, or hung and was killed.
    """
    command = [sys.executable, "-m", _WORKER, str(path)]
    workers: list[subprocess.Popen[str]] = []
    watchdog = threading.Timer(2 * seconds + 120, lambda: [worker.kill() for worker in workers])
    watchdog.start()
    try:
        for seed in range(processes):
            arguments = [str(seed), str(seconds), str(_KEYS), str(_CHUNK)]
            workers.append(
                subprocess.Popen(
                    command + arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError("a process of the hammer ended before it began")
        results = []
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            out, _ = worker.communicate()
            if worker.returncode != 0:
                raise RuntimeError(f"a process of the hammer ended with {worker.returncode}")
            results.append(json.loads(out))
        return results
    finally:
        watchdog.cancel()
        for worker in workers:
            worker.kill()
            worker.wait()
