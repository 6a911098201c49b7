"""What the report knows of backends by name: their order, and whom each is compared with."""

from __future__ import annotations

RECOMPUTE = "none"
#: This project's.
POOLS = ("beluga", "beluga-mp")
#: Tiers behind a network protocol, which the pool would replace.
REMOTE = ("resp", "redis", "mooncake", "lmserver")
#: The same LMCache with memory that it shares with nobody.
PRIVATE = {"beluga": "cpu", "beluga-mp": "lmcache-mp"}

_ORDER = (RECOMPUTE, "cpu", "beluga", "lmcache-mp", "beluga-mp", "dax", "disk", *REMOTE)


def place(backend: str) -> tuple[int, str]:
    """Sorts backends; unknown ones come last."""
    return (_ORDER.index(backend) if backend in _ORDER else len(_ORDER), backend)
