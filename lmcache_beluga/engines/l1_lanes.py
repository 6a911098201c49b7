"""Loads of LMCache's server in lanes, so that the bus is busy while kernels spread KV, or wait.

LMCache 0.5.6 copies a few chunks to the GPU's memory, has a kernel spread them, copies the next
few, and so on, all in one stream: the bus stands still whenever a kernel runs. Here a prompt's
chunks are divided, and each part goes through a stream and staging memory of its own:

    lane 0   copy | spread       | copy | spread | ...
    lane 1        | copy | spread       | copy | spread ...
    lane 2               | copy | spread       | copy ...

The server's kernels are another process's than vLLM's, so that the two take turns on the GPU's
processors: a kernel of a tenth of a millisecond may wait some milliseconds for its turn while vLLM
decodes, and each turn costs vLLM time as well. So lanes have staging memory for what the bus
carries meanwhile, and few kernels spread many chunks. With LMCache's four chunks of staging memory
alone, a prompt of 32 K tokens took 105 ms to load on an H200 while another was decoded, and 83 ms
while none was.

LMCache's own code plans and launches what is in a lane. The stream of the engine's cache waits for
all lanes before it goes on, so that nothing else of LMCache's changes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from lmcache.v1.multiprocess import object_group_transfer

from lmcache_beluga.engines.tested_shape import takes
from lmcache_beluga.engines.trouble import logger

LANES = 4
FEWEST_CHUNKS = 2 * LANES
"""Of a load that is divided: with fewer, a lane has nothing to overlap with."""
STAGING_BYTES = 512 << 20
"""At most, of all lanes: what a bus of 55 GB/s carries in 10 ms. LMCache's own is part of it."""
_CHUNKS_OF_A_KERNEL = 4  # LMCache's kernels take no more

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


class _Slot(Protocol):
    """Staging memory for one chunk."""

    def kernel_group(self, number: int) -> torch.Tensor: ...

    def object_group(self, number: int) -> torch.Tensor: ...


class _LMCachesSlot:
    """One of those that every cache of LMCache has."""

    def __init__(self, cache_context: Any, number: int) -> None:
        self._context, self._number = cache_context, number

    def kernel_group(self, number: int) -> torch.Tensor:
        buffer: torch.Tensor = self._context.get_temp_kernel_group_buffer(self._number, number)
        return buffer

    def object_group(self, number: int) -> torch.Tensor:
        buffer: torch.Tensor = self._context.get_temp_object_group_buffer(self._number, number)
        return buffer


class _OwnSlot:
    """Memory besides, laid out as LMCache's first slot is.

    Args:
        memory: flat, of bytes.
        object_group_of: each kernel group.
    """

    def __init__(
        self, cache_context: Any, memory: torch.Tensor, object_group_of: dict[int, int]
    ) -> None:
        self._first, self._memory = _LMCachesSlot(cache_context, 0), memory
        self._object_group_of = object_group_of

    def kernel_group(self, number: int) -> torch.Tensor:
        model = self._first.kernel_group(number)
        whole = self._first.object_group(self._object_group_of[number])
        begin = model.data_ptr() - whole.data_ptr()
        return self._memory[begin : begin + model.nbytes].view(model.dtype).view(model.shape)

    def object_group(self, number: int) -> torch.Tensor:
        return self._memory[: self._first.object_group(number).nbytes]


@dataclass(frozen=True)
class _Kept:
    """What lanes of a cache have besides LMCache's staging memory. It must not hold the cache."""

    streams: list[Any]
    memory: list[torch.Tensor]

    @staticmethod
    def of(cache_context: Any) -> _Kept:
        """Takes memory, as far as the GPU has it, and makes streams."""
        groups = range(len(cache_context.kv_layer_groups_manager.object_groups))
        size = max(cache_context.get_temp_object_group_buffer(0, group).nbytes for group in groups)
        chunks = min(STAGING_BYTES // size, LANES * _CHUNKS_OF_A_KERNEL) // LANES * LANES
        memory: list[torch.Tensor] = []
        try:
            for _ in range(chunks - cache_context.max_batch_size):
                memory.append(torch.empty(size, dtype=torch.uint8, device=cache_context.device))
        except torch.OutOfMemoryError:
            memory.clear()
            logger.info("no %s bytes of GPU memory to load through: loads take longer", size)
        streams = [torch.cuda.Stream(cache_context.device) for _ in range(LANES)]
        return _Kept(streams, memory)

    def lanes(self, cache_context: Any) -> list[_Lane]:
        """As many as there are streams, with as much memory each."""
        object_group_of = {
            kernel_group: number
            for number, group in enumerate(cache_context.kv_layer_groups_manager.object_groups)
            for kernel_group in group.kernel_group_indices
        }
        slots: list[_Slot] = [
            *(_LMCachesSlot(cache_context, n) for n in range(cache_context.max_batch_size)),
            *(_OwnSlot(cache_context, memory, object_group_of) for memory in self.memory),
        ]
        each = len(slots) // LANES
        return [
            _Lane(cache_context, stream, slots[number * each : (number + 1) * each])
            for number, stream in enumerate(self.streams)
        ]


class _Lane:
    """An engine's cache as LMCache sees it, with staging memory and a stream for one part."""

    def __init__(self, cache_context: Any, stream: Any, slots: Sequence[_Slot]) -> None:
        self._context = cache_context
        self._slots = slots
        self.own_stream = stream
        self.max_batch_size = len(slots)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def get_temp_kernel_group_buffer(self, slot: int, kernel_group: int) -> torch.Tensor:
        return self._slots[slot].kernel_group(kernel_group)

    def get_temp_object_group_buffer(self, slot: int, object_group: int) -> torch.Tensor:
        return self._slots[slot].object_group(object_group)


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
    kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()

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
        if cache_context not in kept:
            kept[cache_context] = _Kept.of(cache_context)
        lanes = kept[cache_context].lanes(cache_context)
        chunk_tokens = cache_context.lmcache_tokens_per_chunk
        engine_stream = torch.cuda.current_stream(cache_context.device)
        try:
            for lane, (begin, end) in zip(lanes, itertools.pairwise(bounds), strict=True):
                lane.own_stream.wait_stream(engine_stream)
                with torch.cuda.stream(lane.own_stream):
                    move(
                        lane,
                        _block_ids(cache_context, block_ids_gpu, object_group_id, begin, end),
                        memory_objs[begin:end],
                        batch_size=lane.max_batch_size,
                        skip_first_n_tokens=max(0, skip_first_n_tokens - begin * chunk_tokens),
                    )
        finally:
            # Also after an error: LMCache takes what was launched for done when this stream is.
            for lane in lanes:
                engine_stream.wait_stream(lane.own_stream)

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
