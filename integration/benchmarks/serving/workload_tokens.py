"""Prompts as token ids that depend on a seed, and what each of them has in common with others."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint32]

#: Ids below have a meaning in most vocabularies: begin, end, padding.
FIRST = 10


class TokenSource:
    """Draws token ids that nobody with another seed or name draws.

    Args:
        vocabulary: ids are below it.
        seed: of the run.
        name: what the tokens are for: workload, repetition, and so on.

    Raises:
        ValueError: the vocabulary is too small to tell prompts apart.
    """

    def __init__(self, vocabulary: int, seed: int, *name: str | int) -> None:
        if vocabulary < FIRST + 16:
            raise ValueError(f"a vocabulary of {vocabulary} tokens: {FIRST + 16} at least")
        self._vocabulary = vocabulary
        self._name = (seed, *name)
        self._generator = self._seeded()
        # One object for each id, or else every token of every prompt would be an object of its own.
        self._ids: list[int] | None = None

    def draw(self, count: int) -> Tokens:
        """The next ``count`` ids."""
        return self._generator.integers(FIRST, self._vocabulary, count, dtype=np.uint32)

    def block(self, number: int, count: int) -> Tokens:
        """``count`` ids that depend on ``number`` alone, and not on what was drawn before."""
        return self._seeded(number).integers(FIRST, self._vocabulary, count, dtype=np.uint32)

    def prompt(self, *parts: Tokens) -> tuple[int, ...]:
        """The parts one after the other, as a request has them."""
        if self._ids is None:
            self._ids = list(range(self._vocabulary))
        ids = self._ids
        return tuple([ids[token] for part in parts for token in part.tolist()])

    def _seeded(self, *more: int) -> np.random.Generator:
        digest = hashlib.sha256(repr((*self._name, *more)).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


class Asked:
    """All prompts so far, as a cache without limits that caches single tokens.

    Prompts are kept in order, so that the one with the longest common prefix is a neighbour.
    """

    def __init__(self) -> None:
        self._prompts: list[bytes] = []

    def reused(self, prompt: Sequence[int]) -> int:
        """How many tokens at its beginning an earlier prompt has; it is an earlier one then."""
        # Most significant byte first: bytes are in the same order then as the numbers.
        new = np.asarray(prompt, dtype=">u4").tobytes()
        place = bisect.bisect_left(self._prompts, new)
        neighbours = self._prompts[max(place - 1, 0) : place + 1]
        if new not in neighbours:
            self._prompts.insert(place, new)
        return max((_common(new, other) for other in neighbours), default=0)


def _common(one: bytes, other: bytes) -> int:
    """Tokens at the beginning of both."""
    length = min(len(one), len(other)) // 4
    first = np.frombuffer(one, dtype=np.uint32, count=length)
    differs = first != np.frombuffer(other, dtype=np.uint32, count=length)
    return int(differs.argmax()) if differs.any() else length
