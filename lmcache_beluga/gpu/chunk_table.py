"""The tables that the fused kernels read: which chunk lies where. Only arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from lmcache_beluga.errors import InvalidArgumentError
from lmcache_beluga.gpu.paged_cache import PagedCache

Words = npt.NDArray[np.uint64]

#: As in fused_copy.cu: lanes of a warp, and accesses of each that are under way at once.
LANES, UNROLL = 32, 4
TILE = LANES * UNROLL
_WIDEST = 16
_WORD = 1 << 64


@dataclass(frozen=True)
class Piece:
    """One chunk in its slot."""

    address: int
    tokens: int
    first: int
    """Position of its first token, counted from the beginning of the table of blocks."""


def width_of(combined: int) -> int:
    """Bytes of the widest access (16, 8, 4, 2 or 1) for addresses and sizes or-ed together."""
    combined |= _WIDEST
    return combined & -combined


def magic_of(divisor: int, largest: int) -> int:
    """The factor by which fused_copy.cu divides numbers up to ``largest``.

    Raises InvalidArgumentError where it would not be exact: more than a launch can copy.
    """
    if divisor * largest >= _WORD:
        raise InvalidArgumentError("too many bytes for one launch")
    return -(-_WORD // divisor) % _WORD


def paged_width(cache: PagedCache, pieces: Sequence[Piece]) -> int:
    """Bytes per access, by what all addresses and strides are multiples of."""
    numbers = [*cache.layers, *(piece.address for piece in pieces)]
    sizes = cache.token_bytes | cache.half_stride | cache.block_stride
    return width_of(reduce(operator.or_, numbers, sizes))


@dataclass(frozen=True)
class ChunkTable:
    """``Chunk`` records of fused_copy.cu, and what else its kernel is told."""

    words: Words
    """Six per chunk, in accesses of ``width`` bytes."""
    tiles: int
    width: int
    block_accesses: int
    block_magic: int

    @classmethod
    def of(cls, cache: PagedCache, pieces: Sequence[Piece]) -> ChunkTable:
        """Raises InvalidArgumentError for more than one launch can copy (about 2^64 bytes^2)."""
        width = paged_width(cache, pieces)
        token = cache.token_bytes // width
        planes = cache.halves * len(cache.layers)
        block = cache.block_tokens * token
        rows = []
        tiles = 0
        end = 1
        for piece in pieces:
            plane = piece.tokens * token
            total = planes * plane
            first = piece.first * token
            rows.append((piece.address, total, plane, magic_of(plane, total), first, tiles))
            tiles += -(-total // TILE)
            end = max(end, first + plane)
        words = np.array(rows, dtype=np.uint64).reshape(-1)
        return cls(words, tiles, width, block, magic_of(block, end))
