"""Rows of the report: all repetitions of a phase on a backend, as a few numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .measured import Answer, PhaseResult
from .report_backends import place


def percentile(samples: Sequence[float], percent: float) -> float:
    """Between samples, linearly."""
    return float(np.percentile(np.asarray(samples, dtype=float), percent))


@dataclass(frozen=True)
class Spread:
    """Samples' median, and where the middle eight tenths of them are."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        """``samples`` is not empty."""
        return Spread(statistics.median(samples), percentile(samples, 10), percentile(samples, 90))

    def overlaps(self, other: Spread) -> bool:
        """Whether the two cannot be told apart."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Row:
    """A phase on a backend. Times in seconds; medians over repetitions where nothing else is said.

    Attributes:
        repeats: at least one.
        ttft: of every request that was answered, of all repetitions: empty if none was.
        ttft_p99: over those of all repetitions, so that a bad one shows.
        ttft_p50_low, ttft_p50_high: the best and the worst repetition's median.
        tpot_s: per token after the first; None if answers have one only.
        longest_gap_s: between two tokens of a request that was decoding meanwhile.
        hit, reuse: loaded tokens, and those that earlier requests had, of all tokens of prompts.
        flags: why the row is not what its name says.
    """

    workload: str
    name: str
    backend: str
    axes: dict[str, float]
    repeats: list[PhaseResult]
    ttft: list[float]
    ttft_mean: float | None
    ttft_p50: float | None
    ttft_p50_low: float | None
    ttft_p50_high: float | None
    ttft_p99: float | None
    tpot_s: float | None
    longest_gap_s: float | None
    requests_per_s: float | None
    tokens_per_s: float | None
    stored_bytes: float | None
    loaded_bytes: float | None
    cpu_s: float | None
    cpu_by: dict[str, float]
    hit: float | None
    reuse: float | None
    flags: list[str]

    @property
    def spread(self) -> Spread | None:
        """Of times to the first token."""
        return Spread.of(self.ttft) if self.ttft else None


class Rows:
    """All rows, in the order of phases and of backends."""

    def __init__(self, phases: Sequence[PhaseResult]) -> None:
        groups: dict[tuple[str, str, str], list[PhaseResult]] = {}
        for phase in phases:
            groups.setdefault((phase.workload, phase.name, phase.backend), []).append(phase)
        names = list(dict.fromkeys((workload, name) for workload, name, _ in groups))
        keys = sorted(groups, key=lambda key: (names.index(key[:2]), place(key[2])))
        self._rows = {key: _row(groups[key]) for key in keys}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def get(self, workload: str, name: str, backend: str) -> Row | None:
        """None: it was not measured."""
        return self._rows.get((workload, name, backend))

    def beside(self, row: Row, backend: str) -> Row | None:
        """The same phase on another backend."""
        return self.get(row.workload, row.name, backend)

    def of(self, *backends: str, workload: str | None = None) -> list[Row]:
        """Those of some backends, all if none is named."""
        return [
            row
            for row in self
            if (not backends or row.backend in backends)
            and (workload is None or row.workload == workload)
        ]

    @property
    def backends(self) -> list[str]:
        """All that have rows."""
        return sorted({row.backend for row in self}, key=place)

    @property
    def workloads(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(row.workload for row in self))


def is_populate(row: Row) -> bool:
    """Prompts for the first time, one after the other."""
    return row.name.startswith("populate")


def is_all_hit(row: Row) -> bool:
    """Everything is there, and one request asks for it at a time."""
    return row.axes.get("reuse") == 1 and row.axes.get("concurrency") == 1


def is_burst(row: Row) -> bool:
    """Everything is there, and several requests ask for it at once."""
    return row.axes.get("reuse") == 1 and row.axes.get("concurrency", 1) > 1


def _row(phases: list[PhaseResult]) -> Row:
    first = phases[0]
    measured = [(phase, *_parts(phase)) for phase in phases]
    ttfts = [[answer.ttft_s for answer in asked] for _, asked, _ in measured]
    some = [times for times in ttfts if times]
    everything = [time for times in some for time in times]
    medians = [statistics.median(times) for times in some]
    tpots = [
        statistics.mean(several)
        for _, asked, decoding in measured
        if (several := [a.tpot_s for a in (decoding or asked) if a.output_tokens > 1])
    ]
    gaps = [max(a.longest_gap_s for a in decoding) for _, _, decoding in measured if decoding]
    groups = dict.fromkeys(group for phase in phases for group in phase.cpu_s)
    return Row(
        workload=first.workload,
        name=first.name,
        backend=first.backend,
        axes=first.axes,
        repeats=phases,
        ttft=everything,
        ttft_mean=_median([statistics.mean(times) for times in some]),
        ttft_p50=_median(medians),
        ttft_p50_low=min(medians, default=None),
        ttft_p50_high=max(medians, default=None),
        ttft_p99=percentile(everything, 99) if everything else None,
        tpot_s=_median(tpots),
        longest_gap_s=_median(gaps),
        requests_per_s=_median([len(p.answered) / p.wall_s for p in phases if p.wall_s > 0]),
        tokens_per_s=_median(
            [
                sum(a.prompt_tokens + a.output_tokens for a in phase.answered) / phase.wall_s
                for phase in phases
                if phase.wall_s > 0
            ]
        ),
        stored_bytes=_known(phases, lambda phase: phase.stored_bytes),
        loaded_bytes=_known(phases, lambda phase: phase.loaded_bytes),
        cpu_s=_median([sum(phase.cpu_s.values()) for phase in phases if phase.cpu_s]),
        cpu_by={
            group: statistics.median([phase.cpu_s.get(group, 0.0) for phase in phases])
            for group in groups
        },
        hit=_known(phases, _hit),
        reuse=_known(
            phases, lambda p: p.reused_tokens / p.prompt_tokens if p.prompt_tokens else None
        ),
        flags=list(dict.fromkeys(flag for phase in phases for flag in _flags(phase))),
    )


def _parts(phase: PhaseResult) -> tuple[list[Answer], list[Answer]]:
    """Answers whose first token counts, and those that were decoding meanwhile."""
    number = int(phase.axes.get("decodes", 0))
    good = [
        [a for a in part if not a.error]
        for part in (phase.answers[number:], phase.answers[:number])
    ]
    return good[0], good[1]


def _hit(phase: PhaseResult) -> float | None:
    if phase.loaded_tokens is None or not phase.prompt_tokens:
        return None
    return (phase.loaded_tokens + phase.local_tokens) / phase.prompt_tokens


def _flags(phase: PhaseResult) -> list[str]:
    found = [phase.flag] if phase.flag else []
    if phase.asked_who_stored:
        found.append("asked the instance that stored")
    return found


def _known(
    phases: Sequence[PhaseResult], value: Callable[[PhaseResult], float | None]
) -> float | None:
    return _median([found for phase in phases if (found := value(phase)) is not None])


def _median(samples: Sequence[float]) -> float | None:
    return statistics.median(samples) if samples else None
