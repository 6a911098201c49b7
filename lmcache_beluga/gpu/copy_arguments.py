"""What callers hand to the fused copy, checked and made into numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcache_beluga.errors import InvalidArgumentError
from lmcache_beluga.gpu.chunk_table import Piece
from lmcache_beluga.gpu.copy_engines import Addresses
from lmcache_beluga.gpu.paged_cache import PagedCache

_MOST_THREAD_BLOCKS = 1 << 16


def thread_blocks_of(wanted: int | None) -> None:
    """Raises InvalidArgumentError for a number that cannot be launched."""
    if wanted is not None and not 1 <= wanted <= _MOST_THREAD_BLOCKS:
        raise InvalidArgumentError(f"thread blocks: 1 to {_MOST_THREAD_BLOCKS}")


def integers(values: Any, what: str) -> npt.NDArray[Any]:
    """A one-dimensional array of integers. Raises InvalidArgumentError for anything else."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        found = np.empty((0, 0))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise InvalidArgumentError(f"{what}: a sequence of integers is wanted")
    return found if found.size else np.empty(0, dtype=np.int64)


def addresses(values: Any) -> Addresses:
    """Raises InvalidArgumentError for what is no sequence of addresses."""
    found = integers(values, "addresses")
    if found.size and found.min() < 1:
        raise InvalidArgumentError("addresses are greater than 0")
    return np.ascontiguousarray(found, dtype=np.uint64)


def block_ids(values: Any, cache: PagedCache) -> Addresses:
    """As 64-bit words. Raises InvalidArgumentError for a block that the cache does not have."""
    found = integers(values, "block ids")
    if found.size and not 0 <= found.min() <= found.max() < cache.blocks:
        raise InvalidArgumentError(
            f"block ids from {found.min()} to {found.max()}, and the cache has {cache.blocks}"
        )
    return np.ascontiguousarray(found, dtype=np.uint64)


def pieces_of(
    holds: Sequence[Any],
    cache: PagedCache,
    tokens: Sequence[int] | None,
    starts: Sequence[int] | None,
) -> list[Piece]:
    """Where each chunk lies. Raises InvalidArgumentError where chunk and cache do not fit."""
    each = cache.bytes_per_token
    if tokens is None:
        if odd := [hold.size for hold in holds if hold.size % each]:
            raise InvalidArgumentError(
                f"{odd[0]} bytes are no whole number of tokens of {each} bytes"
            )
        tokens = [hold.size // each for hold in holds]
    if starts is None:
        starts = [0] * len(tokens)
        for i in range(1, len(tokens)):
            starts[i] = starts[i - 1] + tokens[i - 1]
    if len(tokens) != len(holds) or len(starts) != len(holds):
        raise InvalidArgumentError("tokens and starts: one per chunk")
    for hold, count, start in zip(holds, tokens, starts, strict=True):
        if count < 1 or start < 0 or count * each > hold.size:
            raise InvalidArgumentError(
                f"{count} tokens of {each} bytes, from position {start}, in {hold.size} bytes"
            )
    return [
        Piece(int(hold.address), int(count), int(start))
        for hold, count, start in zip(holds, tokens, starts, strict=True)
    ]
