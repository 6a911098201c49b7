"""The pool above LMCache's in-process remote backends: read first, and refilled from below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmcache.v1.storage_backend.abstract_backend import AllocatorBackendInterface
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

from lmcache_beluga.engines.inprocess import BelugaBackend
from lmcache_beluga.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

    from lmcache_beluga.engines.engine_reach import EngineReach


class BelugaFirstTier(BelugaBackend):
    """A BelugaBackend in the place of LMCache's CPU backend, to be named ``LocalCPUBackend``.

    LMCache asks its backends in the order in which it made them: CPU memory, disk, remote, plugins.
    A plugin named ``LocalCPUBackend`` keeps the CPU backend's place, before remote ones, and
    LMCache stores in it what a remote one has loaded. Remote backends go on using LMCache's CPU
    memory for their transfers, so ``max_local_cpu_size`` has to be above 0.

    To LMCache it is its hot cache: switching that off at run time (its HTTP interface) clears this
    engine's chunks.

    Raises UnsupportedError from its constructor where a GPU cannot reach the pool's memory.
    """

    use_hot = True

    def _connect(self, device: torch.device, prefault: bool) -> EngineReach:
        reach = super()._connect(device, prefault)
        if not reach.possible:
            reach.close()
            self._pool.close()
            raise UnsupportedError(
                "LMCache's GPU connectors need memory that is registered with CUDA, and the pool's "
                "is not: use BelugaBackend, under another name than LocalCPUBackend"
            )
        return reach

    def get_allocator_backend(self) -> AllocatorBackendInterface:
        """This backend: by its name, LMCache allocates here what it stores."""
        return self


# LMCache writes back only to what is a LocalCPUBackend, of which it then uses what both have.
LocalCPUBackend.register(BelugaFirstTier)
