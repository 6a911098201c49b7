"""How a chunk's bytes are shaped: LMCache's shapes, dtypes and format, as a chunk's metadata.

The metadata of a chunk in the pool is the msgpack form of

    [format name, [[dtype name, dimension, ...], ...one per KV group], positions]

with the groups' tensors one after the other in the chunk's bytes. ``positions`` is nil, or runs
``[[first, count], ...]`` of the token positions that LMCache's blending keeps next to a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObj, MemoryObjMetadata

MAX_GROUPS = 64
MAX_DIMENSIONS = 8
MAX_POSITIONS = 1 << 20
_CACHED_LAYOUTS = 4096

# LMCache 0.5.6 has these two the wrong way round in MemoryFormat.token_dim.
_TOKEN_DIMENSIONS = {MemoryFormat.KV_T2D: 0, MemoryFormat.KV_2TD: 1}


@dataclass(frozen=True, slots=True)
class Layout:
    """Shapes and dtypes of the tensors in one chunk, one per KV group, and LMCache's format."""

    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    fmt: MemoryFormat
    positions: torch.Tensor | None
    """Token positions, int64 of shape [tokens], or None."""
    bounds: tuple[int, ...]
    """Group i occupies bytes bounds[i] to bounds[i + 1]."""
    nbytes: int
    """Bytes of all groups together."""
    num_tokens: int

    @classmethod
    def of(
        cls,
        shapes: torch.Size | Sequence[torch.Size],
        dtypes: torch.dtype | Sequence[torch.dtype],
        fmt: MemoryFormat,
        positions: torch.Tensor | None = None,
    ) -> Layout:
        """The layout LMCache means by ``shapes`` and ``dtypes``, each one or one per group.

        Raises ValueError when their numbers differ.
        """
        # torch.Size is itself a sequence (of dimensions), so it is told apart first.
        shapes = [shapes] if isinstance(shapes, torch.Size) else [torch.Size(s) for s in shapes]
        dtypes = [dtypes] if isinstance(dtypes, torch.dtype) else list(dtypes)
        bounds = [0]
        for shape, dtype in zip(shapes, dtypes, strict=True):
            bounds.append(bounds[-1] + math.prod(shape) * dtype.itemsize)
        dimension = _TOKEN_DIMENSIONS.get(fmt, fmt.token_dim())
        first: tuple[int, ...] = shapes[0] if shapes else ()
        num_tokens = first[dimension] if dimension < len(first) else 0
        return cls(shapes, dtypes, fmt, positions, tuple(bounds), bounds[-1], num_tokens)

    def metadata(self, address: int) -> MemoryObjMetadata:
        """LMCache's description of an object with this layout, with one reference."""
        return MemoryObjMetadata(
            shape=self.shapes[0],
            dtype=self.dtypes[0],
            address=address,
            phy_size=self.nbytes,
            ref_count=1,
            pin_count=0,
            fmt=self.fmt,
            cached_positions=self.positions,
            shapes=self.shapes,
            dtypes=self.dtypes,
        )

    def packed(self) -> bytes:
        """The metadata of a chunk with this layout."""
        groups = [
            [str(dtype).removeprefix("torch."), *shape]
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        runs = None if self.positions is None else _runs(self.positions.tolist())
        packed: bytes = msgpack.packb([self.fmt.name, groups, runs])
        return packed


class LayoutCodec:
    """Layouts to metadata and back. A pool holds few distinct ones, so both ways are cached."""

    def __init__(self) -> None:
        self._packed: dict[tuple[Any, ...], bytes] = {}
        self._layouts: dict[bytes, Layout] = {}

    def pack(self, obj: MemoryObj) -> bytes:
        """The metadata for the bytes of ``obj``."""
        meta = obj.metadata
        size = obj.get_size()
        # Only a few backends fill in shapes and dtypes, the plural; the singular is always there.
        shapes = meta.shapes or [meta.shape]
        dtypes = meta.dtypes or [meta.dtype]
        if meta.cached_positions is not None:
            return Layout.of(shapes, dtypes, meta.fmt, meta.cached_positions).packed()
        key = (size, meta.fmt, tuple(shapes), tuple(dtypes))
        packed = self._packed.get(key)
        if packed is None:
            if meta.dtype is None or (layout := Layout.of(shapes, dtypes, meta.fmt)).nbytes != size:
                # Compressed bytes, or a buffer of which less than the shape says is in use.
                layout = Layout.of(torch.Size([size]), torch.uint8, meta.fmt)
            packed = layout.packed()
            _make_room(self._packed)
            self._packed[key] = packed
        return packed

    def declared(self, obj: MemoryObj) -> bytes:
        """The metadata of what the buffer ``obj`` is shaped for, however much of it is in use."""
        meta = obj.metadata
        key = (meta.fmt, tuple(meta.shapes or [meta.shape]), tuple(meta.dtypes or [meta.dtype]))
        packed = self._packed.get(key)
        if packed is None:
            packed = Layout.of(key[1], key[2], meta.fmt).packed()
            _make_room(self._packed)
            self._packed[key] = packed
        return packed

    def unpack(self, packed: bytes, size: int) -> Layout:
        """The layout of a chunk of ``size`` bytes with metadata ``packed``.

        Raises ValueError when the metadata is not such, or describes another number of bytes:
        anybody may have written it.
        """
        layout = self._layouts.get(packed)
        if layout is None:
            layout = _parse(packed)
            _make_room(self._layouts)
            self._layouts[packed] = layout
        if layout.nbytes != size:
            raise ValueError(f"metadata describes {layout.nbytes} bytes, the chunk has {size}")
        return layout


def _make_room(cache: dict[Any, Any]) -> None:
    if len(cache) >= _CACHED_LAYOUTS:
        cache.clear()


def _parse(packed: bytes) -> Layout:
    try:
        name, groups, runs = msgpack.unpackb(packed)
        if not 0 < len(groups) <= MAX_GROUPS:
            raise ValueError(f"{len(groups)} groups")
        dtypes = [_dtype(group[0]) for group in groups]
        shapes = [_shape(group[1:]) for group in groups]
        positions = None if runs is None else _positions(runs)
        return Layout.of(shapes, dtypes, MemoryFormat[name], positions)
    except Exception as error:  # whatever bytes can do to a parser
        raise ValueError(f"not the metadata of a KV chunk: {error!r}") from None


def _dtype(name: object) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {name!r}")
    return dtype


def _shape(dimensions: list[object]) -> torch.Size:
    if len(dimensions) > MAX_DIMENSIONS:
        raise ValueError(f"{len(dimensions)} dimensions")
    sizes = []
    for size in dimensions:
        if type(size) is not int or not 0 <= size < 1 << 48:
            raise ValueError(f"dimension {size!r}")
        sizes.append(size)
    return torch.Size(sizes)


def _runs(positions: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([position, 1])
    return runs


def _positions(runs: list[list[int]]) -> torch.Tensor:
    parts = []
    for first, count in runs:
        if not (0 <= first < 1 << 48 and 0 < count <= MAX_POSITIONS):
            raise ValueError(f"a run of {count} positions from {first}")
        parts.append(torch.arange(first, first + count))
        if len(parts) > MAX_POSITIONS:
            raise ValueError("too many positions")
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
