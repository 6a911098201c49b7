"""The gauges of LMCache's own L1, of the shared one."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from lmcache.v1.mp_observability.otel_init import register_gauge

if TYPE_CHECKING:
    from lmcache_beluga.engines.l1 import BelugaL1
    from lmcache_beluga.pool import Pool

Value = Callable[["BelugaL1", "Pool"], float]

_GAUGES: tuple[tuple[str, str, Value], ...] = (
    (
        "l1_memory_usage_bytes",
        "Bytes currently held in L1 cache: this host's chunks in the pool",
        lambda l1, pool: float(pool.stats()["bytes_used"]),
    ),
    (
        "l1_usage_ratio",
        "L1 used/total ratio (0.0 to 1.0): this host's chunks against the whole pool",
        lambda l1, pool: pool.stats()["bytes_used"] / pool.info.capacity,
    ),
    (
        "l1_staging_bytes",
        "Bytes held by L1 staging objects (write-reserved, not admitted)",
        lambda l1, pool: float(l1.get_staging_memory_usage()),
    ),
)


def register_gauges(l1: BelugaL1, pool: Pool) -> None:
    """LMCache's names, so that dashboards go on working; they end with ``l1``.

    LMCache keeps what it asks for ever: it must not keep a closed pool mapped.
    """
    targets = weakref.ref(l1), weakref.ref(pool)
    for name, description, value in _GAUGES:
        register_gauge(
            "lmcache.l1_manager",
            f"lmcache_mp.{name}",
            description,
            functools.partial(_observe, *targets, value),
        )


def _observe(
    of_l1: weakref.ref[BelugaL1], of_pool: weakref.ref[Pool], value: Value
) -> list[tuple[float, dict[str, object]]]:
    l1, pool = of_l1(), of_pool()
    if l1 is None or pool is None or pool.closed:
        return []
    return [(value(l1, pool), {"l1_tag": l1.config.tag, "backend": "beluga"})]
