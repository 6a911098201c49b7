"""What this project holds itself to, and whether it does here."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from .report_backends import POOLS, PRIVATE, RECOMPUTE
from .report_rows import Row, Rows, is_all_hit, is_burst, is_populate

_SERVER = "beluga-mp"


@dataclass(frozen=True)
class Bar:
    """One comparison.

    Attributes:
        what: it is about.
        phase: in which it was measured.
        value, limit: as text, with the unit.
        holds: None where there is no limit.
        note: what to know when reading it.
    """

    what: str
    phase: str
    value: str
    limit: str = ""
    holds: bool | None = None
    note: str = ""


def bars(rows: Rows, bytes_per_token: int | None, bus_gbps: float | None) -> list[Bar]:
    """All that can be told from these rows.

    Args:
        bytes_per_token: of KV, in all layers.
        bus_gbps: what the bus between memory and GPU carries, in 1e9 bytes per second.
    """
    found = [*_hits(rows), *_populates(rows), *_nothing_reused(rows)]
    if bytes_per_token and bus_gbps:
        found += [*_floors(rows, bytes_per_token, bus_gbps), *_bus(rows, bytes_per_token, bus_gbps)]
    return found


def _hits(rows: Rows) -> Iterator[Bar]:
    for row, other in _pairs(rows, PRIVATE):
        if is_all_hit(row) and row.workload == "documents":
            yield _ratio("all-hit TTFT", row, other, row.ttft_p50, other.ttft_p50, 1.0)
            yield _ratio("all-hit TTFT, p99", row, other, row.ttft_p99, other.ttft_p99, None)


def _populates(rows: Rows) -> Iterator[Bar]:
    """In process, LMCache stores while vLLM waits: there the limit is LMCache's own memory."""
    for row in rows.of(*PRIVATE, *PRIVATE.values()):
        none = rows.beside(row, RECOMPUTE)
        if none is None or not is_populate(row):
            continue
        private = rows.beside(row, PRIVATE.get(row.backend, ""))
        for part, mine, base in (
            ("p50", row.ttft_p50, none.ttft_p50),
            ("p99", row.ttft_p99, none.ttft_p99),
        ):
            if mine is None or not base:
                continue
            limit: float | None = None
            if row.backend == _SERVER:
                limit = 0.015
            elif row.backend in POOLS and private is not None:
                theirs = private.ttft_p50 if part == "p50" else private.ttft_p99
                limit = theirs / base - 1 if theirs is not None else None
            value = mine / base - 1
            yield Bar(
                f"populate TTFT, {part}: {row.backend} above {RECOMPUTE}",
                _phase(row),
                _percent(value),
                "" if limit is None else f"<= {_percent(limit)}",
                None if limit is None else value <= limit,
                _note(row, none),
            )


def _nothing_reused(rows: Rows) -> Iterator[Bar]:
    compared = [*PRIVATE.items(), (_SERVER, "cpu")]
    for pool, private in compared:
        for row in rows.of(pool, workload="reuse"):
            other = rows.beside(row, private)
            if row.axes.get("reuse") == 0 and other is not None:
                yield _ratio("TTFT without reuse", row, other, row.ttft_p50, other.ttft_p50, 1.02)


def _floors(rows: Rows, bytes_per_token: int, bus_gbps: float) -> Iterator[Bar]:
    for row in rows.of(*PRIVATE, *PRIVATE.values()):
        tokens = row.axes.get("tokens")
        documents = row.workload == "documents" and is_all_hit(row)
        if not (documents and tokens and row.ttft_p50 is not None):
            continue
        floor = tokens * bytes_per_token / (bus_gbps * 1e9)
        value, limited = row.ttft_p50 / floor, row.backend in POOLS
        holds, note = (value <= 1.25 if limited else None), ""
        if value < 1:  # something that was not there has been computed with
            holds, note = False, "faster than the bus: not everything was loaded"
        yield Bar(
            f"all-hit TTFT, as a multiple of the bus floor: {row.backend}",
            _phase(row),
            f"{value:.2f}x of {floor * 1e3:.1f} ms",
            "<= 1.25x" if limited else "",
            holds,
            note,
        )


def _bus(rows: Rows, bytes_per_token: int, bus_gbps: float) -> Iterator[Bar]:
    """Bytes of what was loaded, over the time from the first request to the last first token."""
    for row in rows:
        value = _bus_use(row, bytes_per_token, bus_gbps) if is_burst(row) else None
        if value is not None:
            limited = row.backend == _SERVER
            yield Bar(
                f"bus use: {row.backend}",
                _phase(row),
                _percent(value, ""),
                ">= 85 %" if limited else "",
                value >= 0.85 if limited else None,
            )


def _bus_use(row: Row, bytes_per_token: int, bus_gbps: float) -> float | None:
    uses = []
    for phase in row.repeats:
        good = phase.answered
        if not good or not phase.loaded_tokens:
            continue
        took = max(a.sent_s + a.ttft_s for a in good) - min(a.sent_s for a in good)
        uses.append(phase.loaded_tokens * bytes_per_token / took / (bus_gbps * 1e9))
    return statistics.median(uses) if uses else None


def _pairs(rows: Rows, pairs: dict[str, str]) -> Iterator[tuple[Row, Row]]:
    for row in rows.of(*pairs):
        other = rows.beside(row, pairs[row.backend])
        if other is not None:
            yield row, other


def _ratio(
    what: str, row: Row, other: Row, mine: float | None, theirs: float | None, most: float | None
) -> Bar:
    what = f"{what}: {row.backend} / {other.backend}"
    if mine is None or not theirs:
        return Bar(what, _phase(row), "no answers", note=_note(row, other))
    value = mine / theirs
    return Bar(
        what,
        _phase(row),
        f"{value:.3f}x ({mine * 1e3:.1f} / {theirs * 1e3:.1f} ms)",
        "" if most is None else f"<= {most:.2f}x",
        None if most is None else value <= most,
        _note(row, other),
    )


def _percent(part: float, sign: str = "+") -> str:
    return f"{part * 100:{sign}.1f} %"


def _phase(row: Row) -> str:
    return f"{row.workload}, {row.name}"


def _note(row: Row, other: Row) -> str:
    """Whether the two differ by more than they vary, and what was flagged."""
    notes = [f"{one.backend}: {flag}" for one in (row, other) for flag in one.flags]
    if row.spread and other.spread and row.spread.overlaps(other.spread):
        notes.insert(0, "within the spread")
    return "; ".join(notes)
