"""How much of the pool is used, and by whom, as LMCache's quotas and gauges want to know it."""

from __future__ import annotations

import threading
import time
from types import MappingProxyType

from lmcache.v1.distributed.l2_adapters.base import AdapterUsage

from lmcache_beluga.pool import Pool

_SHARE_OF_TIME = 0.05


class PoolUsage:
    """The pool's bytes by cache_salt, of all servers and hosts.

    Looked up in the pool itself, since others store and evict there too; as often as costs at most
    a twentieth of a CPU's time.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._usage: AdapterUsage | None = None
        self._stale_at = 0.0

    def now(self) -> AdapterUsage:
        """The usage now or a moment ago: for thousand chunks about 20 ms. Raises BelugaError."""
        with self._lock:
            start = time.monotonic()
            if self._usage is None or start >= self._stale_at:
                total, salts = self._pool.usage_by_salt()
                self._usage = AdapterUsage(
                    total_bytes_used=total,
                    total_capacity_bytes=self._pool.info.capacity,
                    bytes_by_cache_salt=MappingProxyType(salts),
                )
                end = time.monotonic()
                self._stale_at = end + (end - start) / _SHARE_OF_TIME
            return self._usage

    def changed(self) -> None:
        """This process has just removed chunks: who asks next wants to see that."""
        with self._lock:
            self._usage = None
