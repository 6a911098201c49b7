"""Which layouts of KV this server's engines have, so that they get no chunk of another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import torch
from lmcache.v1.distributed.api import ObjectKey

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc

    from lmcache_beluga.engines.layout import Layout

Group: TypeAlias = tuple[str, int, int]
"""Model, number of ranks, object group."""

Tensors: TypeAlias = tuple[tuple[torch.dtype, int], ...]
"""Of each tensor in a chunk, the dtype and how many elements it has."""


class EngineLayouts:
    """LMCache's server tells chunks apart by the model's name, not by dtype or by how its layers
    are grouped: engines of one server agree on that, but those of all hosts of a pool may not."""

    def __init__(self) -> None:
        self._known: dict[Group, set[Tensors]] = {}

    def add(self, model: str, ranks: int, groups: dict[int, MemoryLayoutDesc]) -> None:
        """An engine of ``model`` has these layouts, by object group."""
        for group, desc in groups.items():
            tensors = _tensors(desc.shapes, desc.dtypes)
            self._known.setdefault((model, ranks, group), set()).add(tensors)

    def fits(self, key: ObjectKey, layout: Layout) -> bool:
        """Whether a chunk of ``layout`` under ``key`` can be an engine's. True if none is known."""
        ranks = ObjectKey.WorldSizeFromKVRank(key.kv_rank)
        known = self._known.get((key.model_name, ranks, key.object_group_id))
        return known is None or _tensors(layout.shapes, layout.dtypes) in known


def _tensors(shapes: list[torch.Size], dtypes: list[torch.dtype]) -> Tensors:
    return tuple((dtype, math.prod(shape)) for shape, dtype in zip(shapes, dtypes, strict=True))
