"""The way of all GPUs of an LMCache server to the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmcache_beluga.engines.reach import Reach
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime

if TYPE_CHECKING:
    from lmcache_beluga.gpu.registration import Runtime
    from lmcache_beluga.pool import Pool


class ServerReach(Reach):
    """What is registered for one GPU serves all."""

    def __init__(
        self, pool: Pool, runtime: Runtime | None = None, everything: bool = False
    ) -> None:
        """``runtime``: in place of CUDA's, for tests. ``everything``: as of
        :class:`~lmcache_beluga.engines.reach.Reach`."""
        concerned = runtime is not None or torch.cuda.is_available()
        super().__init__(
            pool,
            (lambda: runtime or CudaRuntime(0)) if concerned else None,
            everything,
            "chunks are copied through pinned memory of this server's own (--l1-size-gb)",
        )
