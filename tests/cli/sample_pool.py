"""The chunks in the pool that the command's tests look at."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
from click.testing import Result

SIZE = 64 << 20
OPAQUE = b"a record that LMCache did not make"


def chunk_record(model: str, rank: int, chunk_hash: int) -> bytes:
    """The record of a CacheEngineKey, as lmcache_beluga.keys documents it."""
    fields = (1, 1, model, 2, rank, "bfloat16", None, chunk_hash)
    return bytes(msgpack.packb(fields, use_bin_type=True))


RECORDS = {
    chunk_record("meta-llama/Llama-3.1-8B", 0, 0x11112222333344): 100_000,
    chunk_record("meta-llama/Llama-3.1-8B", 1, 0x11112222333344): 100_000,
    chunk_record("meta-llama/Llama-3.1-8B", 0, -0x55556666777788): 50_000,
    chunk_record("Qwen/Qwen3-8B", 0, 0x99990000111122): 25_000,
    OPAQUE: 1_000,
}

Run = Callable[..., Result]
"""Runs ``beluga`` with arguments, in this process."""
