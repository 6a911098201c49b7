"""Takes back what LMCache's server has stored below the pool while it lost the lease on a chunk.

LMCache 0.5.6 keeps chunks locked while its L2 adapters store them, and does not ask afterwards
whether that lasted. A server that stood still meanwhile for longer than its leases last, or an
adapter that took longer than the server's read TTL, may have put another chunk's bytes under this
one's key, where they outlive the pool and every host finds them. Such a store is deleted again.
"""

from __future__ import annotations

import functools
from typing import Any

from lmcache.v1.distributed.error import L1Error
from lmcache.v1.distributed.storage_controllers.store_controller import StoreController

from lmcache_beluga.engines.tested_shape import takes
from lmcache_beluga.engines.trouble import logger

_FINALIZE = "_finalize_store"
_PARAMETERS = ("self", "task_key", "task")


def take_back_lost_stores() -> None:
    """Has servers in this process do so from now on.

    Says so, and changes nothing, when LMCache does not store as it did when this was tested.
    """
    stock = getattr(StoreController, _FINALIZE, None)
    if not takes(stock, _PARAMETERS):
        logger.warning(
            "LMCache's server stores below its L1 in another way: what it stores after its lease "
            "was lost stays there"
        )
        return

    @functools.wraps(stock)
    def finalize(self: Any, task_key: Any, task: Any) -> None:
        # Before LMCache unlocks them. A server that stands still from here on has stored.
        found = self._l1_manager.unsafe_read(task.read_locked_keys)
        lost = sum(error is not L1Error.SUCCESS for error, _ in found.values())
        stock(self, task_key, task)
        if lost:
            logger.error(
                "%d of %d chunks changed while the L2 adapter %s stored them, and all of them are "
                "deleted there, if it can delete. This server stood still for longer than "
                "beluga.lease or beluga.dead_after, or the adapter took longer than the read TTL",
                lost,
                len(task.keys),
                task.adapter_index,
            )
            self._l2_adapters[task.adapter_index].delete(list(task.keys))

    setattr(StoreController, _FINALIZE, finalize)
