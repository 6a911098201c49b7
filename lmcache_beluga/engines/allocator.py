"""LMCache's memory allocator over the pool: its objects are slots, so a store needs no copy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lmcache.v1.memory_management import MemoryAllocatorInterface, MemoryFormat, MemoryObj

from lmcache_beluga.engines.layout import Layout
from lmcache_beluga.engines.memory_obj import PoolMemoryObj
from lmcache_beluga.engines.trouble import TroubleLog, logger
from lmcache_beluga.errors import BelugaError
from lmcache_beluga.reservation import Reservation
from lmcache_beluga.view import View

if TYPE_CHECKING:
    from lmcache_beluga.engines.engine_reach import EngineReach
    from lmcache_beluga.engines.gpu_pipeline import GpuPipeline
    from lmcache_beluga.pool import Pool

WAIT_S = 5.0
WAIT_STEP_S = 0.05


class PoolAllocator(MemoryAllocatorInterface):  # type: ignore[misc]
    """Makes PoolMemoryObj objects, over free slots for stores and over leased chunks for reads,
    and takes back what they held."""

    def __init__(self, pool: Pool, trouble: TroubleLog, reach: EngineReach, hooked: bool) -> None:
        """``hooked``: LMCache's transfers of these objects come by here, see lmcache_hooks."""
        self.hooked = hooked
        self._pool = pool
        self._reach = reach
        self._trouble = trouble
        self._closed = False
        self.lost_leases = 0
        """Objects whose lease had ended before they were read to the end."""

    @property
    def pipeline(self) -> GpuPipeline | None:
        """What moves chunks faster than LMCache's connectors do; None on a CPU."""
        return self._reach.pipeline

    def allocate(
        self,
        shapes: torch.Size | Sequence[torch.Size],
        dtypes: torch.dtype | Sequence[torch.dtype],
        fmt: MemoryFormat = MemoryFormat.KV_2LTD,
        allocator_type: str | None = None,
        *,
        wait_s: float = 0.0,
    ) -> MemoryObj | None:
        """A slot to write to, which becomes a chunk when LMCache puts it under a key.

        None when the pool has no room. Chunks in use make room when they are released, so
        ``wait_s`` seconds (at most WAIT_S) are spent waiting for one.
        """
        layout = Layout.of(shapes, dtypes, fmt)
        deadline = time.monotonic() + min(wait_s, WAIT_S)
        while True:
            reservation = self._reserve(layout.nbytes)
            if reservation is not None:
                return PoolMemoryObj(reservation, layout, self._give_up, self)
            if time.monotonic() >= deadline or not self._reach.possible:
                return None
            time.sleep(WAIT_STEP_S)

    def batched_allocate(
        self,
        shapes: torch.Size | Sequence[torch.Size],
        dtypes: torch.dtype | Sequence[torch.dtype],
        batch_size: int,
        fmt: MemoryFormat = MemoryFormat.KV_2LTD,
        allocator_type: str | None = None,
        *,
        wait_s: float = 0.0,
    ) -> list[MemoryObj] | None:
        """``batch_size`` slots, or None when there is no room for all of them."""
        objects: list[MemoryObj] = []
        for _ in range(batch_size):
            obj = self.allocate(shapes, dtypes, fmt, wait_s=wait_s)
            if obj is None:
                self.batched_free(objects)
                return None
            objects.append(obj)
        return objects

    def over(self, view: View, layout: Layout) -> PoolMemoryObj:
        """The object for a leased chunk; the lease ends with its last reference."""
        return PoolMemoryObj(view, layout, self._end_lease, self)

    def keep_reading(self, obj: PoolMemoryObj, view: View) -> None:
        """A slot was committed: what was a Reservation now is ``view``, a lease on the chunk."""
        obj.swap_hold(view, self._end_lease)

    def free(self, memory_obj: MemoryObj, allocator_type: str | None = None) -> None:
        memory_obj.invalidate()

    def batched_free(
        self,
        memory_objs: list[MemoryObj],
        allocator_type: str | None = None,
        update_stats: bool = True,
    ) -> None:
        for obj in memory_objs:
            obj.invalidate()

    def close(self) -> None:
        self._closed = True

    def memcheck(self) -> bool:
        """Whether the pool is still there."""
        return self._closed or not self._pool.closed

    def _reserve(self, nbytes: int) -> Reservation | None:
        try:
            reservation = self._pool.reserve(nbytes)
        except BelugaError as error:
            self._trouble.failed("allocating in the pool", error)
            return None
        if reservation is not None and not self._reach.covers(reservation):
            reservation.abort()
            return None
        return reservation

    def _give_up(self, reservation: Reservation) -> None:
        reservation.abort()

    def judge(self, obj: PoolMemoryObj) -> bool:
        """Whether the bytes that were read from ``obj`` until now are the chunk's.

        The verdict is the caller's from here on: the end of the lease takes no other.
        """
        hold = obj.hold
        intact = hold is not None and (isinstance(hold, Reservation) or hold.valid())
        if not intact and not self._closed:
            self._count_lost("LMCache counts it as not loaded, so that it is computed again")
        if isinstance(hold, View):
            obj.swap_hold(hold, _release)
        return intact

    def _end_lease(self, view: View) -> None:
        # Where nobody asked for a verdict after the transfer, all that can be done is to say so.
        self._reach.settle()
        if not self._closed and not view.valid():
            self._count_lost("the request it was loaded for may have seen wrong KV")
        view.release()

    def _count_lost(self, consequence: str) -> None:
        self.lost_leases += 1
        if times := self._trouble.due(consequence):
            logger.error(
                "a lease on a chunk was lost while LMCache read it (%d times since last "
                "reported): %s. The process was stopped for longer than beluga.lease or "
                "beluga.dead_after, or the pool was formatted or truncated under it",
                times,
                consequence,
            )


def _release(view: View) -> None:
    view.release()
