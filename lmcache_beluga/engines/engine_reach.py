"""The way of an engine's device to the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmcache_beluga.engines.gpu_pipeline import GpuPipeline
from lmcache_beluga.engines.reach import Reach
from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime

if TYPE_CHECKING:
    from lmcache_beluga.gpu.registration import Hold
    from lmcache_beluga.pool import Pool


class EngineReach(Reach):
    """One engine's device: a CPU, a GPU, or one that reaches nothing."""

    def __init__(
        self, pool: Pool, device: torch.device, drops_early: bool, everything: bool = False
    ) -> None:
        """``drops_early``: LMCache gives chunks back while the device still reads them.
        ``everything``: as of :class:`~lmcache_beluga.engines.reach.Reach`."""
        cuda = device.type == "cuda"
        self._drops_early = drops_early
        self._served = cuda or device.type == "cpu"
        if not self._served:
            logger.warning("chunks for %s are copied through LMCache's memory", device)
        index = device.index
        if index is None and cuda and torch.cuda.is_available():
            index = torch.cuda.current_device()  # of this thread; others begin with 0
        self._device = index or 0
        super().__init__(
            pool,
            (lambda: CudaRuntime(self._device)) if cuda else None,
            everything,
            "chunks are copied through LMCache's own memory",
        )
        self.pipeline = GpuPipeline(self._device) if cuda and self.possible else None
        """Moves chunks between the pool and a GPU that reaches it."""

    @property
    def possible(self) -> bool:
        return self._served and super().possible

    def covers(self, hold: Hold) -> bool:
        return self._served and super().covers(hold)

    def settle(self) -> None:
        """Waits until the device has read what LMCache has given back."""
        if self._drops_early and self._registration is not None:
            torch.cuda.synchronize(self._device)
