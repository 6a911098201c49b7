"""Says why the pool refused chunks, and what helps."""

from __future__ import annotations

from lmcache_beluga.engines.trouble import TroubleLog, logger
from lmcache_beluga.pool import Pool

# The counter in Pool.stats(), and what helps.
_REASONS = {
    "refused_leased": "because everything in the pool is in use: make it larger (beluga.size)",
    "refused_no_space": "because the pool's file system is full: enlarge it (for /dev/shm in a "
    "container, --shm-size), or make the pool smaller (beluga.size)",
    "refused_busy": "because another process of this machine is stopped while it holds a lock",
}


def say_refused(pool: Pool, trouble: TroubleLog, count: int) -> None:
    """Log that ``count`` chunks were refused, unless that was said a moment ago."""
    if times := trouble.due("refused", count):
        stats = pool.stats()
        reasons = [f"{stats[name]} {why}" for name, why in _REASONS.items() if stats[name]]
        logger.warning(
            "the pool refused %d chunks since last reported, which LMCache will recompute when "
            "needed. All refusals of this host: %s",
            times,
            "; ".join(reasons),
        )
