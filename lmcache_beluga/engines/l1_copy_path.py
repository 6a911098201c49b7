"""How LMCache's server copies chunks to a GPU: as wholes, not block by block.

LMCache 0.5.6 hands the copy engine one entry per layer and block of the paged KV, of 16 or 32 KiB
for common models; its other way is one copy per chunk to the GPU's memory, where a kernel spreads
it. On an H200, entries of less than 1 MiB do not reach the speed of the bus: 4.7 GB/s in entries
of 16 KiB, 30 of 64 KiB, 53 of 1 MiB, where whole chunks get 54 (``beluga bench gpu``).

Stores are left as they are. Nobody waits for them, and a kernel that gathers KV for them takes more
of the GPU's time from the prompt that is being computed than the copy engine does.
"""

from __future__ import annotations

from typing import Any

from lmcache.v1.multiprocess import object_group_transfer

from lmcache_beluga.engines.tested_shape import takes
from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.reservation import Reservation

SMALLEST_ENTRY = 1 << 20
_PARAMETERS = ("cache_context", "object_group_id", "memory_objs", "block_ids_host")


def prefer_whole_chunks() -> None:
    """Has servers in this process copy whole chunks where entries would be small.

    Says so, and changes nothing, when LMCache does not choose as it did when this was tested.
    """
    stock = getattr(object_group_transfer, "direct_transfer_supported", None)
    if not takes(stock, _PARAMETERS):
        logger.warning("LMCache's server chooses how to copy chunks, which may be block by block")
        return

    def direct_transfer_supported(
        cache_context: Any, object_group_id: int, memory_objs: Any, block_ids_host: Any
    ) -> bool:
        loads = not any(_is_written(obj) for obj in memory_objs)
        if loads and _entry(cache_context, object_group_id) < SMALLEST_ENTRY:
            return False
        return bool(stock(cache_context, object_group_id, memory_objs, block_ids_host))

    object_group_transfer.direct_transfer_supported = direct_transfer_supported


def _entry(cache_context: Any, object_group_id: int) -> int:
    """Bytes of the smallest block of a layer's keys or values."""
    group = cache_context.kv_layer_groups_manager.object_groups[object_group_id]
    shapes = [cache_context.get_shape_desc(index) for index in group.kernel_group_indices]
    return min(int(one.bs * one.nh * one.hs * one.element_size) for one in shapes)


def _is_written(obj: Any) -> bool:
    return isinstance(getattr(obj, "hold", None), Reservation)
