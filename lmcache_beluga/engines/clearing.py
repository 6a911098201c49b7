"""Removes the chunks of one engine from a pool that others share."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from lmcache.utils import CacheEngineKey

from lmcache_beluga.engines.layout import LayoutCodec
from lmcache_beluga.keys import record

if TYPE_CHECKING:
    from lmcache_beluga.pool import Pool


def remove_chunks_of(pool: Pool, codec: LayoutCodec, model: str, world_size: int, rank: int) -> int:
    """Remove all chunks of ``rank`` of ``world_size`` ranks of ``model``; tokens removed.

    As LMCache counts: in layerwise mode, a token counts once per layer.
    """
    stems = _stems(model, world_size, rank)
    tokens = 0
    for entry in pool.keys():  # noqa: SIM118 (a Pool is no dict)
        if not entry.record.startswith(stems) or not pool.remove([entry.record]):
            continue
        try:
            tokens += codec.unpack(entry.meta, entry.size).num_tokens
        except ValueError:
            continue  # removed, but nobody can say how many tokens it was
    return tokens


def _stems(model: str, world_size: int, rank: int) -> tuple[bytes, bytes]:
    """What the records of all such keys begin with: those of chunks, and those of their layers."""
    # Records have the fields that vary from key to key last. Two keys that differ in the first of
    # those, the dtype, have in common what all keys of the rank have in common.
    dtypes = (torch.bfloat16, torch.float)
    keys = [CacheEngineKey(model, world_size, rank, 0, dtype) for dtype in dtypes]
    layers = [key.split_layers(1)[0] for key in keys]
    return _common_prefix(keys), _common_prefix(layers)


def _common_prefix(keys: list[CacheEngineKey]) -> bytes:
    one, other = (record(key) for key in keys)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return bytes(byte for byte, _ in same)
