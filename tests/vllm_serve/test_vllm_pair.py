"""Two real vLLM instances, LMCache in process, one pool: what one computes, the other loads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from instances import CHUNK, Pair, prompt, stats


def test_hit_in_the_other_instance(pair: Pair) -> None:
    """Same tokens as without LMCache; the counters of pool, LMCache and vLLM say where from."""
    tokens = prompt(1)
    wanted = pair.alone.complete(tokens)
    before = stats(pair.pool)
    stored = pair.first.complete(tokens)
    assert (stored.tokens, stored.cached) == (wanted.tokens, 0)
    between = stats(pair.pool)
    assert between["puts"] - before["puts"] == 4
    assert between["gets"] == before["gets"]

    loaded = pair.second.complete(tokens)
    after = stats(pair.pool)
    assert (loaded.tokens, loaded.cached) == (wanted.tokens, 4 * CHUNK)
    assert after["gets"] - between["gets"] == 4
    assert after["puts"] == between["puts"]
    assert pair.second.metric("vllm:external_prefix_cache_hits_total") == 4 * CHUNK
