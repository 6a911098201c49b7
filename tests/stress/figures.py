"""The figures of a long run: what happened, and how long operations took meanwhile."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .board import OPERATIONS, Board, Field
from .latency import Histogram, Measure, Window, above, quantile_ms, worst_ms

#: While a host is away, no operation of the others is to take longer than this many times what is
#: usual for 999 of a thousand.
BAR = 2.0


@dataclass
class Figures:
    """Added up over all crews of a run."""

    counts: Counter[str] = field(default_factory=Counter)
    #: By window from USUAL on, measure, operation and bucket.
    latencies: Histogram | None = None
    #: See Outages.worst_ms.
    windows: list[tuple[Window, npt.NDArray[np.float64]]] = field(default_factory=list)

    def add_board(self, board: Board, seats: int) -> None:
        latencies = board.latencies()
        self.latencies = latencies if self.latencies is None else self.latencies + latencies
        for name, what in (
            ("operations", Field.DONE),
            ("chunks read and compared", Field.READS),
            ("reads declared void, lease lost", Field.LOST),
            ("puts refused", Field.REFUSED),
        ):
            self.counts[name] += sum(board.seat(seat)[what] for seat in range(seats))

    def of(self, window: Window, measure: Measure) -> Histogram:
        """By operation and bucket."""
        assert self.latencies is not None
        histogram: Histogram = self.latencies[window - 1, measure]
        return histogram

    def rows(self, measure: Measure) -> dict[str, dict[str, float]]:
        """For each operation, and for all of them, what is usual and what an outage makes of it."""
        usual, outage = self.of(Window.USUAL, measure), self.of(Window.OUTAGE, measure)
        told = {}
        for index, name in [*enumerate(OPERATIONS), (None, "all")]:
            before = usual.sum(axis=0) if index is None else usual[index]
            during = outage.sum(axis=0) if index is None else outage[index]
            if before.sum() == 0 or during.sum() == 0:
                continue
            usual_ms = quantile_ms(before, 0.999)
            told[name] = {
                "usual_operations": int(before.sum()),
                "usual_p99_ms": quantile_ms(before, 0.99),
                "usual_p99.9_ms": usual_ms,
                "usual_worst_ms": worst_ms(before),
                "outage_operations": int(during.sum()),
                "outage_p99_ms": quantile_ms(during, 0.99),
                "outage_p99.9_ms": quantile_ms(during, 0.999),
                "outage_worst_ms": worst_ms(during),
                "usual_share_above_bar": above(before, BAR * usual_ms),
                "outage_share_above_bar": above(during, BAR * usual_ms),
            }
        return told

    def windows_above_bar(self, measure: Measure) -> dict[str, str]:
        """In how many windows some operation took longer than the bar that is its own."""
        usual = self.of(Window.USUAL, measure)
        bars = np.array([BAR * quantile_ms(one, 0.999) or np.inf for one in usual])
        told = {}
        for kind in (Window.USUAL, Window.OUTAGE):
            worst = [one[measure] for which, one in self.windows if which == kind]
            told[kind.name.lower()] = f"{sum((w > bars).any() for w in worst)} of {len(worst)}"
        return told

    def document(self) -> dict[str, Any]:
        tables = {measure.name.lower(): self.rows(measure) for measure in Measure}
        return {
            "command": shlex.join(["python", "-m", "pytest", *sys.argv[1:]]),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "lmcache-beluga": importlib.metadata.version("lmcache-beluga"),
            },
            "counts": dict(self.counts),
            "windows_with_an_operation_above_bar": {
                measure.name.lower(): self.windows_above_bar(measure) for measure in Measure
            },
            "latency_ms": tables,
        }

    def write(self, path: Path, extra: dict[str, Any]) -> None:
        document = {**self.document(), **extra}
        path.write_text(json.dumps(_rounded(document), indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What bears on the times."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(value, 6) if isinstance(value, float) else value
