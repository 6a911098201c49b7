"""Whether the GPUs of an LMCache server can use the pool's memory where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.gpu.cuda_runtime import CudaRuntime
from lmcache_beluga.gpu.registration import Registration

if TYPE_CHECKING:
    from lmcache_beluga.gpu.registration import Hold, Runtime
    from lmcache_beluga.pool import Pool

_REASON = "chunks are copied through pinned memory of this server's own (--l1-size-gb), because "


class ServerReach:
    """The way of all GPUs of the machine to the pool: what is registered for one serves all."""

    def __init__(
        self, pool: Pool, runtime: Runtime | None = None, everything: bool = False
    ) -> None:
        """``runtime``: in place of CUDA's, for tests. ``everything``: have GPUs reach all of the
        pool soon, not what is used of it."""
        self._registration: Registration | None = None
        self._everything = runtime is None and not torch.cuda.is_available()
        if self._everything:
            return
        if pool.info.max_hosts > 1 and any(one.kind != "devdax" for one in pool.info.devices):
            logger.warning(
                _REASON + "another host of a pool of files may give memory back that a GPU of this "
                "one uses; pools on devices are used in place"
            )
            return
        try:
            self._registration = Registration(pool, runtime or _Calling(CudaRuntime(0)))
        except (OSError, RuntimeError) as error:
            logger.warning(_REASON + "it cannot be registered with CUDA: %s", error)
            return
        self._registration.begin_ahead(everything)

    @property
    def registered_bytes(self) -> int:
        """Bytes of the pool that GPUs reach by DMA."""
        return 0 if self._registration is None else self._registration.nbytes

    def covers(self, hold: Hold) -> bool:
        """Whether every device of this machine can use these bytes where they lie."""
        if self._everything:
            return True
        return self._registration is not None and self._registration.covers(hold)

    def close(self) -> None:
        """Before the pool is closed, when no kernel uses it any more. Idempotent."""
        if self._registration is not None:
            self._registration.close()


class _Calling:
    """A runtime that leaves the calling thread on the GPU that it found it on.

    A server's threads serve several GPUs, and register between two copies for one of them.
    """

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime

    def host_register(self, address: int, nbytes: int) -> None:
        device = torch.cuda.current_device()
        try:
            self._runtime.host_register(address, nbytes)
        finally:
            torch.cuda.set_device(device)

    def host_unregister(self, address: int) -> None:
        device = torch.cuda.current_device()
        try:
            self._runtime.host_unregister(address)
        finally:
            torch.cuda.set_device(device)
