"""Loads of LMCache's server in two lanes, so that the bus is busy while a kernel spreads KV.

LMCache 0.5.6 copies a few chunks to the GPU's memory, has a kernel spread them, copies the next
few, and so on, all in one stream: the bus stands still whenever a kernel runs. Here the first half
of a prompt's chunks goes through one stream and one half of LMCache's staging memory, the second
half through the others:

    lane 0   copy copy | spread | copy copy | spread | ...
    lane 1   copy copy - - copy copy | spread | copy copy | ...

LMCache's own code plans and launches what is in a lane. The stream of the engine's cache waits for
both before it goes on, so that nothing else of LMCache's changes.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lmcache.v1.multiprocess import object_group_transfer

from lmcache_beluga.engines.tested_shape import takes
from lmcache_beluga.engines.trouble import logger

LANES = 2
FEWEST_CHUNKS = 2 * LANES
"""Of a load that is divided: with fewer, a lane has nothing to overlap with."""

_PLAN = "_run_object_group_transfer_plan"
_MARK = "loads_in_lanes"
_PARAMETERS = (
    "cache_context",
    "block_ids_gpu",
    "memory_objs",
    "object_group_id",
    "batch_size",
    "skip_first_n_tokens",
    "direction",
    "transfer_key",
)


class _Lane:
    """An engine's cache as LMCache sees it, with a part of its staging memory only."""

    def __init__(self, cache_context: Any, number: int, slots: int) -> None:
        self._context = cache_context
        self._first = number * slots
        self.max_batch_size = slots

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def get_temp_kernel_group_buffer(self, slot: int, kernel_group: int) -> torch.Tensor:
        buffer: torch.Tensor = self._context.get_temp_kernel_group_buffer(
            self._first + slot, kernel_group
        )
        return buffer

    def get_temp_object_group_buffer(self, slot: int, object_group: int) -> torch.Tensor:
        buffer: torch.Tensor = self._context.get_temp_object_group_buffer(
            self._first + slot, object_group
        )
        return buffer


def load_in_lanes() -> None:
    """Has servers in this process load in lanes from now on. Idempotent.

    Says so, and changes nothing, when LMCache does not plan its transfers as it did when this was
    tested.
    """
    stock = getattr(object_group_transfer, _PLAN, None)
    if getattr(stock, _MARK, False):
        return
    if not takes(stock, _PARAMETERS):
        logger.warning("LMCache's server plans its transfers in another way: loads use one stream")
        return
    to_gpu = object_group_transfer.lmcache_native.TransferDirection.H2D
    streams: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()

    @functools.wraps(stock)
    def plan(
        cache_context: Any,
        block_ids_gpu: list[Any],
        memory_objs: Any,
        object_group_id: int,
        batch_size: int,
        skip_first_n_tokens: int,
        direction: Any,
        *,
        transfer_key: str,
    ) -> None:
        move = functools.partial(
            stock, object_group_id=object_group_id, direction=direction, transfer_key=transfer_key
        )
        bounds = (
            _bounds(cache_context, memory_objs, object_group_id, skip_first_n_tokens)
            if direction == to_gpu and _has_streams(cache_context)
            else None
        )
        if bounds is None:
            move(
                cache_context,
                block_ids_gpu,
                memory_objs,
                batch_size=batch_size,
                skip_first_n_tokens=skip_first_n_tokens,
            )
            return
        if cache_context not in streams:
            streams[cache_context] = [torch.cuda.Stream(cache_context.device) for _ in range(LANES)]
        slots = cache_context.max_batch_size // LANES
        chunk_tokens = cache_context.lmcache_tokens_per_chunk
        engine_stream = torch.cuda.current_stream(cache_context.device)
        try:
            for number, stream in enumerate(streams[cache_context]):
                begin, end = bounds[number : number + 2]
                stream.wait_stream(engine_stream)
                with torch.cuda.stream(stream):
                    move(
                        _Lane(cache_context, number, slots),
                        _block_ids(cache_context, block_ids_gpu, object_group_id, begin, end),
                        memory_objs[begin:end],
                        batch_size=slots,
                        skip_first_n_tokens=max(0, skip_first_n_tokens - begin * chunk_tokens),
                    )
        finally:
            # Also after an error: LMCache takes what was launched for done when this stream is.
            for stream in streams[cache_context]:
                engine_stream.wait_stream(stream)

    setattr(plan, _MARK, True)
    setattr(object_group_transfer, _PLAN, plan)


def _has_streams(cache_context: Any) -> bool:
    return bool(cache_context.device.type == "cuda")


def _bounds(
    cache_context: Any, memory_objs: Any, object_group_id: int, skipped_tokens: int
) -> list[int] | None:
    """Where each lane's chunks begin, and where the last one's end; None: one lane for all.

    Of a sliding window, LMCache skips objects by how many there are: that is left to it.
    """
    if cache_context.max_batch_size < LANES:
        return None
    attention = cache_context.kv_layer_groups_manager.get_attn_desc()
    if not attention.is_full_attention(object_group_id):
        return None
    first = skipped_tokens // cache_context.lmcache_tokens_per_chunk
    left = len(memory_objs) - first
    if left < FEWEST_CHUNKS:
        return None
    return [0, *(first + left * number // LANES for number in range(1, LANES)), len(memory_objs)]


def _block_ids(
    cache_context: Any, block_ids: list[Any], object_group_id: int, begin: int, end: int
) -> list[Any]:
    """The blocks of these chunks. They are as many per chunk in all chunks of a kernel group."""
    manager = cache_context.kv_layer_groups_manager
    chosen = list(block_ids)
    for group in manager.object_groups[object_group_id].kernel_group_indices:
        tokens = min(
            cache_context.lmcache_tokens_per_chunk, manager.get_subchunk_sw_size_tokens(group)
        )
        blocks = cache_context.calculate_num_blocks(tokens, group)
        chosen[group] = block_ids[group][begin * blocks : end * blocks]
    return chosen
