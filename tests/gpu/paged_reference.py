"""Chunks of a paged KV cache the slow way: token by token, by torch's own indexing."""

from __future__ import annotations

import torch

from lmcache_beluga.gpu.paged_cache import Paging

SHAPES = {
    Paging.HALVES_FIRST: lambda blocks, size, heads, width: (2, blocks, size, heads, width),
    Paging.BLOCKS_FIRST: lambda blocks, size, heads, width: (blocks, 2, size, heads, width),
    Paging.LATENT: lambda blocks, size, heads, width: (blocks, size, heads * width),
}


def random_cache(
    paging: Paging,
    *,
    layers: int = 3,
    blocks: int = 23,
    size: int = 16,
    heads: int = 4,
    width: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    seed: int = 1,
) -> list[torch.Tensor]:
    """One tensor per layer, of random bytes."""
    generator = torch.Generator().manual_seed(seed)
    shape = SHAPES[paging](blocks, size, heads, width)
    result = []
    for _ in range(layers):
        raw = torch.randint(
            0,
            256,
            (*shape[:-1], shape[-1] * dtype.itemsize),
            dtype=torch.uint8,
            generator=generator,
        )
        result.append(raw.view(dtype).to(device))
    return result


def chunk(
    layers: list[torch.Tensor], paging: Paging, blocks: list[int], start: int, tokens: int
) -> torch.Tensor:
    """The chunk's bytes, uint8: ``[2, layers, tokens, heads * width]``, or 1 for MLA."""
    size = layers[0].shape[
        {Paging.HALVES_FIRST: 2, Paging.BLOCKS_FIRST: 2, Paging.LATENT: 1}[paging]
    ]
    halves = []
    for half in range(1 if paging is Paging.LATENT else 2):
        planes = []
        for layer in layers:
            rows = []
            for token in range(start, start + tokens):
                block, offset = blocks[token // size], token % size
                if paging is Paging.HALVES_FIRST:
                    row = layer[half, block, offset]
                elif paging is Paging.BLOCKS_FIRST:
                    row = layer[block, half, offset]
                else:
                    row = layer[block, offset]
                rows.append(row.reshape(-1))
            planes.append(torch.stack(rows))
        halves.append(torch.stack(planes))
    return torch.stack(halves).contiguous().view(torch.uint8).reshape(-1).cpu()
