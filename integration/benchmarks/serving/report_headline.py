"""This project's pool against each remote tier, next to what the paper says of its own."""

from __future__ import annotations

from dataclasses import dataclass

from .report_backends import POOLS, REMOTE
from .report_rows import Row, Rows, is_all_hit, is_burst

#: The paper's headline (arXiv 2511.20172): time to the first token, and throughput, of hits.
TTFT_LOWER = 0.896
THROUGHPUT = 7.35


@dataclass(frozen=True)
class Comparison:
    """One phase. Attributes are None where one side was not measured, or failed.

    Attributes:
        lower: part by which the pool's median TTFT is below the tier's; negative: above.
        throughput: the pool's requests per second, as a multiple of the tier's.
        ttft_holds, throughput_holds: the paper's claim; None where it claims nothing.
    """

    pool: Row
    tier: Row
    lower: float | None
    throughput: float | None
    ttft_holds: bool | None
    throughput_holds: bool | None


def comparisons(rows: Rows) -> list[Comparison]:
    """Every phase that both have, not only those that look good.

    What the paper claims is about hits: TTFT is held to it where all hits come one at a time, and
    throughput where many come at once.
    """
    return [
        _comparison(row, tier)
        for pool in POOLS
        for remote in REMOTE
        for row in rows.of(pool)
        if "decodes" not in row.axes and (tier := rows.beside(row, remote)) is not None
    ]


def _comparison(pool: Row, tier: Row) -> Comparison:
    lower = throughput = None
    if pool.ttft_p50 is not None and tier.ttft_p50:
        lower = 1 - pool.ttft_p50 / tier.ttft_p50
    if pool.requests_per_s is not None and tier.requests_per_s:
        throughput = pool.requests_per_s / tier.requests_per_s
    documents = pool.workload in ("documents", "burst")
    return Comparison(
        pool,
        tier,
        lower,
        throughput,
        lower >= TTFT_LOWER if lower is not None and documents and is_all_hit(pool) else None,
        throughput >= THROUGHPUT
        if throughput is not None and documents and is_burst(pool)
        else None,
    )
