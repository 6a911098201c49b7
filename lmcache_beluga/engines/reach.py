"""What of the pool GPUs can use where it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.gpu.registration import Registration

if TYPE_CHECKING:
    from lmcache_beluga.gpu.registration import Hold, Runtime
    from lmcache_beluga.pool import Pool


class Reach:
    """The CPU reaches all of the pool, a GPU what is registered with CUDA: for one, for all."""

    def __init__(
        self, pool: Pool, runtime: Callable[[], Runtime] | None, everything: bool, instead: str
    ) -> None:
        """``runtime``: CUDA's, or None where no GPU is concerned. ``everything``: have GPUs reach
        all of the pool soon, not what is used of it. ``instead``: what happens to chunks that they
        do not reach, for the log."""
        self._all = runtime is None
        self._registration: Registration | None = None
        if runtime is None:
            return
        if pool.info.max_hosts > 1 and any(one.kind != "devdax" for one in pool.info.devices):
            logger.warning(
                "%s: in a pool of files another host may give memory back that a GPU of this one "
                "uses; pools on devices are used in place",
                instead,
            )
            return
        try:
            self._registration = Registration(pool, runtime())
        except (OSError, RuntimeError) as error:
            logger.warning("%s: the pool cannot be registered with CUDA: %s", instead, error)
            return
        self._registration.begin_ahead(everything)

    @property
    def possible(self) -> bool:
        """Whether there is a way to the pool; False once it was refused."""
        return self._all or (self._registration is not None and not self._registration.refused)

    @property
    def registered_bytes(self) -> int:
        """Bytes of the pool that GPUs reach by DMA."""
        return 0 if self._registration is None else self._registration.nbytes

    def covers(self, hold: Hold) -> bool:
        """Whether every device concerned can use these bytes where they lie."""
        return self._all or (self._registration is not None and self._registration.covers(hold))

    def close(self) -> None:
        """Before the pool is closed, when no kernel uses it any more. Idempotent."""
        if self._registration is not None:
            self._registration.close()
