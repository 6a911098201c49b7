"""A paged KV cache laid out as vLLM lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KVShape:
    """What one token's KV looks like."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of all layers."""
        return int(2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize)


class PagedKV:
    """Per layer one tensor ``[2, blocks, block_size, heads, head_dim]``, blocks in random order.

    Args:
        shape: layout of one token.
        tokens: capacity in tokens of the one sequence held.
        device: where the tensors live.
        seed: draws which physical block holds which part of the sequence. Two engines never agree
            on that in practice, so two caches in one comparison get different seeds.
        block_size: tokens per block.
    """

    def __init__(
        self, shape: KVShape, tokens: int, device: torch.device, seed: int, block_size: int = 16
    ) -> None:
        blocks = -(-tokens // block_size)
        self.shape = shape
        self.tokens = tokens
        self.layers = [
            torch.zeros(
                (2, blocks, block_size, shape.heads, shape.head_dim),
                dtype=shape.dtype,
                device=device,
            )
            for _ in range(shape.layers)
        ]
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))
        slots = order[:, None] * block_size + torch.arange(block_size)[None]
        self.slot_mapping = slots.reshape(-1)[:tokens].to(device)
        """Slot of each token: ``block * block_size + offset``, int64, shape ``[tokens]``."""

    def write(
        self, start: int, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
    ) -> None:
        """Write each layer's keys and values ``[count, heads, head_dim]``, from token ``start``."""
        slots = self.slot_mapping[start : start + keys[0].shape[0]]
        for layer, key, value in zip(self.layers, keys, values, strict=True):
            flat = layer.view(2, -1, self.shape.heads, self.shape.head_dim)
            flat[0, slots] = key
            flat[1, slots] = value

    def read(self, layer: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values of ``count`` tokens, each ``[1, heads, count, head_dim]``."""
        gathered = self.gather(layer, count).permute(0, 2, 1, 3).contiguous()
        return gathered[0:1], gathered[1:2]

    def gather(self, layer: int, count: int) -> torch.Tensor:
        """A copy of the first ``count`` tokens' KV, ``[2, count, heads, head_dim]``."""
        flat = self.layers[layer].view(2, -1, self.shape.heads, self.shape.head_dim)
        return flat[:, self.slot_mapping[:count]]

    def fill(self, byte: int) -> None:
        """Set every byte, so that a load which does nothing cannot go unnoticed."""
        for layer in self.layers:
            layer.view(torch.uint8).fill_(byte)
