"""Where the chunks of recent prompts stand in their prompt, so that prefixes outlive suffixes."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.distributed.api import ObjectKey

REMEMBERED_PROMPTS = 32


class PrefixDepths:
    """Remembers the prompts whose lookup found something missing: the chunks to be stored next.

    LMCache stores a long prompt in pieces, one per prefill step, and does not say with a piece
    where in the prompt it belongs. The lookup before showed the whole prompt.
    """

    def __init__(self) -> None:
        self._prompts: deque[tuple[Sequence[CacheEngineKey | ObjectKey], int]] = deque(
            maxlen=REMEMBERED_PROMPTS
        )

    def looked_up(self, keys: Sequence[CacheEngineKey | ObjectKey], hits: int) -> None:
        """A lookup of a prompt's ``keys``, in order, found the first ``hits`` of them."""
        if hits < len(keys):
            # By reference: LMCache does not change its lists of keys, and a lookup must cost
            # nothing per key here.
            self._prompts.append((keys, hits))

    def first_of(self, keys: Sequence[CacheEngineKey | ObjectKey]) -> int:
        """Depth of the first of ``keys``, which are about to be stored; 0 when it is not known."""
        wanted = keys[0].chunk_hash
        for prompt, missing in reversed(tuple(self._prompts)):
            for depth in range(missing, len(prompt)):
                if prompt[depth].chunk_hash == wanted:
                    return depth
        return 0


def first_row(keys: Sequence[ObjectKey]) -> Sequence[ObjectKey]:
    """The prompt's chunks of the first rank and group, in order.

    LMCache's servers look up all chunks of one rank and object group, then those of the next.
    """

    def in_row(key: ObjectKey) -> bool:
        return bool(
            key.kv_rank == keys[0].kv_rank and key.object_group_id == keys[0].object_group_id
        )

    if not keys or in_row(keys[-1]):
        return keys
    return keys[: bisect_left(keys, True, key=lambda key: not in_row(key))]
