"""How LMCache's server copies chunks to a GPU: block by block, or as wholes that a kernel spreads.

Block by block, the copy engine does everything: LMCache 0.5.6 hands it one entry per layer and
block of the paged KV. A thread takes 0.5 to 1 µs to hand over an entry, so that 4 GiB in entries of
32 KiB, vLLM's of 16 tokens for common models, may take longer to hand over than to copy. As wholes,
a chunk is one entry to the GPU's memory, and a kernel spreads it. A kernel of the server's takes
turns with vLLM's, another process: that costs vLLM's decoding time, and the load some bandwidth
(``l1_lanes``).

On an H200 (``integration/benchmarks/results/h200-server-copies.txt``; GB/s of 55.3 that one pinned
copy gets, and milliseconds in which 4 GiB are handed over, whatever the order of blocks):

                              GPU else idle          while vLLM decodes
    entries of            block by block  as wholes  block by block  as wholes
     32 KiB (16 tokens)    54.2, 65 ms     53.3       53.8            52.1
     64 KiB (32 tokens)    54.4, 51 ms                54.1
    128 KiB (64 tokens)    54.4, 26 ms                54.0
    256 KiB (128 tokens)   54.5,  9 ms

Stores are left as they are. Nobody waits for them, and a kernel that gathers KV for them takes more
of the GPU's time from the prompt that is being computed than the copy engine does.
"""

from __future__ import annotations

from typing import Any

from lmcache.v1.multiprocess import object_group_transfer

from lmcache_beluga.engines.tested_shape import takes
from lmcache_beluga.engines.trouble import logger
from lmcache_beluga.reservation import Reservation

SMALLEST_ENTRY = 64 << 10
"""Bytes, to be copied block by block: on the bus for longer than handing over takes."""
_PARAMETERS = ("cache_context", "object_group_id", "memory_objs", "block_ids_host")


def copy_small_blocks_as_wholes() -> None:
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
