"""What every way into the pool has in common: the calls that the conformance suite makes.

A new surface is one class with these methods, named in ``conftest.SURFACES``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from l2_harness import DTYPE, SHAPE, SIZE

__all__ = ["DTYPE", "SHAPE", "SIZE", "Chunk", "Surface"]


@dataclass(frozen=True)
class Chunk:
    """A chunk of a prompt, by a number that stands for its tokens, of one user."""

    number: int
    salt: str = ""

    @property
    def hash(self) -> int:
        """64 bits, positive."""
        digest = hashlib.sha256(str(self.number).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def data(self, version: int = 0) -> bytes:
        """SIZE bytes that no other chunk has, nor another version."""
        seed = hashlib.sha256(f"{self}{version}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
        return (
            torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=generator).numpy().tobytes()
        )


class Surface(Protocol):
    """One process's handle on the pool through one of LMCache's interfaces."""

    def store(self, chunks: Sequence[Chunk], data: Sequence[bytes]) -> bool:
        """Store; whether all of them are in the cache afterwards."""

    def lookup(self, chunks: Sequence[Chunk]) -> list[bool]:
        """Which are there. Nothing is held."""

    def hold(self, chunks: Sequence[Chunk]) -> list[bool]:
        """Which are there, and those are kept until they are let go."""

    def let_go(self, chunks: Sequence[Chunk]) -> None:
        """Undo one ``hold`` of each."""

    def load(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        """The bytes of each, None for a miss."""

    def delete(self, chunks: Sequence[Chunk]) -> None:
        """Remove."""

    def held(self) -> int:
        """Everything that this handle holds: pins, views, half-written slots."""

    def close(self) -> None:
        """Detach. Idempotent."""
