"""Where the chunks of recent prompts stand in their prompt, so that prefixes outlive suffixes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey

REMEMBERED_PROMPTS = 32


class PrefixDepths:
    """Remembers the prompts whose lookup found something missing: the chunks to be stored next.

    LMCache stores a long prompt in pieces, one per prefill step, and does not say with a piece
    where in the prompt it belongs. The lookup before showed the whole prompt.
    """

    def __init__(self) -> None:
        self._prompts: deque[tuple[Sequence[CacheEngineKey], int]] = deque(
            maxlen=REMEMBERED_PROMPTS
        )

    def looked_up(self, keys: Sequence[CacheEngineKey], hits: int) -> None:
        """A lookup of a prompt's ``keys``, in order, found the first ``hits`` of them."""
        if hits < len(keys):
            # By reference: LMCache does not change its lists of keys, and a lookup must cost
            # nothing per key here.
            self._prompts.append((keys, hits))

    def first_of(self, keys: Sequence[CacheEngineKey]) -> int:
        """Depth of the first of ``keys``, which are about to be stored; 0 when it is not known."""
        wanted = keys[0].chunk_hash
        for prompt, missing in reversed(tuple(self._prompts)):
            for depth in range(missing, len(prompt)):
                if prompt[depth].chunk_hash == wanted:
                    return depth
        return 0
