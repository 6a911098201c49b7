"""The metric that says whether an engine has its pool, next to LMCache's own."""

from __future__ import annotations

import functools

from prometheus_client import Gauge

NAME = "lmcache_beluga:attached"


def set_attached(model: str, rank: int, attached: bool) -> None:
    """Whether this process, a rank of an engine of ``model``, uses its pool.

    vLLM tells it at /metrics, as it does LMCache's metrics: if PROMETHEUS_MULTIPROC_DIR is set.
    """
    _gauge().labels(model_name=model, worker_id=str(rank)).set(int(attached))


@functools.cache
def _gauge() -> Gauge:
    return Gauge(
        NAME,
        "1 if this rank uses its pool, 0 if it goes on without",
        labelnames=("model_name", "worker_id"),
        multiprocess_mode="livemostrecent",
    )
