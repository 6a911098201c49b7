"""How an LMCache server turns prompts into chunk hashes."""

from __future__ import annotations

import hashlib

from lmcache.v1.multiprocess.token_hasher import TokenHasher

_TOKENS = 128_000


def server_hash_scheme(chunk_size: int, algorithm: str) -> str:
    """The same for a server as ``keys.hash_scheme`` for an engine, and equal to it if both hash
    alike: the chunk size in tokens, the function really in use, and 64 bits in hex of what it makes
    of a fixed prompt.

    Args:
        chunk_size: LMCache's ``--chunk-size``.
        algorithm: LMCache's ``--hash-algorithm``.
    """
    hasher = TokenHasher(chunk_size=chunk_size, hash_algorithm=algorithm)
    prompt = [(i * 2654435761) % _TOKENS for i in range(2 * chunk_size)]
    hashes, prefix = [], None
    for begin in range(0, len(prompt), chunk_size):
        prefix = hasher.hash_tokens(prompt[begin : begin + chunk_size], prefix)
        hashes.append(prefix)
    probe = hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]
    if algorithm == "blake3":
        name = algorithm
    elif hasher.hash_func is hash:
        name = "builtin"
    else:
        name = getattr(hasher.hash_func, "__name__", "unnamed")
    return f"lmcache/chunk={chunk_size}/{name}/{probe}"


ADVICE = (
    "Start all servers of a pool with the same --chunk-size and --hash-algorithm: blake3, the "
    "default, is the same in every process; builtin needs the same PYTHONHASHSEED, and Python 3.12"
)
"""What to change when a server's scheme is not the pool's."""
