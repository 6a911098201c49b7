"""Moves KV between LMCache's chunks and the KV cache of vLLM's CPU backend, token by token."""

from __future__ import annotations

from typing import Any

import torch
from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

BITS = {2: torch.int16, 4: torch.int32}


class CPUKV(GPUConnectorInterface):
    """What LMCache calls a GPU connector, for KV in vLLM's CPU memory.

    Chunks are ``[2, layers, tokens, heads * size]``, as those of LMCache's CUDA connectors are. A
    layer of vLLM is ``[blocks, heads, block size, 2 * size]``; in each block and head keys come
    before values, and both are permuted as this CPU's instructions want it.
    """

    def __init__(self, metadata: Any) -> None:
        self._layers, _, _, self._heads, self._size = metadata.kv_shape
        self._order: tuple[torch.Tensor, torch.Tensor] | None = None
        self.kvcaches: list[torch.Tensor] = []

    def get_shape(self, num_tokens: int) -> torch.Size:
        return torch.Size([2, self._layers, num_tokens, self._heads * self._size])

    def initialize_kvcaches_ptr(self, **named: Any) -> None:
        self.kvcaches = named.get("kvcaches", self.kvcaches)

    def batched_from_gpu(self, memory_objs: Any, starts: Any, ends: Any, **named: Any) -> None:
        for chunk, start, end in zip(memory_objs, starts, ends, strict=True):
            self.from_gpu(chunk, start, end, **named)

    def batched_to_gpu(
        self, memory_objs: Any = None, starts: Any = None, ends: Any = None, **named: Any
    ) -> None:
        for chunk, start, end in zip(memory_objs, starts, ends, strict=True):
            self.to_gpu(chunk, start, end, **named)

    def from_gpu(self, memory_obj: Any, start: int, end: int, **named: Any) -> None:
        self.initialize_kvcaches_ptr(**named)
        slots = named["slot_mapping"][start:end]
        for layer, cache in enumerate(self.kvcaches):
            memory_obj.tensor[:, layer].copy_(self._read(cache, slots))

    def to_gpu(self, memory_obj: Any, start: int, end: int, **named: Any) -> None:
        self.initialize_kvcaches_ptr(**named)
        # Blocks that vLLM has itself may be in use by other requests.
        skipped = min(max(0, named.get("vllm_cached_tokens", 0) - start), end - start)
        slots = named["slot_mapping"][start + skipped : end]
        for layer, cache in enumerate(self.kvcaches):
            keys, values = memory_obj.tensor[:, layer, skipped:].reshape(
                2, -1, self._heads, self._size
            )
            _write(cache, keys, values, slots)

    def _read(self, cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """KV of slots, ``[2, slots, heads * size]``."""
        in_block = cache.shape[2]
        if self._order is None:
            self._order = _order(in_block, self._size, cache.dtype)
        blocks, which = torch.unique(slots // in_block, return_inverse=True)
        halves = cache[blocks].view(len(blocks), self._heads, 2, in_block * self._size)
        kv = []
        for half, order in enumerate(self._order):
            tokens = halves[:, :, half, order].view(-1, self._heads, in_block, self._size)
            kv.append(tokens[which, :, slots % in_block].reshape(len(slots), -1))
        return torch.stack(kv)


def _write(
    cache: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
) -> None:
    """As vLLM does what it has computed."""
    blocks, heads, in_block, twice = cache.shape
    halves = cache.view(blocks, heads, in_block * 2, twice // 2).chunk(2, dim=2)
    isa = _get_attn_isa(cache.dtype, in_block, twice // 2)
    ops.cpu_attn_reshape_and_cache(keys, values, *halves, slots, isa)


def _order(in_block: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Where vLLM puts the elements of a block's keys, and of its values; found by doing it."""
    cache = torch.zeros(1, 1, in_block, 2 * size, dtype=dtype)
    bits = BITS[dtype.itemsize]
    numbers = torch.arange(in_block * size, dtype=bits).view(in_block, 1, size)
    _write(cache, numbers.view(dtype), numbers.view(dtype), torch.arange(in_block))
    keys, values = (half.argsort() for half in cache.view(bits).view(2, -1).to(torch.int64))
    found = cache.view(bits).view(2, -1)
    for half, order in zip(found, (keys, values), strict=True):
        assert torch.equal(half[order], numbers.view(-1)), "vLLM does more than permute"
    return keys, values
