"""Which vLLM LMCache's in-process connectors move KV of, and of which only half."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

PACKED_SINCE = (0, 26)
"""From this version on vLLM keeps keys and values of a layer in one block, one behind the other."""

_MOVES_HALF = ("0.5.4", "0.5.5", "0.5.6")


def moves_half(device_type: str, use_mla: bool) -> str:
    """Why LMCache would load wrong KV in this process, or nothing.

    LMCache up to 0.5.6 takes vLLM's packed blocks for keys alone, on CUDA devices, and says nothing
    (its issue 4463): what it stores has no values. Latent attention (MLA) has nothing to pack.
    """
    if device_type != "cuda" or use_mla or "vllm" not in sys.modules:
        return ""
    try:
        vllm, lmcache = version("vllm"), version("lmcache").partition("+")[0]
    except PackageNotFoundError:
        return ""
    if lmcache not in _MOVES_HALF or _release(vllm) < PACKED_SINCE:
        return ""
    return (
        f"LMCache {lmcache} moves half of the KV of vLLM {vllm} in process, silently, so that "
        "nothing is stored or loaded. Use vLLM 0.25.1, or LMCache's multiprocess mode (beluga "
        "lmcache-server with LMCacheMPConnector)"
    )


def _release(text: str) -> tuple[int, int]:
    """Major and minor; versions that do not look like any are taken for the newest."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return sys.maxsize, 0
