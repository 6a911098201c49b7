"""Whether LMCache's device can use the pool's memory where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmcache_beluga.engines.gpu_pipeline import GpuPipeline
from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime
from lmcache_beluga.gpu.registration import Registration

if TYPE_CHECKING:
    from lmcache_beluga.pool import Pool, Reservation, View


class Reach:
    """The device's way to the pool: the CPU reaches all of it, a GPU what is registered with it."""

    def __init__(
        self, pool: Pool, device: torch.device, drops_early: bool, everything: bool = False
    ) -> None:
        """``drops_early``: LMCache gives chunks back while the device still reads them.
        ``everything``: have the GPU reach all of the pool soon, not what is used of it."""
        self._drops_early = drops_early
        self._registration: Registration | None = None
        self.pipeline: GpuPipeline | None = None
        """Moves chunks between the pool and a GPU that reaches it."""
        self._everything = device.type == "cpu"
        if device.type != "cuda":
            if not self._everything:
                logger.warning("chunks for %s are copied through LMCache's memory", device)
            return
        if pool.info.max_hosts > 1 and any(one.kind != "devdax" for one in pool.info.devices):
            logger.warning(
                "in a pool of files another host may give memory back that a GPU of this one uses, "
                "so chunks are copied through LMCache's own; pools on devices are used in place"
            )
            return
        index = device.index
        if index is None and torch.cuda.is_available():
            index = torch.cuda.current_device()  # of this thread; others begin with 0
        self._device = index or 0
        try:
            self._registration = Registration(pool, CudaRuntime(self._device))
        except (OSError, RuntimeError) as error:
            logger.warning(
                "the pool's memory cannot be registered with CUDA, so chunks are copied through "
                "LMCache's own: %s",
                error,
            )
            return
        self._registration.begin_ahead(everything)
        self.pipeline = GpuPipeline(self._device)

    @property
    def possible(self) -> bool:
        """Whether the device may reach the pool; False once it was refused."""
        if self._everything:
            return True
        return self._registration is not None and not self._registration.refused

    def covers(self, hold: View | Reservation) -> bool:
        """Whether the device can use these bytes where they lie."""
        if self._everything:
            return True
        return self._registration is not None and self._registration.covers(hold)

    def settle(self) -> None:
        """Waits until the device has read what LMCache has given back."""
        if self._drops_early and self._registration is not None:
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """To be called before the pool is closed, when no kernel uses it any more."""
        if self._registration is not None:
            self._registration.close()
