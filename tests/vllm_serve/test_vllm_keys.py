"""Real vLLM instances that differ, on one pool: none takes KV that is not its own."""

from __future__ import annotations

from typing import Any

import pytest
from instances import CHUNK, Pair, Serving, prompt
from vllm_server import VLLM

OTHERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "model": ((), {"model": 1}),
    "dtype": (("--dtype", "float32"), {}),
    "ranks": (("--tensor-parallel-size", "2"), {}),
    "blocks": (("--block-size", "64"), {}),
    "chunks": ((), {"chunk_size": CHUNK // 2}),
}


class Others:
    """Starts each one while the one before is tested."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._started: dict[str, VLLM] = {}

    def _start(self, name: str) -> VLLM:
        if name not in self._started:
            arguments, options = OTHERS[name]
            self._started[name] = self._serving.start(f"other-{name}", *arguments, **options)
        return self._started[name]

    def get(self, name: str) -> VLLM:
        instance = self._start(name)
        names = list(OTHERS)
        for following in names[names.index(name) + 1 :][:1]:
            self._start(following)
        return instance.wait()


@pytest.fixture(scope="module")
def others(serving: Serving, pair_as_it_is: Pair) -> Others:
    return Others(serving)


@pytest.mark.parametrize("name", ["model", "dtype", "ranks"])
def test_keys_of_their_own(pair: Pair, others: Others, name: str) -> None:
    """The same prompt is computed by each kind, and then found by its own kind."""
    tokens = prompt(30 + list(OTHERS).index(name))
    wanted = pair.first.complete(tokens)
    other = others.get(name)
    computed = other.complete(tokens)
    assert computed.cached == 0
    assert other.metric("vllm:external_prefix_cache_hits_total") == 0
    other.forget()
    loaded = other.complete(tokens)
    assert (loaded.tokens, loaded.cached) == (computed.tokens, 4 * CHUNK)
    assert other.metric("vllm:external_prefix_cache_hits_total") == 4 * CHUNK
    other.stop()
    again = pair.second.complete(tokens)
    assert (again.tokens, again.cached) == (wanted.tokens, 4 * CHUNK)


def test_chunks_know_no_blocks(pair: Pair, others: Others) -> None:
    """Instances with other block sizes share chunks, which hold tokens, and load them right."""
    tokens = prompt(40)
    wanted = pair.first.complete(tokens)
    other = others.get("blocks")
    loaded = other.complete(tokens)
    assert (loaded.tokens, loaded.cached) == (wanted.tokens, 4 * CHUNK)
    more = prompt(41)
    computed = other.complete(more)
    other.stop()
    again = pair.second.complete(more)
    assert (again.tokens, again.cached) == (computed.tokens, 4 * CHUNK)
    assert again.tokens == pair.alone.complete(more).tokens


def test_other_chunk_size_is_refused(pair: Pair, others: Others) -> None:
    """Its chunks would never be found: it serves without the pool, and is told what to change."""
    tokens = prompt(50)
    wanted = pair.first.complete(tokens)
    other = others.get("chunks")
    for _ in range(2):
        computed = other.complete(tokens)
        assert (computed.tokens, computed.cached) == (wanted.tokens, 0)
        other.forget()
    (said,) = other.told("LMCache goes on without the storage backend of lmcache-beluga")
    assert f"set chunk_size: {CHUNK}" in said
    other.stop()
