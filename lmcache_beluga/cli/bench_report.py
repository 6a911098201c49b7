"""What a benchmark hands back: rows with a bar each, the samples behind them, and the machine."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Progress = Callable[[str], None]
"""Told in a few words what is being measured."""


_QUIET_LOAD = 0.5


class BenchError(Exception):
    """A section cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Bar:
    """What a value is held to: at most, or at least, ``limit`` (in the row's unit)."""

    at_most: bool
    limit: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` passes."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One result: the median of ``samples``, or one number.

    Attributes:
        value: None when it could not be measured; ``note`` then says why.
        low, high: 10th and 90th percentile of the samples, where there are several.
    """

    name: str
    value: float | None
    unit: str
    bar: Bar | None = None
    note: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None without a bar or a value."""
        if self.bar is None or self.value is None:
            return None
        return self.bar.holds(self.value)

    @staticmethod
    def of(
        name: str, samples: Sequence[float], unit: str, bar: Bar | None = None, note: str = ""
    ) -> Row:
        """The row of some samples (not empty)."""
        low, high = percentile(samples, 10), percentile(samples, 90)
        return Row(name, statistics.median(samples), unit, bar, note, low, high)


@dataclass
class Section:
    """All rows of one benchmark.

    Attributes:
        samples: the raw numbers, by row or series name, in the order in which they were measured.
        wrong: results that were not correct, whatever their speed; must stay empty.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        samples: Sequence[float],
        unit: str,
        bar: Bar | None = None,
        note: str = "",
    ) -> Row:
        """Add the row of some samples, keep the samples, return the row."""
        row = Row.of(name, samples, unit, bar, note)
        self.rows.append(row)
        self.samples[name] = list(samples)
        return row

    def add_value(
        self, name: str, value: float | None, unit: str, bar: Bar | None = None, note: str = ""
    ) -> None:
        """Add a row of one number."""
        self.rows.append(Row(name, value, unit, bar, note))

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        rows = [
            asdict(row) | {"bar": str(row.bar) if row.bar else None, "holds": row.holds}
            for row in self.rows
        ]
        return {"title": self.title, "rows": rows, "samples": self.samples, "wrong": self.wrong}


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least ``percent`` per cent of all do not exceed."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Between which samples the median lies with 95 % certainty, whatever they are spread like."""
    ordered = sorted(samples)
    margin = 0.98 * math.sqrt(len(ordered))
    first = max(0, math.floor((len(ordered) - 1) / 2 - margin))
    return ordered[first], ordered[-1 - first]


def interleaved(
    rounds: int, candidates: Mapping[str, Callable[[], float]], discard: int = 1
) -> dict[str, list[float]]:
    """Let each candidate measure itself once per round, in an order drawn anew for each.

    What drifts on the machine meanwhile then meets all of them alike, and so does what one of them
    leaves in caches for the next.

    Args:
        rounds: samples per candidate.
        candidates: by name, functions that return one sample.
        discard: rounds before those, whose samples are thrown away.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(-discard, rounds):
        for name in random.Random(number).sample(names, len(names)):
            sample = candidates[name]()
            if number >= 0:
                samples[name].append(sample)
    return samples


def write_json(
    path: Path, sections: Mapping[str, Section], command: str, load: float = 0.0
) -> None:
    """Write all sections with the machine, the versions and the command that measured them.

    ``load``: the machine's load average before it began.
    """
    document = preamble(command, load) | {
        "sections": {name: section.as_json() for name, section in sections.items()},
    }
    path.write_text(json.dumps(rounded(document), indent=1) + "\n")


def preamble(command: str, load: float) -> dict[str, Any]:
    """What every document of measurements begins with: see ``write_json``."""
    return {
        "command": command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average_before": round(load, 2),
        "quiet": load < _QUIET_LOAD,
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """The machine, as far as it bears on the numbers."""
    shm = os.statvfs("/dev/shm")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shm_bytes": shm.f_blocks * shm.f_frsize,
        "kernel": platform.release(),
        "huge_pages_shm": _first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "load_average": round(os.getloadavg()[0], 2),
        "real_time_priority": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of what was measured."""
    found = {"python": sys.version.split()[0]}
    for name in ("lmcache-beluga", "lmcache", "torch", "numpy", "redis"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    with contextlib.suppress(OSError):
        text = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
        found["redis-server"] = text.partition("v=")[2].partition(" ")[0]
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""


def rounded(value: Any) -> Any:
    """Six significant digits: more would only make the file longer."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return value
