"""The chunks of the two guests: both can tell what a chunk must hold from its owner and number."""

from __future__ import annotations

import hashlib


def key_of(owner: str, number: int) -> bytes:
    return f"{owner}/chunk-{number}".encode()


def bytes_of(owner: str, number: int, size: int) -> bytes:
    return hashlib.shake_128(key_of(owner, number)).digest(size)
